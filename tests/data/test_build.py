"""From a spec to shards: every source, the same bytes always, and nothing bad in silence."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sentencepiece_files import model_folder

from ringworld.data.corpora import build as builder
from ringworld.data.corpora.build import BUILD, build_shards
from ringworld.data.corpora.manifest import MANIFEST, REPORT, Manifest
from ringworld.data.corpora.partition import NOTES_FOLDER, Job, PartitionNote, build_partition
from ringworld.data.corpora.reader import Partition
from ringworld.data.corpora.shards import Shards
from ringworld.data.example import Example
from ringworld.errors import InputError
from ringworld.files import alone_in
from ringworld.media.clip import read_clip, read_image, write_animation
from ringworld.media.sampling import FrameSampling
from ringworld.tasks.clips import text_to_video, video_alone, video_to_text
from ringworld.tasks.stills import text_to_image
from ringworld.text.load import load_tokenizer
from ringworld.weights.codecs import load_codec
from ringworld.weights.shipped import NANO

TOKENIZER = load_tokenizer(NANO / "tokenizer.json")
CODEC = load_codec(NANO / "codec")
FRAMES = 6  # of the film, at two a second


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film and a picture."""
    folder = tmp_path_factory.mktemp("media")
    noise = np.random.default_rng(0).integers(0, 255, (FRAMES, 48, 64, 3)).astype(np.uint8)
    write_animation(folder / "film.mp4", noise, 2.0)
    Image.fromarray(noise[0]).save(folder / "still.png")
    return folder


@pytest.fixture
def corpus(tmp_path: Path, media: Path) -> Path:
    """A folder to put a spec and its input into, with the film and the picture."""
    for file in media.iterdir():
        os.link(file, tmp_path / file.name)
    return tmp_path


