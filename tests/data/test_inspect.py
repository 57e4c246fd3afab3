"""What is said of a folder of shards is what is in it; and the data page does what it shows."""

import json
import re
import shlex
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ringworld import cli
from ringworld.data.corpora.build import build_shards
from ringworld.data.corpora.inspection import (
    SHOWN_FRAMES,
    Inspection,
    choose_samples,
    draw_samples,
    find_codec,
    inspect_shards,
    measure_lengths,
    measure_uses,
    name_token,
)
from ringworld.data.corpora.shards import Shards
from ringworld.data.packing.pack import efficiency, plan_rows
from ringworld.errors import InputError
from ringworld.evals.shard_report import print_inspection, write_page
from ringworld.media.clip import write_animation
from ringworld.text.load import TOKENIZER, load_tokenizer
from ringworld.weights.shipped import NANO

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
SPEC = """
on_bad = "skip"
[[documents]]
name = "words"
path = "words.jsonl"
[[captions]]
name = "films"
path = "films.jsonl"
fps = 2
orders = ["vision-text"]
"""


def draw_film(path: Path, seed: int) -> None:
    """A film of four frames at two a second."""
    noise = np.random.default_rng(seed).integers(0, 255, (4, 48, 64, 3)).astype(np.uint8)
    write_animation(path, noise, 2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of eight documents and a film; one row was bad."""
    root = tmp_path_factory.mktemp("corpus")
    draw_film(root / "a.mp4", 0)
    words = [json.dumps({"text": "The <ring> & keys. " * (i + 1)}) for i in range(8)]
    (root / "words.jsonl").write_text("\n".join([*words, "bad"]))
    (root / "films.jsonl").write_text('{"video": "a.mp4", "caption": "noise"}\n')
    (root / "spec.toml").write_text(SPEC)
    build_shards(root / "spec.toml", root / "tokens", lambda said: None)
    return root / "tokens"


@pytest.fixture(scope="module")
def found(folder: Path) -> Inspection:
    return inspect_shards(folder, context=64, samples=4)


def test_the_numbers_are_those_of_the_tokens(folder: Path, found: Inspection) -> None:
    shards = Shards(folder)
    lengths = [len(example) for example in shards]
    tokens = np.concatenate([example.tokens[~example.vision] for example in shards])
    assert found.counts.tokens == sum(lengths) and found.counts.examples == 9
    assert sum(counts.tokens for counts in found.sources.values()) == sum(lengths)
    assert found.counts.vision == 4 * 65
    assert found.often[0].count == np.bincount(tokens).max()
    assert found.text_ids_used == len(set(tokens.tolist()))
    codes = np.concatenate([example.tokens[example.vision] for example in shards])
    assert found.codes_used == len({int(code) for code in codes if code < 512})
    plan = plan_rows(lengths, 64)
    assert (found.packing.rows, found.packing.efficiency) == (len(plan), efficiency(plan, 64))
    assert found.skipped == 1 and found.bad[0].origin == "words.jsonl:9"


def test_lengths_fall_below_powers_of_two() -> None:
    measured = measure_lengths(np.array([2, 3, 4, 5, 16]))
    assert measured.bars == {"2": 1, "4": 2, "8": 1, "16": 1}
    assert (measured.shortest, measured.median, measured.longest) == (2, 4, 16)


def test_a_histogram_tells_how_many_ids_stand_how_often() -> None:
    found = measure_uses(np.array([0, 1, 2, 10, 11, 0]), np.array([0, 100]))
    assert [(row.times, row.text, row.codes) for row in found] == [
        (0, 2, 1),
        (1, 1, 0),
        (10, 2, 0),
        (100, 1, 1),
    ]
    assert [row.codes for row in measure_uses(np.array([3]), np.zeros(0, int))] == [0, 0, 0]


def test_samples_come_from_every_source(folder: Path, found: Inspection) -> None:
    assert {sample.source for sample in found.samples} == {"words", "films"}
    assert len(found.samples) == 4
    assert choose_samples(Shards(folder).manifest, 0) == []
    assert sorted(choose_samples(Shards(folder).manifest, 99)) == list(range(9))


def test_a_sample_is_what_was_written(found: Inspection) -> None:
    film = next(sample for sample in found.samples if sample.source == "films")
    kinds = [piece.kind for piece in film.pieces]
    assert kinds == ["given", "seen", "given", "learned"]
    assert film.pieces[1].written == "4 frames" and film.pieces[3].written == " noise"
    assert film.seconds == (0.0, 0.5, 1.0, 1.5) and film.origin == "films.jsonl:1"
    words = next(sample for sample in found.samples if sample.source == "words")
    assert [piece.written for piece in words.pieces] == ["", "The <ring> & keys. "]


def test_a_long_sample_shows_its_ends_its_answers_and_frames_of_all_of_it(tmp_path: Path) -> None:
    book = "It begins. " + "The ring went round. " * 500 + "It ends."
    turns = [("user", f"{book} Who is it?"), ("assistant", "Nobody."), ("user", "Why?")]
    said = [{"role": role, "content": words} for role, words in (*turns, ("assistant", "So."))]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": said}))
    codes = [[i] * 64 for i in range(30)]
    row = {"vision": [code for frame in codes for code in frame], "words": "thirty"}
    (tmp_path / "codes.jsonl").write_text(json.dumps(row))
    (tmp_path / "spec.toml").write_text(
        '[[chat]]\nname = "talk"\npath = "talk.jsonl"\n'
        '[[fields]]\nname = "codes"\npath = "codes.jsonl"\nfields = "vision,words"\n'
    )
    build_shards(tmp_path / "spec.toml", tmp_path / "tokens", print)
    talk, film = inspect_shards(tmp_path / "tokens", context=64, samples=2).samples
    given = talk.pieces[0].written
    assert "It begins. " in given and " [...] " in given and "Who is it? ASSISTANT:" in given
    assert [p.written for p in talk.pieces if p.kind == "learned"] == [" Nobody.", " So."]
    assert sum(len(piece.written) for piece in talk.pieces) < 700
    codec = find_codec(Shards(tmp_path / "tokens").manifest, None)
    assert codec is not None
    frames, moments = draw_samples(tmp_path / "tokens", [film], codec)[film.index]
    assert moments[:2] == ["frame 0", "frame 2"] and moments[-1] == "frame 29"
    assert len(frames) == len(moments) == SHOWN_FRAMES
    assert np.array_equal(frames[-1], codec.decode(np.array(codes[-1:]))[0])


def test_tokens_are_named_by_their_text() -> None:
    tokenizer = load_tokenizer(NANO / TOKENIZER)
    names = {id: name_token(tokenizer, id) for id in range(tokenizer.size)}
    assert names[tokenizer.encode("a the")[-1]] == "' the'"
    assert names[tokenizer.encode("\n")[0]] == repr("\n")
    assert names[tokenizer.eos] == "</s>"
    assert len(set(names.values())) == tokenizer.size


class Reader(HTMLParser):
    """The pictures and the words of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        assert tag != "script" and not named.get("href", "#").startswith("http")
        if tag == "img":
            self.pictures.append(named["src"] or "")

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_holds_everything_and_asks_for_nothing(
    folder: Path, found: Inspection, tmp_path: Path
) -> None:
    codec = find_codec(Shards(folder).manifest, None)
    assert codec is not None
    write_page(tmp_path / "page.html", found, draw_samples(folder, found.samples, codec))
    page = Reader((tmp_path / "page.html").read_text())
    assert len(page.pictures) == 4 and all(p.startswith("data:image/png") for p in page.pictures)
    for said in ("The <ring> & keys.", "1.50 s", "films.jsonl:1", "words.jsonl:9", "not JSON"):
        assert said in page.words


@pytest.mark.parametrize("terminal", [True, False])
def test_the_terminal_shows_the_samples_and_frames_where_it_can(
    folder: Path, found: Inspection, terminal: bool
) -> None:
    codec = find_codec(Shards(folder).manifest, None)
    assert codec is not None
    out = StringIO()
    frames = draw_samples(folder, found.samples, codec)
    print_inspection(found, frames, Console(file=out, force_terminal=terminal, width=120))
    assert "films.jsonl:1" in out.getvalue() and "The <ring> & keys." in out.getvalue()
    assert ("\u2580" in out.getvalue()) == terminal


def test_a_page_is_not_written_over_a_folder(found: Inspection, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: name a file"):
        write_page(tmp_path, found, {})


def test_json_is_for_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["data", "inspect", str(folder), "--json", "--context", "64"], print)
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["examples"] == 9 and told["packing"]["context"] == 64


def test_tampered_shards_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = tmp_path / "words-00000.arrow"
    broken = bytearray(shard.read_bytes())
    broken[len(broken) // 2] ^= 1
    shard.write_bytes(bytes(broken))
    with pytest.raises(InputError, match="is not what was written"):
        inspect_shards(tmp_path, context=64, samples=0)


def test_another_codec_is_refused_and_none_needed(folder: Path, tmp_path: Path) -> None:
    manifest = Shards(folder).manifest
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not the codec that made"):
        find_codec(manifest, tmp_path)


def test_every_command_of_the_data_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (spec,) = re.findall(r"^```toml\n(.*?)^```$", page, re.S | re.M)
    commands = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.S | re.M))
    rows = re.findall(r'\{"video": .*\}', page.split("```toml")[0])
    (tmp_path / "corpus" / "films").mkdir(parents=True)
    for seed, row in enumerate(rows):
        draw_film(tmp_path / "corpus" / json.loads(row)["video"], seed)
    (tmp_path / "corpus" / "films.jsonl").write_text("\n".join(rows))
    (tmp_path / "corpus" / "books").mkdir()
    (tmp_path / "corpus" / "books" / "tale.txt").write_text("The ring went round. " * 300)
    (tmp_path / "corpus" / "spec.toml").write_text(spec)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for command in commands.splitlines():
        cli.run(shlex.split(command)[1:], said.append)
    assert len(rows) == 2 and any("3 examples" in line for line in said)
    assert Path("tokens.html").exists() and "films.jsonl:2" in capsys.readouterr().out
    assert len(Path("runs/films/stage/metrics.jsonl").read_text().splitlines()) == 3
    assert Path("runs/films/stage/model/model.safetensors").exists()
    assert Path("runs/mixed/stage/model/model.safetensors").exists()
