"""A run survives kills, full disks, damage, other meshes and numbers that are not finite.

All of these are slow: `pytest -m slow -s tests/train/test_survival.py` prints the figures that
docs/reliability.md publishes. Short forms of them are in the ordinary suite.
"""

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run
import tiny_stage
from tiny_run import FAILPOINTS, IDENTITY, tiny_state
from tiny_stage import STAGE, STEPS, fingerprint, last_state, losses

from ringworld.data.packing.ledger import LEDGER_FILE
from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.params import paths
from ringworld.settings import MeshShape
from ringworld.train.build import TrainState, abstract_of, make_replay, make_step
from ringworld.train.checkpoint import FOLDER, Checkpoints
from ringworld.train.metrics import METRICS_NAME

pytestmark = pytest.mark.slow


def tell(name: str, **figures: Any) -> None:
    """Print the figures of a test as one line."""
    print(f"\n{name}: {json.dumps(figures)}", flush=True)


def quiet(said: str) -> None:
    """Announce to nobody."""


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same numbers, to the bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


# ---- R1: kills


def evidence(folder: Path) -> tuple[list[str], str, bytes]:
    """The losses, the last state and the ledger of the batches."""
    return losses(folder), fingerprint(last_state(folder)), (folder / LEDGER_FILE).read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_kills_change_nothing(tmp_path: Path, seed: int) -> None:
    wanted, chance, began = 50, random.Random(seed), time.perf_counter()
    for _ in range(2):  # the second has its programs compiled: how long does a run take?
        shutil.rmtree(tmp_path / "whole", ignore_errors=True)
        since = time.perf_counter()
        with tiny_stage.launch(tmp_path / "whole") as process:
            assert process.wait(300) == 0, process.stderr and process.stderr.read()
        life = time.perf_counter() - since
    whole = evidence(tmp_path / "whole")
    assert len(whole[0]) == STEPS
    kills, runs, training, differences = 0, 0, 0, 0
    while kills < wanted:
        folder, runs = tmp_path / "killed", runs + 1
        while True:
            record = folder / METRICS_NAME
            before = record.read_bytes() if record.exists() else b""
            with tiny_stage.launch(folder) as process:
                try:
                    process.wait(chance.uniform(0.2, 1.0) * life if kills < wanted else 300)
                except subprocess.TimeoutExpired:
                    process.kill()
                    kills += 1
                    training += record.exists() and record.read_bytes() != before
                    continue
            assert process.returncode == 0, process.stderr and process.stderr.read()
            break
        differences += evidence(folder) != whole
        shutil.rmtree(folder)
    seconds = round(time.perf_counter() - began)
    tell(
        "R1",
        seed=seed,
        kills=kills,
        runs=runs,
        while_training=training,
        differ=differences,
        s=seconds,
    )
    assert differences == 0 and training > wanted // 4


# ---- R2: the points of a save