def write_lines(path: Path, *rows: Any) -> None:
    """Rows as JSONL."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def make(folder: Path, spec: str, name: str = "out", **options: Any) -> Manifest:
    """Build a spec in a folder of the corpus."""
    (folder / "spec.toml").write_text(spec, "utf-8", "surrogateescape")
    return build_shards(folder / "spec.toml", folder / name, lambda said: None, **options)


def examples(folder: Path, spec: str) -> list[Example]:
    """What a spec makes."""
    make(folder, spec)
    shards = Shards(folder / "out")
    shards.verify()
    return list(shards)


def refusal(act: Callable[[], object]) -> str:
    """The sentence with which something is refused."""
    with pytest.raises(InputError) as caught:
        act()
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


def expect(example: Example, *parts: tuple[str | int | None, float]) -> None:
    """Fail unless the example is these parts: a text, a special token, a number of frames."""
    at = 0
    for content, weight in parts:
        if isinstance(content, int):
            length = content * 65
            assert example.vision[at : at + length].all()
            ends = example.tokens[at + 64 : at + length : 65].tolist()
            assert ends == [512] * (content - 1) + [513]
        else:
            special = content in ("<s>", "</s>", "<vision>", "</vision>")
            ids = [TOKENIZER.id(content)] if special else TOKENIZER.encode(str(content))
            length = len(ids)
            assert example.tokens[at : at + length].tolist() == ids, content
            assert not example.vision[at : at + length].any()
        assert (example.weights[at : at + length] == weight).all(), content
        at += length
    assert at == len(example)


# ---- sources


def test_every_text_file_is_a_document_learned_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "books" / "deep").mkdir(parents=True)
    (tmp_path / "books" / "b.txt").write_text("The ring.")
    (tmp_path / "books" / "deep" / "a.txt").write_bytes("\ufeffDark n\u00efght.\r\n".encode())
    (tmp_path / "books" / "note.md").write_text("Not this.")
    made = examples(tmp_path, '[[text]]\nname = "books"\npath = "books"')
    expect(made[0], ("<s>", 0), ("The ring.", 1), ("</s>", 1))
    expect(made[1], ("<s>", 0), ("Dark n\u00efght.\r\n", 1), ("</s>", 1))
    assert Shards(tmp_path / "out").record(1).origin == "books/deep/a.txt"


def test_a_column_of_jsonl_and_of_parquet_is_the_same(tmp_path: Path) -> None:
    words = [f"Number {i} of the ring." for i in range(7)]
    write_lines(tmp_path / "a.jsonl", *({"body": word, "id": 3} for word in words))
    table = pa.table({"body": words, "id": [3] * 7})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    spec = '[[documents]]\nname = "d"\npath = "a.{}"\ncolumn = "body"\nrows_per_shard = 2'
    make(tmp_path, spec.format("jsonl"), "lines")
    make(tmp_path, spec.format("parquet"), "rows")
    lines, rows = Shards(tmp_path / "lines"), Shards(tmp_path / "rows")
    assert len(lines.manifest.shards) == 4
    for i, word in enumerate(words):
        expect(lines[i], ("<s>", 0), (word, 1), ("</s>", 1))
        assert rows[i].tokens.tolist() == lines[i].tokens.tolist()
        assert rows.record(i).origin == f"a.parquet:{i + 1}"


SYSTEM = "You are a helpful assistant."
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Who sees whom?"},
        {"from": "gpt", "value": "Nobody knew."},
        {"from": "human", "value": "And now?"},
        {"from": "gpt", "value": "Keys travel."},
    ]
}
OPENAI = {
    "messages": [
        {"role": "user", "content": "Who sees whom?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Nobody knew."}]},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Keys travel."},
    ]
}
CHAT = '[[chat]]\nname = "talk"\npath = "talk.jsonl"\n'


@pytest.mark.parametrize("row", [SHAREGPT, OPENAI], ids=["sharegpt", "openai"])
def test_a_talk_learns_its_answers(tmp_path: Path, row: dict[str, Any]) -> None:
    write_lines(tmp_path / "talk.jsonl", row)
    (made,) = examples(tmp_path, CHAT)
    expect(
        made,
        ("<s>", 0),
        (f"{SYSTEM} USER: Who sees whom? ASSISTANT:", 0),
        (" Nobody knew.", 1),
        ("</s>", 1),
        (" USER: And now? ASSISTANT:", 0),
        (" Keys travel.", 1),
        ("</s>", 1),
    )


def test_a_talk_may_have_a_system_turn_of_its_own(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *OPENAI["messages"][2:]]
    write_lines(tmp_path / "talk.jsonl", {"messages": turns})
    (made,) = examples(tmp_path, CHAT)
    expect(
        made,
        ("<s>", 0),
        ("Be brief. USER: And now? ASSISTANT:", 0),
        (" Keys travel.", 1),
        ("</s>", 1),
    )


ANSWER = {"role": "assistant", "content": "Noise."}
VIDEO_ROWS = {
    "content parts": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "video_url", "video_url": {"url": "film.mp4"}, "fps": 2},
                ],
            },
            ANSWER,
        ]
    },
    "placeholders": {
        "messages": [{"role": "user", "content": "What is it?<video>"}, ANSWER],
        "videos": [{"path": "film.mp4", "fps": 2}],
    },
    "sharegpt placeholders": {
        "conversations": [
            {"from": "human", "value": "What is it?\n<video>"},
            {"from": "gpt", "value": "Noise."},
        ],
        "video": {"video": "film.mp4", "fps": 2},
    },
}


@pytest.mark.parametrize("row", VIDEO_ROWS.values(), ids=VIDEO_ROWS)
def test_a_film_in_any_dialect_is_the_talk_that_recipes_make(
    corpus: Path, row: dict[str, Any]
) -> None:
    write_lines(corpus / "talk.jsonl", row)
    (made,) = examples(corpus, CHAT)
    codes = CODEC.encode(read_clip(corpus / "film.mp4", FrameSampling(fps=2.0), size=64).frames)
    assert len(codes) == FRAMES
    vocabulary = Shards(corpus / "out").manifest.vocabulary
    wanted = video_to_text([("What is it?", "Noise.")], codes, TOKENIZER, vocabulary)
    for name, value in vars(wanted).items():
        assert np.array_equal(getattr(made, name), value), name
    assert Shards(corpus / "out").record(0).seconds.tolist() == [i / 2 for i in range(FRAMES)]


def test_pictures_come_as_paths_or_addresses_of_files_and_data(corpus: Path) -> None:
    data = base64.b64encode((corpus / "still.png").read_bytes()).decode()
    places = ["still.png", f"file://{corpus / 'still.png'}", f"data:image/png;base64,{data}"]
    rows = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": place}},
                        {"type": "text", "text": "What is it?"},
                    ],
                },
                ANSWER,
            ]
        }
        for place in places
    ]
    write_lines(corpus / "talk.jsonl", *rows)
    made = examples(corpus, CHAT)
    for one in made:
        expect(
            one,
            ("<s>", 0),
            (f"{SYSTEM} USER: ", 0),
            ("<vision>", 0),
            (1, 0),
            ("</vision>", 0),
            ("\nWhat is it? ASSISTANT:", 0),
            (" Noise.", 1),
            ("</s>", 1),
        )
        codes = CODEC.encode(read_image(corpus / "still.png", size=64)[None])
        assert one.tokens[one.vision][:-1].tolist() == codes[0].tolist()


@pytest.mark.parametrize(
    ("order", "before", "after"),
    [
        ("text-vision", "What is it?\n", " ASSISTANT:"),
        ("vision-text", "", "\nWhat is it? ASSISTANT:"),
    ],
)
def test_a_source_may_say_what_comes_first(
    corpus: Path, order: str, before: str, after: str
) -> None:
    row = {
        "messages": [{"role": "user", "content": "What <image>is it?"}, ANSWER],
        "images": ["still.png"],
    }
    write_lines(corpus / "talk.jsonl", row)
    (made,) = examples(corpus, f'{CHAT}orders = ["{order}"]')
    expect(
        made,
        ("<s>", 0),
        (f"{SYSTEM} USER: {before}", 0),
        ("<vision>", 0),
        (1, 0),
        ("</vision>", 0),
        (after, 0),
        (" Noise.", 1),
        ("</s>", 1),
    )


def test_an_answer_may_be_drawn(corpus: Path) -> None:
    turns = [
        {"role": "user", "content": "Generate a video of noise"},
        {"role": "assistant", "content": [{"type": "video", "video": "film.mp4"}]},
    ]
    write_lines(corpus / "talk.jsonl", {"messages": turns})
    (made,) = examples(corpus, f"{CHAT}fps = 2")
    codes = CODEC.encode(read_clip(corpus / "film.mp4", FrameSampling(fps=2.0), size=64).frames)
    vocabulary = Shards(corpus / "out").manifest.vocabulary
    wanted = text_to_video("noise", codes, TOKENIZER, vocabulary)
    assert made.tokens.tolist() == wanted.tokens.tolist()
    assert made.weights.tolist() == wanted.weights.tolist()


CAPTIONS = '[[captions]]\nname = "films"\npath = "films.jsonl"\nfps = 2\n'


@pytest.mark.parametrize("order", ["text-vision", "vision-text", "vision"])
def test_a_caption_has_the_form_that_recipes_give_it(corpus: Path, order: str) -> None:
    write_lines(
        corpus / "films.jsonl",
        {"video": "film.mp4", "caption": "noise"},
        {"image": "still.png", "caption": "noise"},
    )
    made, still = examples(corpus, f'{CAPTIONS}orders = ["{order}"]')
    codes = CODEC.encode(read_clip(corpus / "film.mp4", FrameSampling(fps=2.0), size=64).frames)
    rest = (TOKENIZER, Shards(corpus / "out").manifest.vocabulary)
    wanted = {
        "text-vision": text_to_video("noise", codes, *rest),
        "vision-text": video_to_text([("Describe the video.", "noise")], codes, *rest),
        "vision": video_alone(codes, *rest),
    }[order]
    assert made.tokens.tolist() == wanted.tokens.tolist()
    assert made.weights.tolist() == wanted.weights.tolist()
    picture = CODEC.encode(read_clip(corpus / "still.png", FrameSampling(), size=64).frames)
    wanted = {
        "text-vision": text_to_image("noise", picture, *rest),
        "vision-text": video_to_text([("Describe the image.", "noise")], picture, *rest),
        "vision": video_alone(picture, *rest),
    }[order]
    assert still.tokens.tolist() == wanted.tokens.tolist()
    assert still.weights.tolist() == wanted.weights.tolist()


def test_a_tokenizer_without_vision_tokens_spells_the_marks_as_lwm_does(corpus: Path) -> None:
    written = (NANO / "tokenizer.json").read_text("utf-8").replace("vision>", "picture>")
    (corpus / "plain.json").write_text(written, "utf-8")
    write_lines(corpus / "films.jsonl", {"image": "still.png", "caption": "noise"})
    row = {"a": "Look", "vision": list(range(64)), "fields": "[a],vision"}
    write_lines(corpus / "lwm.jsonl", row)
    spec = f'tokenizer = "plain.json"\n{CAPTIONS}orders = ["text-vision"]\n'
    spec += '[[fields]]\nname = "lwm"\npath = "lwm.jsonl"\nfields_from_example = "fields"'
    caption, fields = examples(corpus, spec)
    before, after = (TOKENIZER.encode(mark) for mark in ("<vision>", "</vision>"))
    assert min(len(before), len(after)) > 1  # a text that spells a special token is letters
    asked = TOKENIZER.encode(f"{SYSTEM} USER: Generate an image of noise ASSISTANT: ")
    for made, given in ((caption, asked), (fields, TOKENIZER.encode("Look"))):
        words = [TOKENIZER.bos, *given, *before, *after, TOKENIZER.eos]
        assert made.tokens[~made.vision].tolist() == words
        shown = np.flatnonzero(made.vision)
        assert shown.tolist() == list(
            range(len(words) - len(after) - 1, len(made) - len(after) - 1)
        )
    assert np.flatnonzero(fields.weights)[0] == 1 + len(TOKENIZER.encode("Look"))


def test_parquet_may_hold_the_pictures_themselves(corpus: Path) -> None:
    write_lines(corpus / "pictures.jsonl", {"image": "still.png", "caption": "noise"})
    spec = '[[captions]]\nname = "p"\npath = "pictures.{}"\norders = ["vision-text"]'
    (named,) = examples(corpus, spec.format("jsonl"))
    content = (corpus / "still.png").read_bytes()
    pictures = [{"bytes": content, "path": "0.png"}, {"bytes": content[:99], "path": "1.png"}]
    table = pa.table({"image": pictures, "caption": ["noise", "none"]})
    pq.write_table(table, corpus / "pictures.parquet")
    skip = f'on_bad = "skip"\n{spec.format("parquet")}'
    assert make(corpus, skip, "held").skipped == 1
    (held,) = Shards(corpus / "held")
    assert held.tokens.tolist() == named.tokens.tolist()
    report = json.loads((corpus / "held" / REPORT).read_text())
    assert report["bad"][0]["origin"] == "pictures.parquet:2"
    assert "cut short" in report["bad"][0]["why"]


def test_orders_are_drawn_by_the_seed_and_the_row(corpus: Path) -> None:
    write_lines(corpus / "films.jsonl", *[{"image": "still.png", "caption": "x"}] * 24)
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(corpus, f"seed = {seed}\n{CAPTIONS}", name)
        drawn.append([len(example) for example in Shards(corpus / name)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert min(drawn[0].count(length) for length in set(drawn[0])) >= 5 and len(set(drawn[0])) == 2


@pytest.mark.parametrize(
    ("rules", "moments"),
    [
        ("max_frames = 3", [0.0, 1.0, 2.0]),
        ("num_frames = 2", [0.0, 1.5]),
        ("min_frames = 1\nvideo_start = 1.0\nvideo_end = 2.0", [1.0, 1.5]),
    ],
)
def test_frames_are_taken_as_the_source_says(
    corpus: Path, rules: str, moments: list[float]
) -> None:
    write_lines(corpus / "films.jsonl", {"video": "film.mp4", "caption": "noise"})
    make(corpus, f"{CAPTIONS}{rules}")
    record = Shards(corpus / "out").record(0)
    assert record.seconds.tolist() == moments
    assert record.example.vision.sum() == 65 * len(moments)


def test_a_row_may_say_its_own_part_of_a_film(corpus: Path) -> None:
    row = {"video": "film.mp4", "caption": "noise", "video_start": 1.0, "video_end": 2.0}
    write_lines(corpus / "films.jsonl", row)
    make(corpus, CAPTIONS)
    assert Shards(corpus / "out").record(0).seconds.tolist() == [1.0, 1.5]


@pytest.mark.parametrize(
    ("rules", "own", "moments"),
    [
        ("max_frames = 3", {"num_frames": 4}, [0.0, 1.0, 2.0]),
        ("max_frames = 3", {"num_frames": 2}, [0.0, 1.5]),
        ("max_frames = 3", {"fps": 2, "max_frames": 9}, [0.0, 1.0, 2.0]),
        ("max_frames = 3", {"max_frames": 2}, [0.0, 1.5]),
        ("num_frames = 5", {"fps": 1}, [0.0, 1.0, 2.0]),
    ],
)
def test_a_rows_own_sampling_is_bounded_by_the_sources_max_frames(
    corpus: Path, rules: str, own: dict[str, Any], moments: list[float]
) -> None:
    write_lines(corpus / "films.jsonl", {"video": "film.mp4", "caption": "noise"} | own)
    make(corpus, f"{CAPTIONS}{rules}")
    assert Shards(corpus / "out").record(0).seconds.tolist() == moments


def test_frames_of_many_films_share_a_batch(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(corpus / "films.jsonl", *[{"image": "still.png", "caption": "x"}] * 70)
    sizes = []
    encode = type(CODEC).encode

    def counted(self: Any, pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(type(CODEC), "encode", counted)
    make(corpus, CAPTIONS)
    assert sizes == [64, 6]


def test_lwm_rows_become_shards(corpus: Path) -> None:
    row = {"instruction": "<s> Look:", "vision": [3] * 128, "output": "red"}
    write_lines(corpus / "lwm.jsonl", row | {"fields": "[instruction],[vision],output"})
    spec = '[[fields]]\nname = "lwm"\npath = "lwm.jsonl"\nfields_from_example = "fields"'
    (made,) = examples(corpus, spec)
    parts = [("<vision>", 0), (2, 0), ("</vision>", 0), ("red", 1), ("</s>", 1)]
    expect(made, ("<s>", 0), ("Look:", 0), *parts)


# ---- the same bytes, always

MIXED = """
[[documents]]
name = "words"
path = "words.jsonl"
rows_per_shard = 2
[[captions]]
name = "films"
path = "films.jsonl"
fps = 2
rows_per_shard = 2
"""


@pytest.fixture
def mixed(corpus: Path) -> Path:
    """A corpus of five partitions."""
    write_lines(corpus / "words.jsonl", *({"text": f"Number {i}."} for i in range(5)))
    rows = [{"video": "film.mp4", "caption": f"noise {i}"} for i in range(3)]
    write_lines(corpus / "films.jsonl", *rows)
    return corpus


def read_all(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_any_number_of_workers_writes_the_same_bytes(mixed: Path) -> None:
    make(mixed, MIXED, "one")
    make(mixed, MIXED, "two", workers=2)
    assert read_all(mixed / "one") == read_all(mixed / "two")
    assert len(read_all(mixed / "one")) == 5 + 2 + 4 + 1  # shards, media notes, records, the lock


def test_a_build_that_was_stopped_goes_on_and_keeps_what_is_whole(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(mixed, MIXED, "whole")
    done: list[str] = []
    patience = [3]

    def counted(job: Job, partition: Partition) -> PartitionNote:
        if len(done) == patience[0]:
            raise KeyboardInterrupt
        done.append(partition.shard)
        return build_partition(job, partition)

    monkeypatch.setattr(builder, "build_partition", counted)
    with pytest.raises(KeyboardInterrupt):
        make(mixed, MIXED)
    assert refusal(lambda: Shards(mixed / "out")).endswith("first")
    torn = mixed / "out" / done[1]
    torn.write_bytes(torn.read_bytes()[:-8])
    first = done.copy()
    done.clear()
    patience[0] = 99
    make(mixed, MIXED)
    assert first[1] in done and not {first[0], first[2]} & set(done) and len(done) == 3
    assert read_all(mixed / "out") == read_all(mixed / "whole")
    done.clear()
    make(mixed, MIXED)
    assert done == []


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_bytes(mixed: Path) -> None:
    make(mixed, MIXED, "whole")
    code = "import sys; from pathlib import Path; from ringworld.data.corpora.build import "
    code += "build_shards; build_shards(Path(sys.argv[1]), Path(sys.argv[2]), print)"
    for patience in (1.0, 2.0, 2.5, 3.0, 60.0):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(mixed / "spec.toml"), str(mixed / "out")]
        )
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    make(mixed, MIXED)
    assert read_all(mixed / "out") == read_all(mixed / "whole")


def test_a_folder_of_another_build_is_refused(mixed: Path) -> None:
    make(mixed, MIXED)
    with (mixed / "words.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert "another spec or of another input" in refusal(lambda: make(mixed, MIXED))
    (mixed / "elsewhere").mkdir()
    (mixed / "elsewhere" / "x").touch()
    assert "something else" in refusal(lambda: make(mixed, MIXED, "elsewhere"))


def test_a_film_that_changed_is_not_left_in_the_shards_unseen(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = mixed / "film.mp4"
    before, times = film.read_bytes(), film.stat()
    changed = bytearray(before)
    changed[-1] ^= 1

    def put(content: bytes) -> None:
        film.unlink()  # the fixture's own file is a link
        film.write_bytes(content)
        os.utime(film, ns=(times.st_atime_ns, times.st_mtime_ns))

    def stop_after_films(job: Job, partition: Partition) -> PartitionNote:
        if partition.shard == "films-00001.arrow":
            raise KeyboardInterrupt
        return build_partition(job, partition)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(builder, "build_partition", stop_after_films)
        make(mixed, MIXED)
    for _ in ("stopped", "built"):
        put(bytes(changed))
        said = refusal(lambda: make(mixed, MIXED))
        assert said.startswith("film.mp4 is not what it was when")
        put(before)
        make(mixed, MIXED)
    film.unlink()
    assert "film.mp4 is not what it was" in refusal(lambda: make(mixed, MIXED))


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_a_shard_that_is_not_what_was_written_is_built_again(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    make(mixed, MIXED)
    before, shard = read_all(mixed / "out"), mixed / "out" / "words-00001.arrow"
    content = bytearray(before[shard.name])
    content[len(content) // 2] ^= 1
    shard.unlink()
    if harm != "gone":
        shard.write_bytes(content[:-8] if harm == "cut" else content)
    done: list[str] = []

    def noted(job: Job, partition: Partition) -> PartitionNote:
        done.append(partition.shard)
        return build_partition(job, partition)

    monkeypatch.setattr(builder, "build_partition", noted)
    make(mixed, MIXED)
    assert done == [shard.name] and read_all(mixed / "out") == before


@pytest.mark.parametrize("name", [MANIFEST, REPORT, "tokenizer.json"])
def test_a_build_without_one_of_its_records_is_built_again(tmp_path: Path, name: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(GOOD)
    make(tmp_path, DOCUMENTS)
    before, record = read_all(tmp_path / "out"), tmp_path / "out" / name
    record.write_bytes(record.read_bytes()[:-9])
    make(tmp_path, DOCUMENTS)
    assert read_all(tmp_path / "out") == before


def test_a_shard_that_comes_out_other_than_it_was_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(GOOD)
    make(tmp_path, DOCUMENTS)
    path = tmp_path / "out" / MANIFEST
    noted = json.loads(path.read_text())
    noted["shards"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(noted))
    said = refusal(lambda: make(tmp_path, DOCUMENTS))
    assert "d-00000.arrow comes out other than it was" in said and "remove" in said


def test_a_refused_build_goes_on_once_its_input_is_corrected(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b"bad\n" + GOOD)
    assert refusal(lambda: make(tmp_path, DOCUMENTS)).startswith("d.jsonl:1: ")
    assert set(read_all(tmp_path / "out")) == {BUILD, ".lock"}
    (tmp_path / "d.jsonl").write_bytes(GOOD * 4)
    assert make(tmp_path, DOCUMENTS).counts.examples == 4
    (tmp_path / "d.jsonl").write_bytes(GOOD * 5)
    assert "another spec or of another input" in refusal(lambda: make(tmp_path, DOCUMENTS))
    (tmp_path / "out" / MANIFEST).unlink()
    assert "another spec or of another input" in refusal(lambda: make(tmp_path, DOCUMENTS))


def test_a_folder_cannot_be_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(GOOD)
    for name in ("d.jsonl", "d.jsonl/out"):
        assert "d.jsonl is a file, so" in refusal(lambda name=name: make(tmp_path, DOCUMENTS, name))


def start_build(folder: Path, moment: str) -> "subprocess.Popen[str]":
    """A build of `out` with two workers that has come as far as `moment`; `whole` is the same."""
    rows = [{"text": f"Row {i}. " + "The ring went round. " * 4000} for i in range(120)]
    write_lines(folder / "d.jsonl", *rows)
    make(folder, DOCUMENTS.replace("= 2", "= 6"), "whole")
    command = "from ringworld.cli import main; main()"
    words = ["data", "build", str(folder / "spec.toml"), "--out", str(folder / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *words, "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (folder / "out" / moment).exists():
        assert process.poll() is None
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("moment", [BUILD, NOTES_FOLDER], ids=["workers start", "workers work"])
def test_ctrl_c_is_one_sentence_and_the_same_command_goes_on(tmp_path: Path, moment: str) -> None:
    process = start_build(tmp_path, moment)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    said = process.communicate()[1].splitlines()
    assert process.returncode == 130 and "Traceback" not in " ".join(said)
    assert said[-1].startswith("stopped: the same command goes on")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert MANIFEST not in left and not any(".part" in name for name in left)
    build_shards(tmp_path / "spec.toml", tmp_path / "out", lambda said: None)
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")


def test_the_workers_of_a_killed_build_end_with_it(tmp_path: Path) -> None:
    process = start_build(tmp_path, NOTES_FOLDER)
    process.kill()
    process.communicate(timeout=60)  # the pipe ends once no worker holds it
    build_shards(tmp_path / "spec.toml", tmp_path / "out", lambda said: None)
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")


def test_two_builds_do_not_work_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(GOOD)
    with alone_in(tmp_path / "out"):
        assert "another run is at work in" in refusal(lambda: make(tmp_path, DOCUMENTS))
    assert make(tmp_path, DOCUMENTS).counts.examples == 1


def test_lots_of_documents_are_the_documents_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"Number {i} of the ring." * (1 + i % 3) for i in range(9)]
    write_lines(tmp_path / "d.jsonl", *({"text": word} for word in words))
    monkeypatch.setattr("ringworld.data.corpora.partition.BATCH_LETTERS", 50)
    for made, word in zip(examples(tmp_path, DOCUMENTS), words, strict=True):
        expect(made, ("<s>", 0), (word, 1), ("</s>", 1))


# ---- bad data

DOCUMENTS = '[[documents]]\nname = "d"\npath = "d.jsonl"\nrows_per_shard = 2\n'
GOOD = b'{"text": "fine"}\n'
BAD_ROWS = {
    "bad UTF-8": (DOCUMENTS, b'{"text": "\xff\xfe"}', "byte 11 is not UTF-8"),
    "half a character": (DOCUMENTS, b'{"text": "\\ud800"}', "half a character"),
    "bad JSON": (DOCUMENTS, b'{"text": ', "is not JSON"),
    "no object": (DOCUMENTS, b"[1, 2]", "no JSON object"),
    "deep JSON": (DOCUMENTS, b"[" * 100_000, "is not JSON"),
    "long number": (DOCUMENTS, b'{"text": ' + b"9" * 5000 + b"}", "is not JSON"),
    "no text": (DOCUMENTS, b'{"words": "x"}', "column text is missing"),
    "another type": (DOCUMENTS, b'{"text": 3}', "column text is missing or no text"),
    "empty document": (DOCUMENTS, b'{"text": " \\n"}', "is empty"),
}


@pytest.mark.parametrize(("spec", "line", "said"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_refused_with_file_and_line_or_skipped_and_listed(
    tmp_path: Path, spec: str, line: bytes, said: str
) -> None:
    (tmp_path / "d.jsonl").write_bytes(GOOD + b"\n" + GOOD + line + b"\n" + GOOD)
    refused = refusal(lambda: make(tmp_path, spec))
    assert refused.startswith("d.jsonl:4: ") and said in refused
    manifest = make(tmp_path, f'on_bad = "skip"\n{spec}')
    assert manifest.counts.examples == 3 and manifest.skipped == 1
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["bad_rows"] == 1 and report["bad"][0]["origin"] == "d.jsonl:4"
    assert said in report["bad"][0]["why"]


def turns(*said: tuple[Any, ...]) -> dict[str, Any]:
    """A row of OpenAI's format: role and content of each turn, then other keys and values."""
    more = [dict(zip(extra[::2], extra[1::2], strict=True)) for _, _, *extra in said]
    both = zip(said, more, strict=True)
    return {"messages": [{"role": turn[0], "content": turn[1], **own} for turn, own in both]}


