"""The ledger: every batch on record, and no other batch for a step that is taken again."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import ONE_LAYER

from ringworld.batch import Batch
from ringworld.data import example
from ringworld.data.example import Example
from ringworld.data.packing.ledger import LEDGER_FILE, Ledger, add_digests, digest
from ringworld.data.packing.loader import make_batches
from ringworld.data.packing.rows import Apart, PackedRows
from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.settings import MeshShape
from ringworld.train.fresh_model import fresh_weights
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelStage, train_stage
from ringworld.train.optimizer import AdamW


def batch_of(step: int) -> Batch:
    """A batch `[2, 4]` that depends on the step alone."""
    ints = np.arange(8, dtype=np.int32).reshape(2, 4) + step
    flags = ints % 3 == 0
    return Batch(ints, flags, ints + 1, flags, ints.astype(np.float32), ints, ints)


def read(path: Path) -> list[tuple[int, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["step"], row["digest"]) for row in rows]


def test_each_step_stands_in_the_ledger_once_also_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "run" / LEDGER_FILE
    for start, end in ((0, 4), (2, 6), (6, 7)):
        ledger = Ledger(path)
        for step in range(start, end):
            ledger.record(step, digest(batch_of(step)))
    assert read(path) == [(step, digest(batch_of(step))) for step in range(7)]


def test_another_batch_for_a_step_is_refused_and_leaves_the_ledger_as_it_was(
    tmp_path: Path,
) -> None:
    path = tmp_path / LEDGER_FILE
    Ledger(path).record(3, digest(batch_of(3)))
    before = path.read_text()
    with pytest.raises(InputError, match="the batch of step 3 is not the one in .*changed since"):
        Ledger(path).record(3, digest(batch_of(4)))
    assert path.read_text() == before


@pytest.mark.parametrize("name", list(vars(batch_of(0))))
def test_a_digest_tells_every_array_and_its_dtype(name: str) -> None:
    batch = batch_of(0)
    array = vars(batch)[name]
    other = array.copy()
    other[1, 2] = not other[1, 2] if other.dtype == np.bool_ else other[1, 2] + 1
    wide = array.astype(np.int8 if array.dtype == np.bool_ else np.float64)
    found = {digest(replace(batch, **{name: x})) for x in (array, other, wide)}
    assert len(found) == 3 and digest(batch) in found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_digests_of_parts_add_up_to_that_of_the_batch(count: int) -> None:
    batch = batch_of(5)
    home = np.random.default_rng(count).integers(count, size=(2, 4))
    whole = jax.tree.map(np.copy, batch)
    parts = []
    for process in range(count):
        own = home == process
        rows = np.flatnonzero(own.any(1)).tolist()
        part = jax.tree.map(lambda x, own=own: np.where(own, x, x.dtype.type(0)), whole)
        part = jax.tree.map(lambda x, rows=rows: x[rows], part)
        parts.append(digest(part, rows, own[rows]))
    assert add_digests(parts) == digest(batch)


def test_rows_that_change_places_change_the_digest() -> None:
    batch = batch_of(5)
    turned = jax.tree.map(lambda x: x[::-1], batch)
    assert digest(turned) != digest(batch) == digest(turned, [1, 0])


def test_a_line_that_a_kill_cut_short_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    for step in range(3):
        Ledger(path).record(step, digest(batch_of(step)))
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        Ledger(path).record(2, digest(batch_of(2)))
        assert path.read_bytes() == whole


def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    path.write_text('{"step": 0, "digest": "a"}\nnothing\n')
    with pytest.raises(InputError, match="is damaged: remove it"):
        Ledger(path).record(1, digest(batch_of(1)))


def test_the_ledger_is_the_same_on_every_mesh(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = [example.text(rng.integers(3, 400, n).tolist(), 1.0) for n in (30, 9, 17, 40)]
    for name, mesh in (("one", make_mesh()), ("ring", make_mesh(data=2, seq=4))):
        ring = mesh.shape["seq"]
        with jax.set_mesh(mesh):
            rows, ledger = PackedRows(examples, 16), Ledger(tmp_path / name)
            batches = make_batches(rows, batch=2, seed=0, ring=ring, ledger=ledger)
            for step in range(3):
                batches(step)
    assert read(tmp_path / "one") == read(tmp_path / "ring")
    assert len({found for _, found in read(tmp_path / "one")}) == 3


# ---- in a run

CONTEXT = ONE_LAYER.llama.context


def train(folder: Path, steps: int, last: int) -> None:
    """Chat and questions packed apart, half and half; the last token of all chats is `last`."""
    stage = ModelStage(
        name="tiny",
        context=CONTEXT,
        rope_theta=100.0,
        batch=2,
        loop=Loop(steps=steps, save_every=2),
        optimizer=AdamW(peak_lr=1e-3, end_lr=1e-3, warmup_steps=0, schedule="cosine"),
        mesh=MeshShape(seq=2),
        shares={"chat": 0.5, "questions": 0.5},
        vision_share=0.0,
    )

    def draw(seed: int, last: int) -> list[Example]:
        rng = np.random.default_rng(seed)
        ids = [rng.integers(3, 32, n).tolist() for n in rng.integers(3, 15, 20)]
        return [example.text([*own, last], 1.0) for own in ids]

    apart = Apart({"chat": draw(0, last), "questions": draw(1, 9)}, stage.shares)
    load = partial(fresh_weights, ONE_LAYER, 0, stage.rules)
    train_stage(stage, ONE_LAYER, load, apart, folder, lambda said: None)


def test_a_run_whose_data_changed_does_not_go_on(tmp_path: Path) -> None:
    train(tmp_path, 2, last=7)
    with pytest.raises(InputError, match="the batch of step 1 is not the one in"):
        train(tmp_path, 4, last=8)
    train(tmp_path, 4, last=7)
    assert [step for step, _ in read(tmp_path / LEDGER_FILE)] == [0, 1, 2, 3]