def test_what_lies_on_the_disk_at_nine_points_of_twenty_saves_can_be_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, every, began = 20, 2, time.perf_counter()
    states: dict[int, Any] = {}

    def noted(state: TrainState, x: np.ndarray) -> Any:
        state, metrics = tiny_run.tiny_step(state, x)
        states[int(state.step)] = jax.device_get(state)
        return state, metrics

    run = tmp_path / "run"
    for name, (owner, attribute, calls) in FAILPOINTS.items():
        # From the third save on Orbax saves three parts, and renames three, ours and an old step.
        each, wanted = {"save": 3, "rename": 5}.get(attribute, 1), iter(range(saves))
        seen = {"calls": 0, "next": calls}
        real = getattr(owner, attribute)

        def counted(
            *args: Any,
            name: str = name,
            seen: dict[str, int] = seen,
            each: int = each,
            wanted: Any = wanted,
            real: Any = real,
            **how: Any,
        ) -> Any:
            seen["calls"] += 1
            if seen["calls"] == seen["next"] and (number := next(wanted, None)) is not None:
                seen["next"] += each
                shutil.copytree(run, tmp_path / f"{name} {number}")
            return real(*args, **how)

        monkeypatch.setattr(owner, attribute, counted)
    last = every * (saves + 3)
    tiny_run.train(run, last, every, step=noted, announce=quiet)
    monkeypatch.undo()
    lost: Counter[int] = Counter()
    for name in FAILPOINTS:
        for number in range(saves):
            folder, said = tmp_path / f"{name} {number}", list[str]()
            reached = len((folder / METRICS_NAME).read_text().splitlines())
            steps = min(reached + every, last)
            again = tiny_run.train(folder, steps, every, announce=said.append)
            assert same(again, states[steps]), (name, number)
            assert not [p for p in (folder / FOLDER).iterdir() if ".tmp" in p.name], name
            words = next(line for line in said if "step " in line).split("step ")[1]
            lost[reached - int(words.split()[0])] += 1
            shutil.rmtree(folder)
    seconds = round(time.perf_counter() - began)
    tell("R2", points=len(FAILPOINTS), saves=saves, steps_lost=dict(lost), s=seconds)
    assert lost.total() == len(FAILPOINTS) * saves and max(lost) <= every


# ---- R6: damage


def flip(path: Path, other: Path, rng: random.Random) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, other: Path, rng: random.Random) -> None:
    """Lose the end."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def blank(path: Path, other: Path, rng: random.Random) -> None:
    """Hold zeros in a block of at most 4 KiB."""
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def swap(path: Path, other: Path, rng: random.Random) -> None:
    """Change places with another file of the checkpoint."""
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)


def delete(path: Path, other: Path, rng: random.Random) -> None:
    """Be gone."""
    path.unlink()


def stale(path: Path, other: Path, rng: random.Random) -> None:
    """Be the file of the step before."""
    step = next(p for p in path.parents if p.name.startswith("step_"))
    before = step.with_name("step_00000010") / path.relative_to(step)
    path.write_bytes(before.read_bytes() if before.exists() else b"")


HARMS: list[Callable[[Path, Path, random.Random], None]] = [flip, cut, blank, swap, delete, stale]


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def put_back(folder: Path, files: dict[str, bytes]) -> None:
    """Make the files of a folder what they were."""
    for name, data in files.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != data:
            (folder / name).write_bytes(data)


def restore_bare(folder: Path, abstract: TrainState) -> dict[str, Any] | None:
    """What Orbax alone restores, all arrays by name; None when it raises an error."""
    found = {}
    try:
        for part in ("weights", "optimizer", "guard"):
            wanted = paths(getattr(abstract, part))
            how = ocp.checkpoint_utils.construct_restore_args(wanted)
            with ocp.PyTreeCheckpointer() as orbax:
                args = ocp.args.PyTreeRestore(wanted, restore_args=how)
                found |= {
                    f"{part}.{name}": np.asarray(x)
                    for name, x in orbax.restore((folder / part).absolute(), args=args).items()
                }
    except Exception:  # whatever it is, it was detected
        return None
    return found


def test_two_thousand_changes_to_a_checkpoint_are_detected(tmp_path: Path) -> None:
    wanted, rng = 2000, random.Random(0)
    with jax.set_mesh(make_mesh()):
        for step in (10, 20):
            state = jax.tree.map(lambda x, step=step: x + np.asarray(step, x.dtype), tiny_state())
            box = Checkpoints(
                folder=tmp_path / FOLDER, keep=2, milestones=(), announce=lambda said: None
            )
            box.prepare()
            box.save(replace(state, step=state.step * 0 + step), IDENTITY)
        abstract, older = abstract_of(state), tmp_path / FOLDER / "step_00000010"
        good, newest = (
            jax.device_get(box.restore(abstract, IDENTITY)),
            older.with_name("step_00000020"),
        )
        bare = restore_bare(newest, abstract)
        files = content(newest)
        ours: Counter[str] = Counter()
        theirs: Counter[str] = Counter()
        while ours.total() < wanted:
            names = rng.sample(sorted(files), 2)
            harm = HARMS[rng.randrange(len(HARMS))]
            if not files[names[0]]:
                continue
            harm(newest / names[0], newest / names[1], rng)
            if content(newest) == files:
                continue
            touched = names if harm is swap else names[:1]
            if not any("manifest" in name for name in touched):
                found = restore_bare(newest, abstract)
                silent = found is not None and any(
                    found[name].tobytes() != bare[name].tobytes() for name in bare or {}
                )
                theirs["error" if found is None else "wrong" if silent else "right"] += 1
            state = box.restore(abstract, IDENTITY)
            assert state is not None
            bad = newest.with_name("step_00000020.bad")
            if bad.exists() and int(state.step) == 10:
                ours["detected"] += 1
                os.rename(bad, newest)
            else:
                ours["the same" if same(state, good) else "wrong"] += 1
            put_back(newest, files)
    tell("R6", ours=dict(ours), orbax_alone=dict(theirs), of_them=theirs.total())
    assert ours == {"detected": wanted}


# ---- R7: a full disk


def test_a_run_on_a_disk_that_is_full_goes_on_when_there_is_space(tmp_path: Path) -> None:
    """On a file system of 1 MB in memory, in a mount namespace of its own."""
    disk, here = tmp_path / "disk", Path(__file__).parent
    disk.mkdir()
    program = f"""