CALM = (("user", "Who sees whom?"), ("assistant", "Nobody knew."))

ONE_IMAGE = turns(("user", "<image>"), ("assistant", "y"))
PART = {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}
BAD_TALKS = {
    "no turns": ({"text": "x"}, "no list of conversations or messages"),
    "both formats": (SHAREGPT | turns(*CALM), "both conversations and messages"),
    "unknown speaker": (turns(("tool", "x")), "a turn is by 'tool'"),
    "answer first": (turns(("assistant", "x")), "turn 1 is by the assistant"),
    "two questions": (turns(("user", "x"), ("user", "y")), "turn 2 is by the user"),
    "no answer": (turns(("user", "x")), "without an answer"),
    "empty answer": (turns(("user", "x"), ("assistant", " ")), "the assistant says nothing"),
    "address": (turns(("user", [PART]), ("assistant", "y")), "an address of https"),
    "unknown part": (turns(("user", [{"type": "audio"}]), ("assistant", "y")), "type 'audio'"),
    "missing image": (
        ONE_IMAGE | {"images": ["gone.png"]},
        "'gone.png' is not there",
    ),
    "long path": (
        ONE_IMAGE | {"images": ["x" * 5000]},
        "xxx...' is not there",
    ),
    "too few images": (
        turns(("user", "<image><image>"), ("assistant", "y")) | {"images": ["still.png"]},
        "more <image> than",
    ),
    "too many images": (
        turns(("user", "hello"), ("assistant", "y")) | {"images": ["still.png"]},
        "more images than",
    ),
    "images twice": (
        ONE_IMAGE | {"images": ["still.png"], "image": "still.png"},
        "both images and image",
    ),
    "no picture for a part": (
        turns(("user", [{"type": "image"}, {"type": "image"}]), ("assistant", "y"))
        | {"images": ["still.png"]},
        "more <image> than",
    ),
    "no address in a part": (
        turns(("user", [{"type": "image_url", "image_url": None}]), ("assistant", "y")),
        "has no image_url",
    ),
    "two system turns": (
        turns(("system", "Be brief."), *CALM) | {"system": "Be long."},
        "turn 1 is by the system",
    ),
    "tools": (turns(*CALM) | {"tools": [{"type": "function"}]}, "the row has tools"),
    "functions": (turns(*CALM) | {"functions": [{"name": "f"}]}, "the row has functions"),
    "sound": (turns(*CALM) | {"audios": ["a.wav"]}, "the row has audios"),
    "tool calls beside text": (
        turns(("user", "x"), ("assistant", "y", "tool_calls", [{"id": "1"}])),
        "a turn of the assistant has tool_calls",
    ),
    "a function call": (
        turns(("user", "x"), ("assistant", None, "function_call", {"name": "f"})),
        "lacks content",
    ),
    "reasoning": (
        turns(("user", "x"), ("assistant", "y", "reasoning_content", "z")),
        "a turn of the assistant has reasoning_content",
    ),
    "a refusal": (turns(("user", "x"), ("assistant", "y", "refusal", "no")), "has refusal"),
    "a name": (turns(("user", "x", "name", "Ann"), ("assistant", "y")), "the user has name"),
    "half a weight": (
        turns(("user", "x"), ("assistant", "y", "weight", 0.5)),
        "has the weight 0.5",
    ),
    "a question to learn": (
        turns(("user", "x", "train", True), ("assistant", "y")),
        "only answers are",
    ),
    "nothing to learn": (
        turns(("user", "x"), ("assistant", "y", "weight", 0)),
        "has nothing to learn",
    ),
    "no images": (turns(("user", "<image>Who?"), ("assistant", "y")), "lists no images"),
    "no picture": (
        ONE_IMAGE | {"images": ["talk.jsonl"]},
        "not a picture",
    ),
    "bad base64": (
        ONE_IMAGE | {"images": ["data:image/png;base64,?"]},
        "no base64",
    ),
    "bad sampling": (
        turns(("user", "<video>"), ("assistant", "y"))
        | {"videos": [{"path": "film.mp4", "fps": "many"}]},
        "fps must be a number",
    ),
}


