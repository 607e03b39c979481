"""However a run ends, nothing of it is left: no process, no port. Signals of all kinds, to `dimat run` and past it."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dimat.coordinator import Store
from dimat.runfolder import processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SETTINGS = ["task.model.name=mlp", "task.model.hidden=[8]", "agents=3", "topology.graph=path", "rounds=5000"]
FLAGS = [part for setting in SETTINGS for part in ("-s", setting)]
Run = tuple["subprocess.Popen[str]", Path]


def wait_until(what: Callable[[], object], timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)  # other processes have no event to wait for


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """`dimat run` in the middle of its rounds; what a failed test leaves is ended by id."""
    folder = tmp_path / "run"

    def start(*words: str) -> Run:
        command = [sys.executable, "-m", "dimat", "run", *FLAGS, "--out", str(folder), *words]
        with (tmp_path / "log").open("w") as log:
            run = subprocess.Popen(command, stdout=log, stderr=log, text=True, start_new_session=True)
        started.append(run)
        wait_until(lambda: run.poll() is not None or len(list(folder.glob("checkpoints/*/2.json"))) == 3)
        assert run.poll() is None, (tmp_path / "log").read_text()
        return run, folder

    started: list[subprocess.Popen[str]] = []
    yield start
    for run in started:
        if run.poll() is None:
            run.kill()
        run.wait()
    for entry in processes(folder):
        with suppress(psutil.Error):  # gone, or gone and not yet collected
            left = psutil.Process(entry["pid"])
            if str(folder) in left.cmdline():
                left.kill()


def family(run: "subprocess.Popen[str]") -> list[psutil.Process]:
    """`dimat run`, launchers, agents and the coordinator."""
    parent = psutil.Process(run.pid)
    return [parent, *parent.children(recursive=True)]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_nothing_is_left(members: list[psutil.Process], folder: Path) -> None:
    assert len(members) >= 6, "a run, a coordinator, launchers, agents"
    assert not [process for process in members if alive(process)]
    for entry in processes(folder):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            host, port = entry["address"].rsplit(":", 1)
            probe.bind((host, int(port)))  # raises where somebody still listens


def last_rounds(folder: Path) -> set[int]:
    with Store.open(folder, read_only=True) as store:
        reports = store.reports(sketches=False)
    return {max(report.round for report in reports if report.agent == agent) for agent in range(3)}


def test_one_sigterm_ends_a_launcher_per_agent_after_the_same_round(begin: Callable[..., Run]) -> None:
    run, folder = begin("--launch", "per-agent")
    members = family(run)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=120) == 130
    assert len(last_rounds(folder)) == 1
    assert_nothing_is_left(members, folder)


def test_a_run_whose_command_is_killed_stops_in_order(begin: Callable[..., Run]) -> None:
    """Nothing can be done in `dimat run` itself: the coordinator notices that it is gone."""
    run, folder = begin()
    members = family(run)
    run.kill()
    run.wait()
    wait_until(lambda: not any(alive(process) for process in members))
    assert_nothing_is_left(members, folder)
    assert len(last_rounds(folder)) == 1
    assert max(last_rounds(folder)) < 5000
    with Store.open(folder, read_only=True) as store:
        outcome = store.outcome()
    assert outcome is not None and outcome.kind == "interrupted" and "has ended" in outcome.reason


def test_a_command_and_all_agents_that_are_killed_leave_no_coordinator(begin: Callable[..., Run]) -> None:
    run, folder = begin("-s", "membership.lease_s=3")
    members = family(run)
    [coordinator] = [entry["pid"] for entry in processes(folder) if entry["role"] == "coordinator"]
    for process in members:
        if process.pid != coordinator:
            process.kill()
    run.wait()
    wait_until(lambda: not any(alive(process) for process in members))
    assert_nothing_is_left(members, folder)