import shutil, sys
from pathlib import Path
sys.path.insert(0, {str(here.parent)!r})
from tiny_run import train
from ringworld.errors import InputError
from ringworld.train.checkpoint import FOLDER
disk = Path({str(disk)!r})
whole = train(Path({str(tmp_path / "whole")!r}), 12, 3, announce=len)
train(disk / "run", 6, 3, announce=len)
free = shutil.disk_usage(disk).free
said = []
for left in range(0, free, max(free // 12, 1)):
    (disk / "ballast").write_bytes(bytes(max(free - left - 4096, 0)))
    try:
        train(disk / "run", 12, 3, announce=len)
    except InputError as error:
        said.append(str(error))
        names = sorted(p.name for p in (disk / "run" / FOLDER).iterdir())
        assert not [n for n in names if "tmp" in n], names
        assert names, "a checkpoint was lost"
    else:
        break
(disk / "ballast").unlink()
state = train(disk / "run", 12, 3, announce=len)
import jax, numpy as np
pairs = zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True)
assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
assert said and all("free" in line or "could not be written" in line for line in said), said
print(len(said), said[0])
"""
    mount = f'mount -t tmpfs -o size=1m tmpfs {disk} && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount, program], capture_output=True, text=True
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"needs a mount namespace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    tell("R7", times_full=int(done.stdout.split()[0]), said=done.stdout.split(" ", 1)[1].strip())


# ---- R8: meshes

MESHES = [
    MeshShape(data=a, fsdp=b, seq=c, tensor=d)
    for a, b, c, d in (
        (1, 1, 1, 1),
        (1, 1, 8, 1),
        (1, 2, 2, 2),
        (2, 1, 4, 1),
        (2, 2, 1, 2),
        (4, 1, 1, 2),
        (1, 4, 2, 1),
        (1, 1, 4, 2),
    )
]


def test_a_run_goes_on_from_each_of_eight_meshes_on_each(tmp_path: Path) -> None:
    loop = replace(STAGE.loop, steps=6, save_every=3)
    half = replace(loop, steps=3)
    # At a constant rate the first half of a run is a run of half as many steps.
    constant = replace(STAGE.optimizer, schedule="constant")
    train = partial(tiny_stage.train, announce=quiet, optimizer=constant)
    worst, ledgers = 0.0, set()
    for n, mesh in enumerate(MESHES):
        train(tmp_path / f"{n}", mesh=mesh, loop=half)
    reference = tmp_path / "reference"
    train(reference, mesh=MESHES[0], loop=loop)
    wanted = [float.fromhex(loss) for loss in losses(reference)]
    for (n, before), after in product(enumerate(MESHES), MESHES):
        folder = tmp_path / "run"
        shutil.copytree(tmp_path / f"{n}", folder)
        states = [last_state(folder, mesh=mesh, loop=half) for mesh in (before, after)]
        assert same(*states), (before, after)
        train(folder, mesh=after, loop=loop)
        found = [float.fromhex(loss) for loss in losses(folder)]
        worst = max(worst, *(abs(a / b - 1) for a, b in zip(found, wanted, strict=True)))
        ledgers.add((folder / LEDGER_FILE).read_bytes())
        shutil.rmtree(folder)
    tell("R8", pairs=len(MESHES) ** 2, worst_loss=worst, ledgers=len(ledgers))
    assert worst <= 1e-5 and ledgers == {(reference / LEDGER_FILE).read_bytes()}


# ---- R9: numbers that are not finite, spikes, and devices that compute wrongly

FAULTS = ("loss nan", "loss inf", "gradient nan", "gradient inf", "gradient x1000", "batch x100")


@jax.custom_vjp
def spoil(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x; its gradient is multiplied by the factor, which is 1 where nothing is wrong."""
    return x


spoil.defvjp(lambda x, factor: (x, factor), lambda factor, g: (g * factor, jnp.zeros_like(factor)))


def faulty_loss(weights: tiny_run.Tiny, batch: dict[str, Any]) -> tuple[jax.Array, Any]:
    """The loss of a tiny run whose value and one gradient are multiplied by what the batch says."""
    weights = replace(weights, outer=spoil(weights.outer, batch["gradient"]))
    value, metrics = tiny_run.loss_of(weights, batch["x"])
    return value * jnp.asarray(batch["loss"]), metrics


def faulty_batch(step: int, bad: int, fault: str) -> dict[str, Any]:
    """The batch of a step, which is wrong at the step `bad`."""
    made = {"x": tiny_run.batch(step), "loss": np.float32(1), "gradient": np.float32(1)}
    if step == bad and fault:
        name, _, how = fault.partition(" ")
        name = {"batch": "x"}.get(name, name)
        made[name] = np.float32(how.removeprefix("x")) * made[name]
    return made


def test_a_hundred_faults_in_a_step_change_no_weight_and_are_counted(tmp_path: Path) -> None:
    steps, rng = 200, random.Random(0)
    step = make_step(faulty_loss, tiny_run.OPTIMIZER)

    def run(bad: int, fault: str) -> list[dict[str, Any]]:
        def watched(state: TrainState, batch: dict[str, Any]) -> Any:
            if not fault or int(state.step) != bad:
                return step(state, batch)
            before = jax.device_get((state.weights, state.optimizer))
            state, metrics = step(state, batch)
            assert same(before, (state.weights, state.optimizer)), fault
            return state, metrics

        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        batches = partial(faulty_batch, bad=bad, fault=fault)
        how = {"step": watched, "batches": batches, "announce": quiet}
        state = jax.device_get(tiny_run.train(tmp_path / "run", steps, 50, **how))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        assert int(state.step) == steps
        lines = (tmp_path / "run" / METRICS_NAME).read_text().splitlines()
        return [json.loads(line) for line in lines]

    calm = {row["step"] for row in run(0, "") if row["skipped"]}
    found: Counter[str] = Counter()
    for _ in range(100):
        bad, fault = rng.randrange(70, steps), rng.choice(FAULTS)
        rows = run(bad, fault)
        assert rows[bad]["skipped"] == 1, (bad, fault)
        assert rows[-1]["skips"] == sum(row["skipped"] for row in rows)
        found[fault] += 1
    tell("R9", faults=found.total(), of_each=dict(found), skipped_without_a_fault=len(calm))


def test_a_hundred_flipped_bits_in_a_gradient_are_seen_by_the_replay() -> None:
    rng, plan = random.Random(0), {"calls": 0, "bad": -1}

    def upset(g: np.ndarray) -> np.ndarray:
        """The gradient, with one bit flipped in the call that the plan names."""
        plan["calls"] += 1
        data = bytearray(np.ascontiguousarray(g).tobytes())
        if plan["calls"] == plan["bad"]:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return np.frombuffer(bytes(data), g.dtype).reshape(g.shape)

    @jax.custom_vjp
    def unsound(x: jax.Array) -> jax.Array:
        return x

    def backward(_: None, g: jax.Array) -> tuple[jax.Array]:
        return (jax.pure_callback(upset, jax.ShapeDtypeStruct(g.shape, g.dtype), g),)

    unsound.defvjp(lambda x: (x, None), backward)

    def loss(weights: tiny_run.Tiny, x: Any) -> tuple[jax.Array, Any]:
        return tiny_run.loss_of(replace(weights, inner=unsound(weights.inner)), x)

    replay, seen, alarms = make_replay(loss, tiny_run.OPTIMIZER), 0, 0
    for n in range(200):
        plan |= {"calls": 0, "bad": rng.choice((1, 2)) if n % 2 else -1}
        try:
            replay(tiny_state(), tiny_run.batch(n))
        except InputError:
            seen, alarms = seen + n % 2, alarms + (n + 1) % 2
    tell("R9, replay", flipped=100, seen=seen, false_alarms=alarms)
    assert (seen, alarms) == (100, 0)


def test_what_follows_a_step_at_a_hundred_times_the_peak_rate(tmp_path: Path) -> None:
    steps, bad, config = 400, 200, tiny_run.CONFIG
    times = 100 * config.peak_lr / config.end_lr  # the schedule is at its end by then
    step = make_step(tiny_run.loss_of, tiny_run.OPTIMIZER)

    def leaping(state: TrainState, x: np.ndarray) -> Any:
        leap = int(state.step) == bad
        before = jax.device_get(state.weights)
        state, metrics = step(state, x)
        if leap:
            far = jax.tree.map(lambda new, old: old + times * (new - old), state.weights, before)
            state = replace(state, weights=far)
        return state, metrics

    tiny_run.train(tmp_path, steps, 100, step=leaping, announce=quiet)
    rows = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    skipped = [row["step"] for row in rows if row["skipped"]]
    around = [round(rows[n]["loss"], 3) for n in (bad - 1, bad, bad + 1, steps - 1)]
    tell("R9, rate x100", at=bad, skipped=skipped, losses=around)
    assert skipped and skipped[0] == bad + 1


# ---- R10: five thousand steps


def memory_mb() -> float:
    """The resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_five_thousand_steps_keep_memory_and_open_files_constant(tmp_path: Path) -> None:
    steps, every, first = 5000, 20, 1000
    seen: list[tuple[int, float, int]] = []

    def batch(step: int) -> np.ndarray:
        if step % 100 == 0:
            gc.collect()
            seen.append((step, memory_mb(), len(os.listdir("/proc/self/fd"))))
        return tiny_run.batch(step)

    began = time.perf_counter()
    tiny_run.train(tmp_path, steps, every, batches=batch, announce=quiet)
    wall = time.perf_counter() - began
    settled = np.array([row for row in seen if row[0] >= first])
    slope = 1000 * np.polyfit(settled[:, 0], settled[:, 1], 1)[0]
    files = sorted(set(settled[:, 2].astype(int).tolist()))
    rows = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    tell(
        "R10",
        steps=len(rows),
        saves=steps // every,
        mb_a_thousand_steps=round(float(slope), 3),
        mb=[round(float(x), 1) for x in (settled[0, 1], settled[-1, 1])],
        files=files,
        in_steps=round(sum(row["seconds"] for row in rows) / wall, 3),
        s=round(wall),
    )
    assert len(files) <= 2 and len(rows) == steps
    # Later versions of Orbax keep 3 to 6 MB: docs/decisions/0002-orbax-with-a-manifest.md.
    assert slope < 1  # MB in a thousand steps
