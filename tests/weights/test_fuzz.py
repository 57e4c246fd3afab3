"""Changed files are read as well or refused in one sentence; `tests/fuzz.py` does so for longer."""

import random

import pytest

from tests.fuzz import CORPUS, TARGETS, change, load_corpus, run, try_file

# Some milliseconds each: the whole of this file takes seconds.
CASES = 300


@pytest.mark.parametrize("target", TARGETS)
def test_a_changed_file_is_read_or_refused_in_one_sentence(tmp_path, target):
    report = run(target, cases=CASES, seconds=None, seed=0, folder=tmp_path)
    assert f"{CASES} files" in report


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_has_files_that_are_whole(tmp_path, target):
    config = '{"num_attention_heads": 2, "theta": 1e4, "max_sequence_length": 32}'
    (tmp_path / "config.json").write_text(config)
    whole = 0
    for i, content in enumerate(load_corpus(target)):
        (tmp_path / str(i)).write_bytes(content)
        whole += try_file(target, tmp_path / str(i))
    assert whole >= 2


def test_the_same_seed_makes_the_same_files():
    def files() -> list[bytes]:
        rng, corpus = random.Random(0), load_corpus("pickle")
        return [change(corpus[0], corpus, [b"x"], rng) for _ in range(20)]

    assert files() == files()
    assert len(set(files())) > 15


def test_what_is_no_input_error_is_kept_and_raised(tmp_path, monkeypatch):
    def fail(path: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setitem(TARGETS, "pickle", (fail, [b"x"]))
    with pytest.raises(ValueError, match="a defect"):
        run("pickle", cases=1, seconds=None, seed=0, folder=tmp_path)
    assert len(list(tmp_path.glob("pickle-*"))) == 1


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300_000
