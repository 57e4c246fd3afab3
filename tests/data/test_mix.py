"""Mixing: shares of batches and of stages, and batches that are functions of (seed, step)."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.batch import Batch
from ringworld.data import example
from ringworld.data.example import Example
from ringworld.data.packing import loader
from ringworld.data.packing.loader import HeldRows, find_places, make_batches
from ringworld.data.packing.mix import SHARED_ROWS, Chosen, MixedExamples, draw_forms, mix_sources
from ringworld.data.packing.rows import Apart, MixedRows, PackedRows
from ringworld.errors import InputError
from ringworld.mesh import make_mesh

CONTEXT = 16
CHAT = ("draw image", "see image", "draw video", "see video")


class Shelf:
    """Examples of one token each that know their lengths, and count how often each is read."""

    def __init__(self, token: int, lengths: list[int]) -> None:
        self.token, self.lengths = token, np.array(lengths, np.int64)
        self.read = Counter[int]()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Example:
        self.read[i] += 1
        return example.text([self.token] * int(self.lengths[i]), 1.0)


def packed(token: int, count: int) -> PackedRows:
    """`count` rows, each full of one token."""
    return PackedRows(Shelf(token, [CONTEXT + 1] * count), CONTEXT)


def mixed(**rows: int) -> dict[str, PackedRows]:
    """Sources with so many rows each, of tokens 3, 4, ..."""
    return {name: packed(3 + i, count) for i, (name, count) in enumerate(rows.items())}


def tokens_of(rows: MixedRows, numbers: Any) -> Counter[int]:
    return Counter(int(rows[n].tokens[0]) for n in numbers)


def drawn(rows: PackedRows | MixedRows, seed: int, count: int) -> list[int]:
    numbers = rows.draw(seed)
    return [int(numbers[i]) for i in range(count)]


# ---- shares


def test_a_quarter_of_every_batch_goes_to_each_of_four_tasks() -> None:
    rows = MixedRows(
        {task: packed(3 + i, 5 + 2 * i) for i, task in enumerate(CHAT)},
        {task: 0.25 for task in CHAT},
    )
    batches = rows.draw(0).batch(8)
    for step in range(40):
        assert tokens_of(rows, batches[step].tolist()) == {3: 2, 4: 2, 5: 2, 6: 2}


def test_16_percent_of_every_batch_and_of_the_stage_is_text() -> None:
    rows = MixedRows(mixed(text=50, vision=70), {"text": 0.16, "vision": 0.84})
    batches = rows.draw(0).batch(25)
    for step in range(40):
        assert tokens_of(rows, batches[step].tolist())[3] == 4


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    batch=st.integers(1, 12),
    step=st.integers(0, 10**6),
)
def test_a_source_has_its_share_of_any_batch(weights: list[int], batch: int, step: int) -> None:
    sources = mixed(**{f"s{i}": 3 for i in range(len(weights))})
    rows = MixedRows(sources, {name: w / 10 for name, w in zip(sources, weights, strict=True)})
    found = tokens_of(rows, rows.draw(1).batch(batch)[step].tolist())
    for i, weight in enumerate(weights):
        wanted = batch * weight / sum(weights)
        assert abs(found[3 + i] - wanted) < (1.01 if len(weights) == 2 else 2.01)


def test_each_source_goes_through_epochs_of_its_own_in_orders_of_its_own() -> None:
    rows = MixedRows(mixed(a=10, b=10), {"a": 0.5, "b": 0.5})
    numbers = drawn(rows, 0, 60)
    for first in (0, 10):
        own = [n - first for n in numbers if first <= n < first + 10]
        epochs = [own[i : i + 10] for i in range(0, 30, 10)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
    a, b = ([n % 10 for n in numbers if (n >= 10) == late][:10] for late in (False, True))
    assert a != b
    assert drawn(rows, 1, 60) != numbers == drawn(rows, 0, 60)


def test_another_source_does_not_change_the_order_of_the_first() -> None:
    two = MixedRows(mixed(a=10, b=10), {"a": 0.5, "b": 0.5})
    three = MixedRows(mixed(a=10, b=10, c=10), {"a": 0.4, "b": 0.4, "c": 0.2})
    orders = [[n for n in drawn(rows, 0, 100) if n < 10][:30] for rows in (two, three)]
    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"a": 0.5, "radio": 0.5}, "radio, which is no source: use a, b"),
        ({"a": 0.0}, "at least one is more"),
        ({"a": 1.0, "b": -0.1}, "0 or more"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        MixedRows(mixed(a=2, b=2), shares)


# ---- examples that share rows


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=20), min_size=2, max_size=3),
    weights=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    seed=st.integers(0, 9),
)
def test_every_source_is_near_its_share_of_tokens_throughout(
    lengths: list[list[int]], weights: list[int], seed: int
) -> None:
    sources = {f"s{i}": Shelf(i, own) for i, own in enumerate(lengths)}
    shares = {name: w / 10 for name, w in zip(sources, weights, strict=False)}
    mix = MixedExamples(sources, shares, tokens=2000, seed=seed)
    assert not any(shelf.read for shelf in sources.values())
    given_, total = np.zeros(len(lengths)), sum(shares.values())
    for i in range(len(mix)):
        one = mix[i]
        assert len(one) == mix.lengths[i]
        given_[one.tokens[0]] += len(one)
        wanted = given_.sum() * np.array(list(shares.values())) / total
        # Each source is at most an example of 50 tokens ahead, so behind by those of the others.
        assert (np.abs(given_ - wanted) <= 50 * len(lengths)).all()
    assert 2000 <= given_.sum() < 2000 + 50 * len(lengths)


def test_an_epoch_of_a_mix_has_every_example_once_and_the_next_another_order() -> None:
    shelf, other = Shelf(0, list(range(1, 21))), Shelf(1, [5] * 7)
    mix = MixedExamples({"a": shelf, "b": other}, {"a": 0.5, "b": 0.5}, tokens=1260, seed=0)
    own = [int(mix.lengths[i]) for i in range(len(mix)) if mix[i].tokens[0] == 0]
    epochs = [own[i : i + 20] for i in range(0, 60, 20)]
    assert all(sorted(epoch) == list(range(1, 21)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_images_and_videos_share_rows_half_and_half() -> None:
    rng = np.random.default_rng(0)
    images, videos = Shelf(0, rng.integers(4, 9, 400).tolist()), Shelf(1, [61] * 60)
    mix = MixedExamples({"i": images, "v": videos}, {"i": 0.5, "v": 0.5}, tokens=6000, seed=0)
    rows = PackedRows(mix, 64)
    read = [rows[i] for i in range(len(rows))]
    of_video = sum(int(((row.tokens == 1) & (row.segments > 0)).sum()) for row in read)
    assert of_video / sum(int((row.segments > 0).sum()) for row in read) == pytest.approx(
        0.5, abs=0.1
    )
    assert any({0, 1} <= set(row.tokens[row.segments > 0].tolist()) for row in read)


def test_a_source_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="the source b has no tokens"):
        MixedExamples(
            {"a": Shelf(0, [3]), "b": Shelf(1, [])}, {"a": 1.0, "b": 1.0}, tokens=9, seed=0
        )


# ---- sources apart and together


def mix_of(shares: dict[str, float], *apart: str) -> Any:
    """Chat of 8 tokens, questions of 12, films that fill a row: a stage of 40 rows."""
    lengths = {"chat": [8] * 30, "questions": [12] * 20, "films": [CONTEXT + 1] * 9}
    sources = {name: Shelf(3 + i, own) for i, (name, own) in enumerate(lengths.items())}
    return mix_sources(sources, shares, apart, tokens=40 * CONTEXT, seed=0)


def test_sources_apart_have_their_share_of_every_batch_and_the_others_of_the_tokens() -> None:
    mix = mix_of({"chat": 0.15, "questions": 0.6, "films": 0.25}, "films")
    assert isinstance(mix, Apart) and mix.shares == {"films": 0.25, SHARED_ROWS: 0.75}
    packed = {name: PackedRows(own, CONTEXT) for name, own in mix.sources.items()}
    rows = MixedRows(packed, mix.shares)
    batches, tokens = rows.draw(0).batch(4), Counter[int]()
    for step in range(10):
        read = [rows[n] for n in batches[step].tolist()]
        assert sum(5 in row.tokens for row in read) == 1
        for row in read:
            assert 5 not in row.tokens or set(row.tokens.tolist()) == {5}
            tokens.update(row.tokens[row.segments > 0].tolist())
    # Either has the tokens of at most one example too many among some three hundred.
    assert tokens[3] / (tokens[3] + tokens[4]) == pytest.approx(0.2, abs=12 / 300)


def test_sources_that_are_all_together_are_one_sequence_and_all_apart_are_as_many() -> None:
    together = mix_of({"chat": 0.5, "questions": 0.5})
    assert isinstance(together, MixedExamples)
    apart = mix_of({"chat": 0.25, "questions": 0.75}, "chat", "questions")
    assert isinstance(apart, Apart) and list(apart.sources) == ["chat", "questions"]
    assert apart.shares == {"chat": 0.25, "questions": 0.75}


@pytest.mark.parametrize(
    ("shares", "apart", "said"),
    [
        ({"chat": 0.5, "films": 0.4}, (), "the shares add up to 0.9"),
        ({"chat": 0.5, "radio": 0.5}, (), "radio, which is no source"),
        ({"chat": 1.5, "films": -0.5}, (), "0 or more"),
        ({"chat": 1.0}, ("films",), "films is packed apart and has no share"),
    ],
)
def test_a_mix_without_meaning_is_refused(
    shares: dict[str, float], apart: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        mix_of(shares, *apart)


def test_chosen_examples_are_those_of_their_numbers() -> None:
    shelf, numbers = Shelf(3, [4, 5, 6, 7]), np.array([2, 0])
    chosen = Chosen(shelf, numbers, shelf.lengths[numbers])
    assert [len(chosen[i]) for i in range(len(chosen))] == chosen.lengths.tolist() == [6, 4]


# ---- either order


def test_the_form_of_each_example_is_drawn_by_the_seed_each_as_likely_as_another() -> None:
    numbers = np.arange(100, 1600)
    found = draw_forms(numbers, 3, seed=0)
    assert ((found - 100) // 3).tolist() == list(range(500))
    # Four standard deviations of 500 draws.
    for form in range(3):
        share = np.mean((found - 100) % 3 == form)
        assert share == pytest.approx(1 / 3, abs=4 * (2 / 9 / 500) ** 0.5)
    assert draw_forms(numbers, 3, seed=0).tolist() == found.tolist()
    assert draw_forms(numbers, 3, seed=1).tolist() != found.tolist()
    assert draw_forms(numbers, 1, seed=0).tolist() == numbers.tolist()


def test_more_examples_do_not_change_the_form_of_the_first() -> None:
    few, many = (draw_forms(np.arange(2 * count), 2, seed=0).tolist() for count in (50, 90))
    assert few == many[:50]


# ---- a batch is a function of (seed, step)


def sources() -> dict[str, PackedRows]:
    """Rows of examples of many lengths from two sources."""
    rng = np.random.default_rng(0)
    return {
        "chat": PackedRows(Shelf(3, rng.integers(2, 30, 50).tolist()), CONTEXT),
        "books": PackedRows(Shelf(4, rng.integers(9, 60, 20).tolist()), CONTEXT),
    }


def batches_of(rows: PackedRows | MixedRows, seed: int = 0) -> Callable[[int], Batch]:
    make = make_batches(rows, batch=4, seed=seed, ring=1)
    return lambda step: jax.device_get(make(step))


def bits(batch: Batch) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(batch)]


@pytest.mark.parametrize("kind", ["alone", "mixed"])
def test_starting_at_any_step_goes_on_as_if_never_stopped(kind: str) -> None:
    def rows() -> PackedRows | MixedRows:
        whole = sources()
        return whole["chat"] if kind == "alone" else MixedRows(whole, {"chat": 0.7, "books": 0.3})

    run = batches_of(rows())
    wanted = [bits(run(step)) for step in range(60)]  # some epochs of each source
    for start in (1, 7, 23, 44, 59):
        again = batches_of(rows())
        assert [bits(again(step)) for step in range(start, 60)] == wanted[start:]
    assert bits(batches_of(rows(), seed=1)(0)) != wanted[0]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_that_read_their_part_read_the_same_batch(
    hosts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"chat": 0.7, "books": 0.3}
    with jax.set_mesh(make_mesh(data=4, seq=2)):
        whole = make_batches(MixedRows(sources(), shares), batch=4, seed=0, ring=2)
        wanted = [jax.device_get(whole(step)) for step in range(6)]
        for host in range(hosts):
            mine = range(host * 4 // hosts, (host + 1) * 4 // hosts)
            read = read_as(list(mine), MixedRows(sources(), shares), monkeypatch)
            for step in range(6):
                part = [x[mine.start : mine.stop] for x in jax.tree.leaves(wanted[step])]
                found = jax.tree.leaves(read(step))
                assert all(map(np.array_equal, found, part))


def read_as(
    held: list[int], rows: MixedRows, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Batch]:
    """The part of each batch that a process makes whose devices hold these rows."""
    needed = np.zeros((4, CONTEXT), np.bool_)
    needed[held] = True
    monkeypatch.setattr(loader, "find_places", lambda order, shape: (needed, needed))
    monkeypatch.setattr(HeldRows, "place", lambda part, x: x)
    make, asked = make_batches(rows, batch=4, seed=0, ring=2), rows.draw(0).batch(4)

    def read(step: int) -> Batch:
        for source in rows.sources.values():
            source.examples.read.clear()
        found = make(step)
        own = [rows._find(int(asked[step][i])) for i in held]
        needed = {(id(s), piece.example) for s, n in own for piece in s.plan[n]}
        seen = {(id(s), i) for s in rows.sources.values() for i in s.examples.read}
        assert seen == needed  # no example of another host's rows was read
        return found

    return read


def test_a_process_needs_and_counts_all_that_its_devices_hold() -> None:
    with jax.set_mesh(make_mesh(data=2, seq=2, tensor=2)):
        needed, own = find_places(np.arange(18), (4, 16))  # two places of the ring are padding
    assert needed.shape == own.shape == (4, 16) and needed.all() and own.all()


def test_of_a_row_only_the_pieces_that_are_needed_are_read() -> None:
    rows = PackedRows(Shelf(3, [9, 5, 12]), CONTEXT)
    whole, pieces = rows[0], rows.plan[0]
    at = 0
    for piece in pieces:
        needed = np.zeros(CONTEXT, np.bool_)
        needed[at] = True
        rows.examples.read.clear()
        part = rows.part(0, needed)
        assert set(rows.examples.read) == {piece.example} and len(pieces) > 1
        here = slice(at, at + piece.inputs)
        pairs = zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True)
        assert all(np.array_equal(x[here], y[here]) for x, y in pairs)
        at = here.stop


def test_rows_are_drawn_as_grain_shuffles_them() -> None:
    rows = sources()["chat"]
    plain = grain.MapDataset.source(list(range(len(rows)))).seed(5).shuffle().repeat()
    assert drawn(rows, 5, 200) == [int(plain[i]) for i in range(200)]
