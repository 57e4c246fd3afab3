"""Token shards: what was written is read, in any order, and anything else is refused."""

import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.data.corpora import shards as rooms
from ringworld.data.corpora.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    CodecNote,
    Counts,
    Manifest,
    ShardNote,
    TokenizerNote,
    hash_codec,
    read_shard_manifest,
    write_json,
)
from ringworld.data.corpora.shards import Record, Shards, find_fault, write_shard
from ringworld.data.example import Example
from ringworld.errors import InputError
from ringworld.files import hash_file
from ringworld.weights.shipped import NANO

TEXT, CODES = 2048, 512


def make_record(rng: np.random.Generator, length: int, origin: str = "a.jsonl:1") -> Record:
    """A record of random runs of both kinds."""
    vision = np.repeat(rng.random(length) < 0.5, 3)[:length]
    tokens = np.where(vision, rng.integers(CODES + 2, size=length), rng.integers(TEXT, size=length))
    weights = np.repeat(rng.choice([0.0, 1.0, 0.25], length), 2)[:length]
    weights[-1] = 1.0
    return Record(
        example=Example(tokens.astype(np.int32), vision, weights.astype(np.float32)),
        seconds=np.sort(rng.random(int(rng.integers(4)))),
        origin=origin,
    )


def make_folder(folder: Path, sizes: dict[str, int], seed: int = 0) -> list[Record]:
    """A folder of shards, one a source, of so many random records; returns the records."""
    rng, records, notes, sources = np.random.default_rng(seed), [], [], {}
    for name, size in sizes.items():
        some = [make_record(rng, int(rng.integers(2, 60)), f"{name}:{i}") for i in range(size)]
        path = folder / f"{name}-00000.arrow"
        counts = write_shard(path, some)
        note = ShardNote(
            file=path.name,
            source=name,
            sha256=hash_file(path),
            bytes=path.stat().st_size,
            counts=counts,
        )
        notes.append(note)
        sources[name] = counts
        records += some
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        tokenizer=TokenizerNote(sha256=hash_file(NANO / "tokenizer.json"), size=TEXT, bos=1, eos=2),
        codec=CodecNote(
            sha256=hash_codec(NANO / "codec"), size=64, codes=CODES, codes_per_frame=64
        ),
        counts=sum(sources.values(), Counts()),
        sources=sources,
        skipped=0,
        shards=tuple(notes),
    )
    write_json(folder / MANIFEST, manifest)
    return records


