"""The needle test itself: judged fairly, kept after every length, and drawn."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.evals import needle
from ringworld.evals.config import Grid
from ringworld.evals.heatmap import draw_heatmaps, name_length
from ringworld.evals.measure import select_rule
from ringworld.evals.needle import accuracy, read_trials, run_needle
from ringworld.models.world import specs
from ringworld.recipes.nano import NANO_SIZES
from ringworld.tasks.needle import CITIES, SENTENCE_TOKENS, Form, make_form
from ringworld.text.load import load_tokenizer
from ringworld.text.template import ANSWER_RULES
from ringworld.weights.shipped import NANO

# The model is replaced by a reader, which does not look at the weights.
NOTHING = specs(NANO_SIZES)  # weights that nothing reads
GRID = Grid(lengths=(256, 512), depths=(0.0, 0.5, 1.0), rounds=2)
IDENTITY = {"model": "abc", "dtype": "float32"}


def read_from_prompt(tokenizer, prompt, right: bool) -> list[int]:
    """A model that reads: the number of the city that is asked for, or another number."""
    written = tokenizer.decode(prompt.tokens.tolist())
    city = written.rsplit("magic ", 1)[1].split(" number")[0]
    number = written.split(f"magic {city} number is: ")[1][:7]
    return tokenizer.encode(number if right else "1234567")


@pytest.fixture
def books() -> list[np.ndarray]:
    tokenizer = load_tokenizer(NANO / "tokenizer.json")
    page = "To be, or not to be, that is the question. Whether it is nobler in the mind? "
    return [np.asarray(tokenizer.encode(page * 60), np.int32)]


def run(
    books, tmp_path: Path, grid: Grid, monkeypatch, reader, form: Form | None = None
) -> list[needle.Trial]:
    tokenizer = load_tokenizer(NANO / "tokenizer.json")
    asked = []

    def write(weights, prompts, c, *, steps, sampling, seed, int8) -> list[list[int]]:
        assert not int8
        asked.extend(prompts)
        return [reader(tokenizer, prompt) for prompt in prompts]

    monkeypatch.setattr(needle, "write_text", write)
    kept = tmp_path / "needle.json"
    trials = run_needle(
        NOTHING,
        NANO_SIZES,
        tokenizer,
        books,
        grid,
        kept,
        lambda said: None,
        form=form,
        identity=IDENTITY,
    )
    for prompt in asked:
        assert len(prompt) <= max(grid.lengths)
    return trials


def test_a_model_that_reads_finds_every_needle(books, tmp_path, monkeypatch) -> None:
    trials = run(books, tmp_path, GRID, monkeypatch, lambda t, p: read_from_prompt(t, p, True))
    assert len(trials) == 12 and all(trial.found for trial in trials)
    assert {trial.city for trial in trials} <= set(CITIES)


def test_a_model_that_guesses_finds_none(books, tmp_path, monkeypatch) -> None:
    trials = run(books, tmp_path, GRID, monkeypatch, lambda t, p: read_from_prompt(t, p, False))
    assert not any(trial.found for trial in trials)


def test_a_stopped_evaluation_goes_on_where_it_stopped(books, tmp_path, monkeypatch) -> None:
    def reader(tokenizer, prompt) -> list[int]:
        return read_from_prompt(tokenizer, prompt, True)

    first = run(books, tmp_path, replace(GRID, lengths=(256,)), monkeypatch, reader)
    asked = []
    both = run(books, tmp_path, GRID, monkeypatch, lambda t, p: asked.append(p) or reader(t, p))
    assert both[: len(first)] == first and len(asked) == 6


def test_a_models_own_template_asks_in_the_same_words(books, tmp_path, monkeypatch) -> None:
    words = load_tokenizer(NANO / "tokenizer.json")
    form = make_form("{{ bos_token }}[{{ messages[0].content }}]</s>A:", words)
    asked = []

    def reader(tokenizer, prompt) -> list[int]:
        asked.append(prompt)
        return read_from_prompt(tokenizer, prompt, True)

    assert all(trial.found for trial in run(books, tmp_path, GRID, monkeypatch, reader, form=form))
    for prompt in asked:
        ids = prompt.tokens.tolist()
        assert ids[0] == words.bos and ids.count(words.eos) == 1
        said = words.decode(ids)
        assert said.startswith("[") and said.endswith(f" number? {ANSWER_RULES}]A:")
    assert {len(prompt) + SENTENCE_TOKENS for prompt in asked} <= {255, 256, 511, 512}


@pytest.mark.parametrize("template", ["{{ messages[0].content }}" * 2, "Hello.", "{{ BOOK }}"])
def test_a_template_that_hides_the_question_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="does not show a question once"):
        make_form(template, load_tokenizer(NANO / "tokenizer.json"))


def test_beyond_the_context_every_rule_is_tried_on_the_same_prompts(
    books, tmp_path, monkeypatch
) -> None:
    short = replace(NANO_SIZES, llama=replace(NANO_SIZES.llama, context=256))
    read: dict[tuple[int, float, object], list[list[int]]] = {}

    def write(weights, prompts, c, *, steps, sampling, seed, int8) -> list[list[int]]:
        assert int8
        key = (c.llama.context, c.llama.rope_theta, c.llama.rope_scaling)
        read.setdefault(key, []).extend(prompt.tokens.tolist() for prompt in prompts)
        return [[] for _ in prompts]

    monkeypatch.setattr(needle, "write_text", write)
    words, kept = load_tokenizer(NANO / "tokenizer.json"), tmp_path / "needle.json"
    rules = ("plain", "yarn", "ntk")
    for _ in range(2):  # the second finds everything done
        trials = run_needle(
            NOTHING,
            short,
            words,
            books,
            GRID,
            kept,
            lambda said: None,
            rules=rules,
            int8=True,
            identity=IDENTITY,
        )
        assert [trial.rule for trial in trials if trial.length == 512] == [
            rule for rule in rules * 2 for _ in GRID.depths
        ]
        assert {trial.rule for trial in trials if trial.length == 256} == {"plain"}
    within, *beyond = read.values()
    assert len(within) == 6 and len(beyond) == 3
    assert all(prompts == beyond[0] for prompts in beyond)
    for rule in rules:
        assert len(select_rule(trials, rule, 256)) == 12


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    for body in ({"other": 1}, [1]):
        (tmp_path / "needle.json").write_text(json.dumps(body))
        with pytest.raises(InputError, match="not a needle result"):
            read_trials(tmp_path / "needle.json", IDENTITY)


def test_results_of_another_model_or_of_other_settings_are_not_gone_on_from(
    books, tmp_path, monkeypatch
) -> None:
    run(books, tmp_path, GRID, monkeypatch, lambda t, p: [])
    kept = tmp_path / "needle.json"
    own = {**IDENTITY, "int8": False, "seed": GRID.seed}
    assert len(read_trials(kept, own)) == 12
    for name, other in {"model": "abd", "dtype": "int8", "int8": True, "seed": 1}.items():
        with pytest.raises(InputError, match=f"of another {name}: remove it"):
            read_trials(kept, own | {name: other})
    with pytest.raises(InputError, match="another adapter and another model"):
        read_trials(kept, own | {"model": "x", "adapter": "y"})
    kept.write_text(json.dumps({"trials": []}))
    with pytest.raises(InputError, match="which model it is of"):
        read_trials(kept, own)


def test_books_too_short_for_a_haystack_are_refused(books, tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match="add books"):
        run(books, tmp_path, replace(GRID, lengths=(8192,)), monkeypatch, lambda t, p: [])


def test_the_heat_map_is_a_picture_of_every_cell(books, tmp_path, monkeypatch) -> None:
    trials = run(books, tmp_path, GRID, monkeypatch, lambda t, p: read_from_prompt(t, p, True))
    lengths, depths, share = accuracy(trials)
    assert (lengths, depths) == ([256, 512], [0.0, 0.5, 1.0]) and (share == 1).all()
    assert draw_heatmaps({"before": trials, "after": trials}).startswith(b"\x89PNG")
    assert [name_length(n) for n in (1024, 16384, 1 << 20, 1500)] == ["1K", "16K", "1M", "1500"]


def test_of_four_needles_two_are_asked_for_and_each_counts(books, tmp_path, monkeypatch) -> None:
    said = []

    def reader(tokenizer, prompt) -> list[int]:
        book = tokenizer.decode(prompt.tokens.tolist())
        said.append(book)
        cities = book.split("numbers for ")[1].split("?")[0].split(", and ")
        first = book.split(f"magic {cities[0]} number is: ")[1][:7]
        return tokenizer.encode(f"{cities[0]} {first}, {cities[1]} 1")

    grid = replace(GRID, lengths=(1024,), needles=4, asked=2)
    trials = run(books, tmp_path, grid, monkeypatch, reader)
    assert [trial.found for trial in trials] == [True, False] * 6
    assert all(book.count("The special magic ") == 4 for book in said)
    for book, trial in zip(said, trials[::2], strict=True):
        place = book.index(f"magic {trial.city} number is")
        assert abs(place / book.index(" What are the") - trial.depth) < 0.2, "the first asked for"
    with pytest.raises(InputError, match="results of another"):
        read_trials(tmp_path / "needle.json", {**IDENTITY, "int8": False, "seed": GRID.seed})
    for needles, asked in ((0, 0), (2, 3), (100, 1)):
        with pytest.raises(InputError, match="needles are hidden and"):
            replace(GRID, needles=needles, asked=asked)