@pytest.mark.parametrize(("row", "said"), BAD_TALKS.values(), ids=BAD_TALKS)
def test_a_talk_that_is_not_one_is_refused(corpus: Path, row: dict[str, Any], said: str) -> None:
    write_lines(corpus / "talk.jsonl", OPENAI, row)
    refused = refusal(lambda: make(corpus, CHAT))
    assert refused.startswith("talk.jsonl:2: ") and said in refused


@pytest.mark.parametrize(
    "given",
    [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"weight": 0.0}],
    ids=str,
)
def test_an_answer_that_is_not_to_be_learned_is_given(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    row = turns(*CALM, ("user", "And now?"), ("assistant", "Keys travel.", "weight", 1))
    row["messages"][1] |= given
    write_lines(tmp_path / "talk.jsonl", row)
    (made,) = examples(tmp_path, CHAT)
    expect(
        made,
        ("<s>", 0),
        (f"{SYSTEM} USER: Who sees whom? ASSISTANT:", 0),
        (" Nobody knew.", 0),
        ("</s>", 0),
        (" USER: And now? ASSISTANT:", 0),
        (" Keys travel.", 1),
        ("</s>", 1),
    )


NULLS = {
    "conversations null": turns(*CALM) | {"conversations": None},
    "conversations empty": turns(*CALM) | {"conversations": []},
    "messages null": SHAREGPT | {"messages": None},
    "lists null": turns(*CALM) | {"images": None, "videos": [], "tools": None, "system": ""},
    "keys of a turn null": turns(
        ("user", "Who sees whom?", "name", None, "weight", None),
        ("assistant", "Nobody knew.", "tool_calls", None, "reasoning_content", ""),
    ),
    "both formats' keys": {
        "messages": [
            {"role": "user", "content": "Who sees whom?", "from": None, "value": None},
            {"role": None, "content": None, "from": "gpt", "value": "Nobody knew."},
        ]
    },
    "keys of a part null": turns(
        ("user", [{"type": "text", "text": "Who sees whom?", "image_url": None}]), CALM[1]
    ),
    "parts of responses": turns(
        ("user", [{"type": "input_text", "text": "Who sees whom?"}]),
        ("assistant", [{"type": "output_text", "text": "Nobody knew."}]),
    ),
    "keys that no format defines": turns(("user", "Who sees whom?", "score", float("nan")), CALM[1])
    | {"id": 7, "source": "web"},
}


@pytest.mark.parametrize("row", NULLS.values(), ids=NULLS)
def test_a_key_that_is_null_or_empty_is_absent(tmp_path: Path, row: dict[str, Any]) -> None:
    write_lines(tmp_path / "talk.jsonl", row)
    (made,) = examples(tmp_path, CHAT)
    start = [
        ("<s>", 0),
        (f"{SYSTEM} USER: Who sees whom? ASSISTANT:", 0),
        (" Nobody knew.", 1),
        ("</s>", 1),
    ]
    length = sum(len(TOKENIZER.encode(text)) for text, _ in start[1:3]) + 2
    kept = Example(made.tokens[:length], made.vision[:length], made.weights[:length])
    expect(kept, *start)


PICTURES = {
    "singular beside null": turns(("user", "<image>Who?"), CALM[1])
    | {"images": None, "image": "still.png"},
    "trl": turns(("user", [{"type": "image"}, {"type": "text", "text": "Who?"}]), CALM[1])
    | {"images": ["still.png"]},
    "trl with nulls": turns(
        (
            "user",
            [{"type": "image", "text": None}, {"type": "text", "text": "Who?", "image": None}],
        ),
        CALM[1],
    )
    | {"images": [{"path": "still.png", "bytes": None}]},
    "a path in the part": turns(
        ("user", [{"type": "image", "path": "still.png"}, {"type": "text", "text": "Who?"}]),
        CALM[1],
    ),
    "an address and its detail": turns(
        (
            "user",
            [
                {"type": "image_url", "image_url": {"url": "still.png", "detail": "low"}},
                {"type": "text", "text": "Who?"},
            ],
        ),
        CALM[1],
    ),
    "responses": turns(
        (
            "user",
            [
                {"type": "input_image", "image_url": "still.png"},
                {"type": "input_text", "text": "Who?"},
            ],
        ),
        CALM[1],
    ),
}


@pytest.mark.parametrize("row", PICTURES.values(), ids=PICTURES)
def test_a_picture_stands_where_any_format_puts_it(corpus: Path, row: dict[str, Any]) -> None:
    write_lines(corpus / "talk.jsonl", row)
    (made,) = examples(corpus, CHAT)
    expect(
        made,
        ("<s>", 0),
        (f"{SYSTEM} USER: ", 0),
        ("<vision>", 0),
        (1, 0),
        ("</vision>", 0),
        ("\nWho? ASSISTANT:", 0),
        (" Nobody knew.", 1),
        ("</s>", 1),
    )


def test_a_text_beside_parts_for_pictures_may_spell_a_placeholder(corpus: Path) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What is <image>?"}]
    write_lines(corpus / "talk.jsonl", turns(("user", parts), CALM[1]) | {"images": ["still.png"]})
    (made,) = examples(corpus, CHAT)
    assert made.vision.sum() == 65
    assert "What is <image>?" in TOKENIZER.decode(made.tokens[~made.vision].tolist())


@pytest.mark.parametrize(
    "row",
    [
        turns(("developer", "Be brief."), *CALM),
        turns(*CALM) | {"system": "Be brief."},
    ],
    ids=["developer", "the row's system"],
)
def test_what_a_developer_or_a_row_says_first_is_the_system_turn(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    write_lines(tmp_path / "talk.jsonl", row)
    (made,) = examples(tmp_path, CHAT)
    assert TOKENIZER.decode(made.tokens.tolist()).startswith("Be brief. USER: Who")


@pytest.mark.parametrize(
    "names", [{"bos_token": None}, {"bos_token": "<s>", "add_bos_token": False}], ids=str
)
def test_texts_of_a_tokenizer_without_a_first_token_begin_without_one(
    tmp_path: Path, names: dict[str, Any]
) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_bytes((NANO / "tokenizer.json").read_bytes())
    named = names | {"eos_token": "</s>"}
    (tmp_path / "words" / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("The ring.")
    write_lines(tmp_path / "talk.jsonl", turns(*CALM))
    spec = f'tokenizer = "words"\n[[text]]\nname = "books"\npath = "books"\n{CHAT}'
    document, talk = examples(tmp_path, spec)
    expect(document, *[("The", 0), (" ring.", 1), ("</s>", 1)])
    expect(
        talk,
        (f"{SYSTEM} USER: Who sees whom? ASSISTANT:", 0),
        (" Nobody knew.", 1),
        ("</s>", 1),
    )
    Shards(tmp_path / "out").check_parts(tmp_path / "words", NANO / "codec")
    assert "begins and ends texts otherwise" in refusal(
        lambda: Shards(tmp_path / "out").check_parts(NANO, NANO / "codec")
    )


def test_a_folder_with_a_tokenizer_model_alone_makes_shards(tmp_path: Path) -> None:
    model_folder(tmp_path / "words")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("ab abc")
    spec = 'tokenizer = "words"\n[[text]]\nname = "books"\npath = "books"'
    (document,) = examples(tmp_path, spec)
    words = load_tokenizer(tmp_path / "words")
    assert document.tokens.tolist() == [words.bos, *words.encode("ab abc"), words.id("<|im_end|>")]
    kept = load_tokenizer(tmp_path / "out" / "tokenizer.json")
    assert kept.encode_spelled("ab<|im_end|>") == words.encode_spelled("ab<|im_end|>")
    Shards(tmp_path / "out").check_parts(tmp_path / "words", None)
    make(tmp_path, spec)  # a finished build is known again


def test_a_saved_truncation_or_dropout_changes_no_shard(tmp_path: Path) -> None:
    table = json.loads((NANO / "tokenizer.json").read_text())
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    table |= {"truncation": cut, "model": table["model"] | {"dropout": 0.5}}
    (tmp_path / "cut.json").write_text(json.dumps(table))
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("The ring went round. " * 400)
    spec = '[[text]]\nname = "books"\npath = "books"'
    (wanted,) = examples(tmp_path, spec)
    make(tmp_path, f'tokenizer = "cut.json"\n{spec}', "cut")
    assert Shards(tmp_path / "cut")[0].tokens.tolist() == wanted.tokens.tolist()


def test_a_part_of_text_may_spell_a_placeholder(tmp_path: Path) -> None:
    part = {"type": "text", "text": "What is <image>?"}
    write_lines(tmp_path / "talk.jsonl", turns(("user", [part]), ("assistant", "A tag.")))
    (example,) = examples(tmp_path, CHAT)
    assert "What is <image>?" in TOKENIZER.decode(example.tokens.tolist())


def test_a_film_that_is_cut_short_spoils_no_neighbour(corpus: Path) -> None:
    whole = (corpus / "film.mp4").read_bytes()
    (corpus / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    rows = [{"video": f"{name}.mp4", "caption": "x"} for name in ("film", "cut", "film")]
    write_lines(corpus / "films.jsonl", *rows)
    manifest = make(corpus, f'on_bad = "skip"\n{CAPTIONS}orders = ["vision"]')
    shards = Shards(corpus / "out")
    assert manifest.skipped == 1 and len(shards) == 2
    assert shards[0].tokens.tolist() == shards[1].tokens.tolist()


def test_more_bad_rows_than_the_cap_are_refused_and_can_be_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes((GOOD + b"bad\n") * 4)
    capped = 'on_bad = "skip"\nmax_bad = {}\n' + DOCUMENTS
    said = refusal(lambda: make(tmp_path, capped.format(2)))
    assert "3 bad rows are more than the 2 allowed" in said and "d.jsonl:2" in said
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert [row["origin"] for row in report["bad"]] == ["d.jsonl:2", "d.jsonl:4", "d.jsonl:6"]
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert make(tmp_path, capped.format(4)).skipped == 4
    assert not (tmp_path / "out" / NOTES_FOLDER).exists() and (tmp_path / "out" / BUILD).exists()


def test_rows_that_were_skipped_are_refused_when_the_spec_refuses(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes((GOOD + b"bad\n") * 4)
    capped = 'on_bad = "skip"\nmax_bad = 2\n' + DOCUMENTS
    refusal(lambda: make(tmp_path, capped))
    assert "d.jsonl:" in refusal(lambda: make(tmp_path, DOCUMENTS))


def test_nothing_but_bad_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b"bad\n")
    assert "every row is bad" in refusal(lambda: make(tmp_path, f'on_bad = "skip"\n{DOCUMENTS}'))


def test_a_text_of_parquet_that_is_not_utf_8_is_a_bad_row(tmp_path: Path) -> None:
    texts = pa.array([b"fine", b"\xff", b"good"]).view(pa.utf8())
    pq.write_table(pa.table({"text": texts}), tmp_path / "d.parquet")
    spec = '[[documents]]\nname = "d"\npath = "d.parquet"'
    assert refusal(lambda: make(tmp_path, spec)).startswith("d.parquet:2: a text is not UTF-8")
    assert make(tmp_path, f'on_bad = "skip"\n{spec}').counts.examples == 2


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1 nothing")
    spec = '[[documents]]\nname = "d"\npath = "d.parquet"'
    assert "not whole Parquet" in refusal(lambda: make(tmp_path, spec))


# ---- the spec

BAD_SPECS = {
    "missing value": ("seed =", "cannot be read as TOML"),
    "unknown key": ('on_bed = "skip"', "unknown key on_bed: the nearest known one is on_bad"),
    "unknown kind": ('[[texts]]\nname = "x"', "unknown key texts: the nearest known one is text"),
    "unknown inner key": (
        '[[text]]\nname = "x"\npath = "x"\nrows_per_shrad = 3',
        "text 1 has the unknown key rows_per_shrad: the nearest known one is rows_per_shard",
    ),
    "another type": ('seed = "x"', "seed must be a whole number, not 'x'"),
    "no whole number": ("seed = true", "seed must be a whole number"),
    "no choice": ('on_bad = "hide"', "on_bad must be one of refuse, skip"),
    "no list": ('text = "x"', "text must be a list"),
    "no table": ("text = [1]", "text 1 is not a table"),
    "missing key": ('[[text]]\nname = "x"', "lacks the key path"),
    "no source": ("seed = 1", "names no source"),
    "negative": ('seed = -1\n[[text]]\nname = "x"\npath = "x"', "at least 0"),
    "twice": ('[[text]]\nname = "x"\npath = "x"\n' * 2, "two sources are called x"),
    "bad name": ('[[text]]\nname = "../x"\npath = "x"', "use small letters"),
    "bad partition": (
        '[[text]]\nname = "x"\npath = "x"\nrows_per_shard = 0',
        "rows_per_shard must be at least 1",
    ),
    "nowhere": ('[[text]]\nname = "x"\npath = "gone"', "there is nothing at"),
    "no suffix": ('[[text]]\nname = "x"\npath = "."', "no file that ends in .txt"),
    "bad rate": (CAPTIONS.replace("2", "0"), "fps must be a number above 0"),
    "bad bounds": (
        f"{CAPTIONS}min_frames = 3\nmax_frames = 2",
        "min_frames 3 is over max_frames 2",
    ),
    "no frames": (f"{CAPTIONS}num_frames = 0", "num_frames must be at least 1"),
    "bad part": (f"{CAPTIONS}video_start = 3\nvideo_end = 2", "captions 1: a film from second 3"),
    "no end": (f"{CAPTIONS}video_end = inf", "video_end must be a number, not inf"),
    "no UTF-8": ('seed = 1\n[[text]]\nname = "\udcff"', "spec.toml:3: this is not UTF-8"),
    "bad order": (f'{CAPTIONS}orders = ["up"]', "orders must be one of"),
    "no order": (f"{CAPTIONS}orders = []", "names no order"),
    "no fields": ('[[fields]]\nname = "x"\npath = "x"', "either fields or fields_from_example"),
    "no tokenizer": ('tokenizer = "gone"\n[[text]]\nname = "x"\npath = "x"', "no tokenizer at"),
    "no codec": (f'codec = "gone"\n{CAPTIONS}', "gone"),
}


@pytest.mark.parametrize(("spec", "said"), BAD_SPECS.values(), ids=BAD_SPECS)
def test_a_spec_is_read_to_the_letter(tmp_path: Path, spec: str, said: str) -> None:
    assert said in refusal(lambda: make(tmp_path, spec))


def test_a_file_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for name in (b"a.txt", b"\xff.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path / "books") + b"/" + name)).write_text("A book.")
    said = refusal(lambda: make(tmp_path, '[[text]]\nname = "x"\npath = "books"'))
    assert said.endswith("?.txt is not UTF-8: rename it")


BOOKS = '[[text]]\nname = "books"\npath = "books"\n'


def test_files_that_count_are_read_and_all_others_are_listed(tmp_path: Path) -> None:
    (tmp_path / "books" / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("a.txt", "B.TXT", "._a.txt", ".ipynb_checkpoints/a.txt", "c.text", "d.md"):
        (tmp_path / "books" / name).write_text(f"The book {name}.")
    said: list[str] = []
    (tmp_path / "spec.toml").write_text(BOOKS)
    build_shards(tmp_path / "spec.toml", tmp_path / "out", said.append)
    shards = Shards(tmp_path / "out")
    assert {shards.record(i).origin for i in range(len(shards))} == {"books/a.txt", "books/B.TXT"}
    left_out = json.loads((tmp_path / "out" / REPORT).read_text())["files"]
    hidden, other = "hidden", "does not end in .txt"
    assert {one["file"]: one["why"] for one in left_out} == {
        "books/._a.txt": hidden,
        "books/.ipynb_checkpoints/a.txt": hidden,
        "books/c.text": other,
        "books/d.md": other,
    }
    told = [line for line in said if line.startswith("books: ")]
    assert told == [
        "books: 2 files are not read (hidden), first books/._a.txt",
        "books: 2 files are not read (does not end in .txt), first books/c.text",
    ]


def test_tables_are_known_by_their_endings_in_capitals_too(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    write_lines(tmp_path / "tables" / "A.JSONL", {"text": "The ring."})
    pq.write_table(pa.table({"text": ["A book."]}), tmp_path / "tables" / "B.PARQUET")
    made = examples(tmp_path, '[[documents]]\nname = "d"\npath = "tables"')
    assert len(made) == 2
    expect(made[0], ("<s>", 0), ("The ring.", 1), ("</s>", 1))


@pytest.mark.parametrize(("listed", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_found_in_either_normal_form(corpus: Path, listed: str, there: str) -> None:
    name = "caf\u00e9.png"
    (corpus / unicodedata.normalize(there, "b\u00fccher")).mkdir()
    os.link(corpus / "still.png", corpus / unicodedata.normalize(there, f"b\u00fccher/{name}"))
    row = turns(("user", "<image>Who?"), CALM[1])
    row["images"] = [unicodedata.normalize(listed, f"b\u00fccher/{name}")]
    write_lines(corpus / unicodedata.normalize(there, "t\u00e4lk.jsonl"), row)
    asked = CHAT.replace("talk.jsonl", unicodedata.normalize(listed, "t\u00e4lk.jsonl"))
    (made,) = examples(corpus, asked)
    assert made.vision.sum() == 65


def test_skipped_rows_are_told_by_their_reasons(tmp_path: Path) -> None:
    gone = [ONE_IMAGE | {"images": [f"gone {i}.png"]} for i in range(12)]
    tools = turns(*CALM) | {"tools": [{"type": "function"}]}
    write_lines(tmp_path / "talk.jsonl", *gone, turns(*CALM), *[tools] * 5)
    said: list[str] = []
    (tmp_path / "spec.toml").write_text(f'on_bad = "skip"\n{CHAT}')
    build_shards(tmp_path / "spec.toml", tmp_path / "out", said.append)
    assert said[-1] == (
        f"17 rows skipped, listed in {tmp_path / 'out' / REPORT}: the image ... is not there "
        "(12 rows); the row has tools, which a conversation of ours cannot carry (5 rows)"
    )
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert sum(report["reasons"].values()) == report["bad_rows"] == 17


def test_a_spec_that_is_not_there_is_refused(tmp_path: Path) -> None:
    said = refusal(lambda: build_shards(tmp_path / "spec.toml", tmp_path / "out", print))
    assert "there is no spec" in said
    said = refusal(lambda: build_shards(tmp_path, tmp_path / "out", print))
    assert said == f"{tmp_path} cannot be read: give the path of a TOML file"


def test_no_workers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(GOOD)
    assert "0 workers" in refusal(lambda: make(tmp_path, DOCUMENTS, workers=0))


# ---- Ray


def killed_once(job: Job, partition: Partition) -> PartitionNote:
    """A partition whose first worker is killed: the third of them."""
    note = job.out.parent / "killed"
    if partition.shard == "words-00002.arrow" and not note.exists():
        note.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    with (job.out.parent / f"done-{partition.shard}").open("a") as file:
        file.write("x")
    return build_partition(job, partition)


@pytest.mark.slow
def test_ray_writes_the_same_bytes_and_a_killed_worker_costs_its_block(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    here = Path(__file__).resolve().parent  # its workers import this file
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))
    make(mixed, MIXED, "local")
    monkeypatch.setattr(builder, "build_partition", killed_once)
    try:
        make(mixed, MIXED, "ray", workers=2, engine="ray")
        assert (mixed / "killed").exists()
        assert read_all(mixed / "ray") == read_all(mixed / "local")
        assert {file.read_text() for file in mixed.glob("done-*")} == {"x"}
        words = mixed / "words.jsonl"
        words.write_text(words.read_text().replace("Number 3.", ""))
        said = refusal(lambda: make(mixed, MIXED, "bad", workers=2, engine="ray"))
        assert said.startswith("words.jsonl:4: ")
    finally:
        ray.shutdown()


@pytest.mark.skipif(find_spec("ray") is not None, reason="says what to do where Ray is missing")
def test_without_ray_its_engine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(GOOD)
    said = refusal(lambda: make(tmp_path, DOCUMENTS, engine="ray"))
    assert "pip install" in said and "ringworld[ray]" in said