def same(one: Example, other: Example) -> bool:
    """Whether two examples are alike, types included."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def refusal(act: Callable[[], object]) -> str:
    """The sentence with which something is refused."""
    with pytest.raises(InputError) as caught:
        act()
    assert "\n" not in str(caught.value) and ":" in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read_in_any_order(tmp_path: Path) -> None:
    records = make_folder(tmp_path, {"a": 7, "b": 5})
    shards = Shards(tmp_path)
    assert len(shards) == 12
    for i in np.random.default_rng(1).permutation(12):
        read = shards.record(int(i))
        assert same(read.example, records[i].example) and same(shards[i - 12], records[i].example)
        assert np.array_equal(read.seconds, records[i].seconds)
        assert read.origin == records[i].origin
    assert shards.lengths.tolist() == [len(record.example) for record in records]
    assert [len(e) for e in shards[3:6]] == shards.lengths[3:6].tolist()
    assert shards.indices("b").tolist() == [7, 8, 9, 10, 11]
    assert {shards.source(i) for i in (0, 6)} == {"a"} and shards.source(7) == "b"
    with pytest.raises(IndexError):
        shards[12]


def test_a_shard_of_many_batches_is_one_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "BATCH_TOKENS", 64)
    records = make_folder(tmp_path, {"a": 20})
    shards = Shards(tmp_path)
    assert len(shards._batches(0)) > 3
    assert all(same(shards[i], record.example) for i, record in enumerate(records))
    assert shards.lengths.tolist() == [len(record.example) for record in records]


def test_only_so_many_shards_are_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "OPEN_SHARDS", 2)
    records = make_folder(tmp_path, dict.fromkeys("abcd", 2))
    shards = Shards(tmp_path)
    for i in (0, 2, 4, 6, 1, 7, 3):
        assert same(shards[i], records[i].example)
        assert len(shards._open) <= 2


def test_tokens_are_read_from_the_file_and_not_copied(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 2})
    shards = Shards(tmp_path)
    first = shards[0].tokens
    assert first.base is not None and np.shares_memory(first, shards[0].tokens)


def test_a_copy_opens_the_folder_anew(tmp_path: Path) -> None:
    records = make_folder(tmp_path, {"a": 3})
    again = copy(Shards(tmp_path))
    assert same(again[2], records[2].example)


@settings(max_examples=60, deadline=None)
@given(
    vision=st.lists(st.booleans(), min_size=1, max_size=40),
    weights=st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=40, max_size=40),
)
def test_any_runs_come_back(
    tmp_path_factory: pytest.TempPathFactory, vision: list[bool], weights: list[float]
) -> None:
    n = len(vision)
    example = Example(
        np.arange(n, dtype=np.int32), np.array(vision), np.array(weights[:n], np.float32)
    )
    backwards = Example(example.tokens, example.vision[::-1], example.weights[::-1])
    written = [example, backwards, example, example]
    batch, counts = rooms._batch(
        [Record(example=one, seconds=np.zeros(0), origin="x") for one in written]
    )
    read = rooms._map(batch)
    assert all(same(rooms._read_row(read, i).example, one) for i, one in enumerate(written))
    assert (counts.tokens, counts.vision) == (4 * n, 4 * sum(vision))


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    make_folder(tmp_path / "one", {"a": 9})
    make_folder(tmp_path / "two", {"a": 9})
    for name in ("a-00000.arrow", MANIFEST):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# ---- damage


def test_a_folder_without_a_manifest_is_no_data(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 2})
    (tmp_path / MANIFEST).unlink()
    assert "no finished token shards" in refusal(lambda: Shards(tmp_path))


def test_a_truncated_or_missing_shard_is_refused_when_the_folder_is_opened(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 5})
    path = tmp_path / "a-00000.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "a-00000.arrow has" in refusal(lambda: Shards(tmp_path))
    path.unlink()
    assert "a-00000.arrow is missing" in refusal(lambda: Shards(tmp_path))


def test_every_flipped_bit_is_found_by_the_hash_and_none_ends_the_process(tmp_path: Path) -> None:
    records = make_folder(tmp_path, {"a": 4})
    path = tmp_path / "a-00000.arrow"
    whole = path.read_bytes()
    for at in range(0, len(whole), 23):
        broken = bytearray(whole)
        broken[at] ^= 1 << (at % 8)
        path.write_bytes(bytes(broken))
        shards = Shards(tmp_path)
        assert "is not what was written" in refusal(shards.verify)
        try:
            read = [shards[i] for i in range(len(records))]
        except InputError:
            continue
        assert len(read) == len(records)


def test_ids_out_of_range_are_refused_with_the_row_they_came_from(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 3})
    path = tmp_path / MANIFEST
    table = json.loads(path.read_text())
    table["tokenizer"]["size"], table["codec"]["codes"] = 2, 1
    path.write_text(json.dumps(table))
    said = refusal(lambda: Shards(tmp_path)[1])
    assert "a:1" in said and "is not from 0 to" in said


@pytest.mark.parametrize(
    ("tokens", "vision", "weights", "said"),
    [
        ([1, 7], [False, False], [0, 1], ""),
        ([1, 8], [False, False], [0, 1], "text id 8"),
        ([1, -1], [False, False], [0, 1], "text id -1"),
        ([1, 4], [False, True], [0, 1], "vision id 4"),
        ([1, 3], [False, True], [0, 1], ""),
        ([1], [False], [1], "nothing to predict"),
        ([1, 2], [False, False], [1, 0], "nothing to learn"),
        ([1, 2], [False, False], [0, -1], "loss weight"),
        ([1, 2], [False, False], [0, np.nan], "loss weight"),
    ],
)
def test_faults_of_an_example_are_named(
    tokens: list[int], vision: list[bool], weights: list[float], said: str
) -> None:
    example = Example(np.array(tokens, np.int32), np.array(vision), np.array(weights, np.float32))
    fault = find_fault(example, 8, 4)
    assert said in fault and bool(fault) == bool(said)


def test_another_tokenizer_or_codec_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", {"a": 2})
    shards = Shards(tmp_path / "data")
    shards.check_parts(NANO / "tokenizer.json", NANO / "codec")
    other = tmp_path / "tokenizer.json"
    other.write_bytes((NANO / "tokenizer.json").read_bytes() + b" ")
    assert "another tokenizer" in refusal(lambda: shards.check_parts(other, NANO / "codec"))
    assert "another codec" in refusal(lambda: shards.check_parts(NANO / "tokenizer.json", None))


def test_a_tokenizer_that_names_another_end_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "tokens", {"a": 2})
    written = (NANO / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(written)
    shards = Shards(tmp_path / "tokens")
    shards.check_parts(tmp_path / "tokenizer.json", NANO / "codec")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<unk>"}')
    said = refusal(lambda: shards.check_parts(tmp_path / "tokenizer.json", NANO / "codec"))
    assert "begins and ends texts otherwise" in said


def test_text_alone_needs_no_codec(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 2})
    manifest = read_shard_manifest(tmp_path)
    write_json(tmp_path / MANIFEST, replace(manifest, codec=None))
    Shards(tmp_path).check_parts(NANO / "tokenizer.json", None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 9}, "schema 9"),
        ({"wings": 2}, "unknown key wings"),
        ({"skipped": "no"}, "skipped must be a whole number"),
        ({"shards": [{"file": "../../x.arrow"}]}, "lacks the key"),
    ],
)
def test_a_manifest_is_read_to_the_letter(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    make_folder(tmp_path, {"a": 2})
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert said in refusal(lambda: Shards(tmp_path))


@pytest.mark.parametrize("place", ["counts", "sources", "shards"])
def test_a_manifest_whose_counts_do_not_add_up_is_refused(tmp_path: Path, place: str) -> None:
    make_folder(tmp_path, {"a": 2, "b": 3})
    path = tmp_path / MANIFEST
    table = json.loads(path.read_text())
    counts = {"counts": table["counts"], "sources": table["sources"]["b"]}
    counts["shards"] = table["shards"][1]["counts"]
    counts[place]["learned"] += 1
    path.write_text(json.dumps(table))
    assert "do not add up" in refusal(lambda: Shards(tmp_path))


def test_a_manifest_names_only_files_of_its_folder(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 2})
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace('"a-00000.arrow"', '"../a-00000.arrow"'))
    assert "another folder" in refusal(lambda: Shards(tmp_path))
