"""The coordinator as a process: up without torch, killed and back on its port, stopped by signals, ended at last."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dimat.cli.coordinator import coordinator_command
from dimat.config import RunConfig
from dimat.coordinator import Store
from dimat.coordinator.service import run_coordinator
from dimat.errors import ConfigError, UsageError
from dimat.messages import Heartbeat, Join, Report
from dimat.transport.grpc import GrpcControl

CONFIG = ["agents=2", "rounds=4", "topology.graph=complete"]

MAIN = """
import sys
from pathlib import Path
from dimat.cli.coordinator import coordinator_command
code = coordinator_command(None, sys.argv[2:], Path(sys.argv[1]), format="json")
print("torch" in sys.modules)
sys.exit(code)
"""


@contextmanager
def coordinator(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A coordinator in a fresh interpreter, and its address."""
    process = subprocess.Popen([sys.executable, "-c", MAIN, str(folder), *CONFIG], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())["address"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def introduce(control: GrpcControl, agent: int) -> None:
    control.join(Join(agent, "s", f"127.0.0.1:{9000 + agent}", "f", 8), timeout_s=20.0)


def join_both(controls: list[GrpcControl]) -> None:
    threads = [threading.Thread(target=introduce, args=pair[::-1]) for pair in enumerate(controls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def two_agents(address: str) -> Iterator[list[GrpcControl]]:
    controls = [GrpcControl(address, retry_s=0.05) for _ in range(2)]
    try:
        join_both(controls)
        yield controls
    finally:
        for control in controls:
            control.close(1.0)


@pytest.mark.e2e
def test_killed_and_started_again_it_has_lost_nothing_and_needs_no_torch(tmp_path: Path) -> None:
    with coordinator(tmp_path) as (process, address), two_agents(address) as controls:
        for agent, control in enumerate(controls):
            control.report(Report(agent, "s", 1, {"accuracy": 0.5}))
        controls[0].report(Report(0, "s", 2, {"accuracy": 0.6}))
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Store.open(tmp_path, read_only=True) as store:
            assert [(report.round, report.agent) for report in store.reports()] == [(1, 0), (1, 1), (2, 0)]
        controls[1].report(Report(1, "s", 2, {"accuracy": 0.8}))  # nobody there: kept
        with coordinator(tmp_path) as (again, same_address):
            assert same_address == address
            with Store.open(tmp_path, read_only=True) as store:
                _wait_until(lambda: _beaten(controls[0], 2) and len(store.summaries()) == 2)
                assert store.summaries()[1].mean_accuracy == pytest.approx(0.7)
            for round in (3, 4):
                for agent, control in enumerate(controls):
                    control.report(Report(agent, "s", round, {}))
            for agent, control in enumerate(controls):
                control.heartbeat(Heartbeat(agent, "s", 4, "", done=True))
            assert again.stdout is not None
            ended, has_torch = again.stdout.read().splitlines()
            assert json.loads(ended)["kind"] == "rounds"
            assert has_torch == "False"
            assert again.wait() == 0
    with Store.open(tmp_path, read_only=True) as store:
        assert store.outcome().reason == "all 4 rounds are done"
        assert len(store.reports()) == 8


@pytest.mark.e2e
def test_the_first_signal_names_a_round_and_serves_on_until_agents_have_left(tmp_path: Path) -> None:
    with coordinator(tmp_path) as (process, address), two_agents(address) as controls:
        controls[0].report(Report(0, "s", 1, {}))
        process.send_signal(signal.SIGINT)
        _wait_until(lambda: controls[0].heartbeat(Heartbeat(0, "s", 2, "train")).stop_after == 2)
        for agent, round in ((1, 1), (0, 2), (1, 2)):
            assert controls[agent].report(Report(agent, "s", round, {})).stop_after == 2
        for agent in (0, 1):
            controls[agent].heartbeat(Heartbeat(agent, "s", 2, "", done=True))
        assert process.wait(20) == 130
        kinds = [json.loads(line)["kind"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
        assert kinds[-1] == "ended"
        assert kinds.count("stop") == 1


@pytest.mark.e2e
def test_the_second_signal_ends_it_now(tmp_path: Path) -> None:
    with coordinator(tmp_path) as (process, address), two_agents(address) as controls:
        process.send_signal(signal.SIGTERM)
        _wait_until(lambda: controls[0].heartbeat(Heartbeat(0, "s", 1, "train")).stop_after is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) != 0
    with Store.open(tmp_path, read_only=True) as store:
        assert store.outcome() is None


def test_a_port_in_use_is_refused_when_asked_for_and_avoided_when_only_recorded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}"):
            coordinator_command(None, CONFIG, tmp_path / "run", port=port)
        assert not (tmp_path / "run").exists()
        with Store.open(tmp_path) as store, store.transaction():
            store.put_meta("address", f"127.0.0.1:{port}")
        address = _serve_briefly(RunConfig(agents=2), tmp_path)
        assert not address.endswith(f":{port}")


def test_a_folder_of_another_config_is_refused(tmp_path: Path) -> None:
    _serve_briefly(RunConfig(agents=2), tmp_path)
    with pytest.raises(ConfigError, match="belongs to a run of another config"):
        run_coordinator(RunConfig(agents=3), tmp_path, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["agents=1"], "agents: "),
        (["topology.graph=rnig"], "Did you mean 'ring'"),
        (["stop.patience=0"], "stop.patience: "),
    ],
)
def test_bad_input_starts_nothing_and_writes_nothing(tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        coordinator_command(None, settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_importing_it_leaves_torch_alone() -> None:
    modules = [path.stem for path in Path("dimat/coordinator").glob("[a-z]*.py")]
    assert {"core", "service", "membership"} <= set(modules)
    code = "import sys; " + "; ".join(f"import dimat.coordinator.{name}" for name in modules)
    code += "; import dimat.cli.coordinator; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _serve_briefly(config: RunConfig, folder: Path) -> str:
    """Start a coordinator in a thread, end it by two agents that join and leave; returns its address."""
    addresses: list[str] = []
    ready = threading.Event()

    def tell(address: str) -> None:
        addresses.append(address)
        ready.set()

    service = threading.Thread(
        target=run_coordinator, args=(config, folder, 1), kwargs={"on_address": tell, "grace_s": 0.0}
    )
    service.start()
    assert ready.wait(20.0)
    with two_agents(addresses[0]) as controls:
        for agent, control in enumerate(controls):
            control.heartbeat(Heartbeat(agent, "s", 0, "", done=True))
        service.join(20.0)
    assert not service.is_alive()
    return addresses[0]


def _beaten(control: GrpcControl, round: int) -> bool:
    """Agent 0 says that it lives, as agents do all the time: else its lease is waited for."""
    control.heartbeat(Heartbeat(0, "s", round, "train"))
    return True


def _wait_until(happened) -> None:
    deadline = time.monotonic() + 20.0
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # the other side is another process
