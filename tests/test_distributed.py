"""Many processes are as good as one: the same numbers, files and sentences, and no one is left."""

import json
import re
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ringworld import distributed
from ringworld.coordinator import Coordinator, find_coordinator
from ringworld.data.packing.ledger import LEDGER_FILE
from ringworld.distributed import find_place, join_processes
from ringworld.errors import InputError, UnavailableError
from ringworld.settings import Processes
from ringworld.train.checkpoint import FOLDER, find_steps
from ringworld.train.metrics import METRICS_NAME
from ringworld.train.stage import MODEL
from tests import worlds
from tests.worlds import STAGE, STEPS, STOP_AT, find_port, launch, wait_for

WORLDS = {
    2: ("program", "fresh", "begun", "stopped", "copy", "use", "refuse"),
    4: ("program", "fresh", "stopped", "copy"),
}
# Sums over devices of two processes are made in another order than over those of one.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Ran:
    """What one process and a world of `count` left in a folder, and what each check found."""

    count: int
    one: Path
    folder: Path
    alone: Mapping[str, Any]

    def found(self, check: str) -> list[dict[str, Any]]:
        """What each process found."""
        return [
            json.loads((self.folder / f"{check}-{process}.json").read_text())
            for process in range(self.count)
        ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What one process with four devices does: a run, a run that was stopped, and what it uses."""
    folder = tmp_path_factory.mktemp("one")
    found = {
        "fresh": worlds.train(folder / "fresh"),
        "begun": worlds.train_until_stopped(folder / "begun"),
        "use": worlds.use(folder),
    }
    return folder, found


@pytest.fixture(scope="module", params=sorted(WORLDS))
def ran(
    request: pytest.FixtureRequest,
    alone: tuple[Path, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Ran:
    """One world that has made all its checks."""
    count, (one, found) = request.param, alone
    folder = tmp_path_factory.mktemp(f"world-{count}")
    shutil.copytree(one / "begun", folder / "begun")
    shutil.copytree(one / "fresh" / STAGE.name / MODEL, folder / "model")
    ended = wait_for(launch([[worlds.__file__, folder, *WORLDS[count]]] * count))
    assert [one.code for one in ended] == [0] * count, "\n".join(one.err for one in ended)
    return Ran(count, one, folder, found)


def losses(folder: Path) -> list[float]:
    lines = (folder / STAGE.name / METRICS_NAME).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(len(rows))) and len(rows) >= STEPS
    return [row["loss"] for row in rows]


def check_same_run(found: Path, wanted: Path) -> None:
    """Both folders hold one run: the same losses to rounding, and the same batches to the bit."""
    np.testing.assert_allclose(losses(found), losses(wanted), rtol=ROUNDING)
    ledgers = [(folder / STAGE.name / LEDGER_FILE).read_bytes() for folder in (found, wanted)]
    assert ledgers[0] == ledgers[1]
    assert find_steps(found / STAGE.name / FOLDER) == find_steps(wanted / STAGE.name / FOLDER)


def needs(ran: Ran, check: str) -> None:
    if check not in WORLDS[ran.count]:
        pytest.skip(f"{ran.count} processes do not check this")


def test_every_process_compiles_the_same_program(ran: Ran) -> None:
    """Else their collectives would wait for each other in another order, and for ever."""
    assert len({found["sha256"] for found in ran.found("program")}) == 1


def test_processes_train_as_one_does(ran: Ran) -> None:
    check_same_run(ran.folder / "fresh", ran.one / "fresh")


def test_a_process_opens_only_the_examples_that_its_devices_need(ran: Ran) -> None:
    opened = [set(found["opened"]) for found in ran.found("fresh")]
    everything = set(ran.alone["fresh"]["opened"])
    assert set().union(*opened) == everything
    assert all(len(own) < 0.9 * len(everything) for own in opened)


def test_processes_go_on_from_the_checkpoint_of_one(ran: Ran) -> None:
    needs(ran, "begun")
    assert "going on from step" in "".join(ran.found("begun")[0]["said"])
    check_same_run(ran.folder / "begun", ran.one / "fresh")


def test_sigterm_to_one_process_makes_all_save_the_same_step_and_one_process_goes_on(
    ran: Ran, tmp_path: Path
) -> None:
    said = [found["said"] for found in ran.found("stopped")]
    assert len(set(said)) == 1 and "the same command to go on" in said[0]
    saved = find_steps(ran.folder / "stopped" / STAGE.name / FOLDER)
    assert STOP_AT < saved[-1] < STEPS
    shutil.copytree(ran.folder / "stopped", tmp_path / "again")
    worlds.train(tmp_path / "again")
    check_same_run(tmp_path / "again", ran.one / "fresh")


def test_a_model_folder_is_read_and_written_by_its_parts_and_is_that_of_one_process(
    ran: Ran,
) -> None:
    for file in sorted(path for path in (ran.folder / "model").rglob("*") if path.is_file()):
        copied = ran.folder / "copy" / file.relative_to(ran.folder / "model")
        assert copied.read_bytes() == file.read_bytes(), file.name
    found = ran.found("copy")
    whole = found[0]["whole"]
    assert sum(one["written"] for one in found) == whole
    for one in found:
        assert one["read"] == one["held"]
        # The norms are whole on every device; the others are divided over all four.
        assert one["held"] < 1.05 * whole / ran.count
        assert one["written"] < 1.05 * whole / ran.count


def test_initial_weights_are_made_in_parts_and_are_those_of_one_process(ran: Ran) -> None:
    made = ran.one / "fresh" / "fresh" / MODEL
    for file in sorted(path for path in made.rglob("*") if path.is_file()):
        copied = ran.folder / "alone" / "fresh" / MODEL / file.relative_to(made)
        assert copied.read_bytes() == file.read_bytes(), file.name
    for one in ran.found("copy"):
        assert one["begun"] < 1.05 * one["whole"] / ran.count


def test_what_processes_compute_of_a_model_is_what_one_does(ran: Ran) -> None:
    needs(ran, "use")
    wanted = ran.alone["use"]
    for found in ran.found("use"):
        np.testing.assert_allclose(found.pop("losses"), wanted["losses"], rtol=1e-5, atol=1e-5)
        assert found == {name: wanted[name] for name in found}


@pytest.mark.parametrize(
    ("world", "said"),
    [
        ("mesh", "the mesh 1x1x2x1 .* is of 2 devices and the 2 processes have 4"),
        ("too large", "the mesh 1x1x64x1 .* is of 64 devices and the 2 processes have 4"),
        ("recipe", "process 1 has another stages.0.seed than process 0"),
        ("data", "process 1 has another sha256.data.texts than process 0"),
        ("shared", "own-1 of process 1 is not the folder of process 0|own-0 of process 1"),
        ("clocks", "the clock of process 1 is 3,600 s ahead of that of process 0"),
        ("alone", "a codec is trained by one process and 2 are here"),
    ],
)
def test_a_wrong_world_has_one_sentence_on_every_process(ran: Ran, world: str, said: str) -> None:
    needs(ran, "refuse")
    for found in ran.found("refuse"):
        assert re.search(said, found[world]), found[world]


# ---- who is there

LAUNCHERS = {
    "slurm": {
        "SLURM_JOB_ID": "5000",
        "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    },
    "open mpi 4": {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    },
    "open mpi 5": {
        "JAX_COORDINATOR_ADDRESS": "node07:8476",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "3",
    },
    "jobset": {
        "JAX_COORDINATOR_ADDRESS": "ringworld-train-0-0.ringworld:8476",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3",
        "JOB_COMPLETION_INDEX": "3",
    },
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_says_who_is_there(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    place = find_place(Processes())
    assert place is not None and (place.count, place.index) == (4, 3)
    host = {"slurm": "node07", "open mpi 4": "10.96.0.1", "open mpi 5": "node07"}
    assert place.address.startswith(host.get(launcher, "ringworld-train-0-0.ringworld"))
    assert find_place(Processes(processes=1)) is None


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", None)
    assert find_place(Processes()) is None and join_processes(Processes(), print) == 1
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert join_processes(Processes(), print) == 1
    assert (distributed.process_count(), distributed.index(), distributed.is_first()) == (
        1,
        0,
        True,
    )
    assert distributed.exchange_texts("said") == ["said"] and distributed.first_says({"a": 1}) == {
        "a": 1
    }
    assert not distributed.fail("nobody hears it", 1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Processes(processes=2), "the coordinator and process of several processes is not known"),
        (Processes(coordinator="a:1", processes=2, process=2), "the process is 2 of 2"),
        (Processes(coordinator="host", processes=2, process=0), "the coordinator is host: give"),
    ],
)
def test_processes_that_do_not_fit_together_are_refused(asked: Processes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_place(asked)


def test_a_coordinator_that_does_not_answer_is_named_with_the_time_waited() -> None:
    asked = Processes(
        coordinator=f"127.0.0.1:{find_port()}", processes=2, process=1, join_timeout=1
    )
    with pytest.raises(UnavailableError, match=r"at 127.0.0.1:\d+ within 1 s \(connection refused"):
        join_processes(asked, print)


def test_a_coordinator_has_its_port_alone_and_frees_it_when_process_0_has_ended() -> None:
    address = f"127.0.0.1:{find_port()}"
    first = Coordinator(address, 2, 10)
    with pytest.raises(UnavailableError, match="cannot listen at .*: give another port"):
        Coordinator(address, 2, 10)
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as within:
        first.shutdown()
        second = start_in_time(address)
        within.settimeout(0.5)
        with pytest.raises(TimeoutError):  # the service greets it, and does not hang up
            while within.recv(1 << 10):
                pass
    second.shutdown()


def start_in_time(address: str) -> Coordinator:
    """A coordinator at an address that becomes free within seconds."""
    for _ in range(20):
        with suppress(UnavailableError):
            return Coordinator(address, 2, 10)
        time.sleep(0.1)
    pytest.fail(f"{address} is not free")


# ---- the command line


def toys(folder: Path, *more: str) -> list[str | Path]:
    """The command that trains the recipe of these tests."""
    return [worlds.__file__, "ringworld", "train", "toys", "--folder", folder, *more]


def test_a_process_that_others_do_not_join_says_so(tmp_path: Path) -> None:
    started = launch([toys(tmp_path / "run", "--join-timeout", "2")] * 2)
    started.pop().kill()
    (ended,) = wait_for(started)
    assert ended.code == 2 and not (tmp_path / "run").exists()
    assert re.fullmatch(r"ringworld: 2 processes did not meet at .* within 2 s: .*\n", ended.err)


def test_processes_with_different_commands_end_with_one_sentence(tmp_path: Path) -> None:
    """The second time at the same address, where a coordinator still tells who is gone."""
    run, port = tmp_path / "run", find_port()
    for _ in range(2):
        ended = wait_for(launch([toys(run), toys(run, "--stages.1.seed", "7")], port=port))
        assert [one.code for one in ended] == [2, 2] and not run.exists()
        said = ended[0].err
        assert said.startswith("ringworld: process 1 has another stages.1.seed than process 0")
        assert len(said.splitlines()) == 1 and ended[1].err == ended[1].out == ""


def test_sigterm_ends_a_process_that_waits_for_the_others(tmp_path: Path) -> None:
    port = find_port()
    waiting, absent = launch([toys(tmp_path / "run")] * 2, port=port)
    absent.kill()
    find_coordinator(f"127.0.0.1:{port}", 60)
    time.sleep(1)
    waiting.terminate()
    assert wait_for([waiting], timeout=30)[0].code in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_a_process_that_fails_alone_ends_all_with_its_sentence(tmp_path: Path) -> None:
    """The second process lacks the text that the first one reads, by the same words."""
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "book.txt").write_text("The ring of eight. " * 500)
    words = ["eval", "perplexity", str(worlds.NANO), "--text", "book.txt", "--mesh.seq", "4"]
    ended = wait_for(launch([[worlds.__file__, "ringworld", *words]] * 2, folders))
    assert [one.code for one in ended] == [2, 2]
    assert ended[0].err.splitlines()[-1].startswith("ringworld: process 1: book.txt is no UTF-8")
    assert ended[1].err == ended[1].out == ""


@pytest.mark.slow
def test_what_is_typed_at_the_first_process_is_asked_on_all() -> None:
    chat = [worlds.__file__, "ringworld", "chat", worlds.NANO, "--mesh.seq", "4"]
    typed = "Who are you?\n/tokens\nWho am I?\n"
    alone, *others = (wait_for(launch([chat] * count, typed=typed)) for count in (1, 2))
    (whole,), ((first, second),) = alone, others
    assert whole.code == first.code == second.code == 0, (first.err, second.err)
    assert first.out == whole.out != "" and second.out == second.err == ""


# ---- survival

LONG = ("--stages.1.loop.steps", "30", "--data.pause", "0.02")
AGAIN = 60  # seconds in which the others have to notice that one is gone
GRACE = 30  # seconds between SIGTERM and SIGKILL of most launchers


def wait_for_save(folder: Path, more_s: float) -> None:
    """Wait until a run has saved something, and so much longer."""
    while not find_steps(folder / STAGE.name / FOLDER):
        time.sleep(0.05)
    time.sleep(more_s)


def when_recorded(folder: Path) -> int:
    """When the run's metrics were written last, in nanoseconds; 0 before that."""
    record = folder / STAGE.name / METRICS_NAME
    return record.stat().st_mtime_ns if record.exists() else 0


def finish(folder: Path, count: int, port: int | None = None) -> None:
    """Go on with a run to its end, in so many processes."""
    ended = wait_for(launch([toys(folder, *LONG)] * count, port=port))
    assert [one.code for one in ended] == [0] * count, ended


def check_equal_bits(found: Path, wanted: Path) -> None:
    for name in (LEDGER_FILE, f"{MODEL}/model.safetensors"):
        there, here = (folder / STAGE.name / name for folder in (found, wanted))
        assert there.read_bytes() == here.read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(("count", "victim"), [(2, 0), (2, 1), (4, 0), (4, 2)])
def test_when_a_process_is_killed_the_others_end_and_the_restart_is_the_run_that_was_not(
    tmp_path: Path, count: int, victim: int
) -> None:
    finish(tmp_path / "whole", count)
    run, port = tmp_path / "run", find_port()
    started = launch([toys(run, *LONG)] * count, port=port)
    wait_for_save(run, np.random.default_rng((count, victim)).uniform(0, 1))
    killed = started.pop(victim)
    killed.kill()
    killed.communicate()
    ended = wait_for(started, timeout=AGAIN)
    assert [one.code for one in ended] == [1] * (count - 1)
    told = [line for one in ended for line in one.err.splitlines() if line.startswith("ringworld:")]
    assert told and all(f"process {victim}" in line and "is gone" in line for line in told)
    assert all(len(one.err.splitlines()) <= 20 for one in ended)
    shutil.copytree(run, tmp_path / "other")
    finish(run, count, port)
    check_equal_bits(run, tmp_path / "whole")
    finish(tmp_path / "other", 3 - count // 2)  # 2 after 2, 1 after 4
    check_same_run(tmp_path / "other", tmp_path / "whole")


@pytest.mark.slow
def test_a_process_may_come_to_a_sum_later_than_gloo_waits(tmp_path: Path) -> None:
    ended = wait_for(launch([[worlds.__file__, tmp_path, "late"]] * 2))
    assert [one.code for one in ended] == [0, 0], "\n".join(one.err for one in ended)
    for process in range(2):
        found = json.loads((tmp_path / f"late-{process}.json").read_text())
        assert found["sum"] == found["devices"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_sigterm_at_random_moments_saves_one_step_and_the_run_is_that_of_one_undisturbed(
    tmp_path: Path, count: int
) -> None:
    rng = np.random.default_rng(count)
    finish(tmp_path / "whole", count)
    run, stops, port = tmp_path / "run", 0, find_port()
    while not (run / STAGE.name / MODEL).exists():
        before = when_recorded(run)
        started = launch([toys(run, *LONG)] * count, port=port)
        while when_recorded(run) == before and None in [process.poll() for process in started]:
            time.sleep(0.05)
        time.sleep(float(rng.uniform(0, 8)))
        started[int(rng.integers(count))].send_signal(signal.SIGTERM)
        ended = wait_for(started, timeout=GRACE + 60)
        codes = {one.code for one in ended}
        said = "\n".join(one.err for one in ended)
        assert len(codes) == 1 and codes <= {0, 130, 143}, f"{codes} after {stops} stops:\n{said}"
        stops += codes != {0}
    assert stops
    check_equal_bits(run, tmp_path / "whole")
