"""The commands as a user types them: real processes, torchrun, gRPC on loopback."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from dimat.config import load_config
from dimat.coordinator import Store
from dimat.errors import UsageError
from dimat.messages import Report
from dimat.runfolder import prepare, processes
from dimat.simulate import simulate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SMALL = [
    "task.model.name=mlp",
    "task.model.hidden=[16]",
    "train.epochs=1",
    "train.batch_size=64",
    "agents=3",
    "topology.graph=path",
    "rounds=4",
]
# Long enough to be interrupted in the middle, whatever the machine.
LONG = [*SMALL, "rounds=60"]
ONE_WAY = f"{Path(__file__).parents[1] / 'one_way.py'}:ring"

Start = Callable[..., "subprocess.Popen[str]"]


def flags(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("-s", setting)]


@cache
def simulated(*settings: str, round: int) -> tuple[bytes, ...]:
    """Every agent's checkpoint of a round where these settings are simulated, computed once for all tests."""
    config = load_config(None, list(settings))
    with TemporaryDirectory() as folder:
        simulate(config, prepare(config, Path(folder) / "run"))
        return bits(Path(folder) / "run", round, config.agents)


def bits(folder: Path, round: int, agents: int = 3) -> tuple[bytes, ...]:
    return tuple((folder / "checkpoints" / str(a) / f"{round}.safetensors").read_bytes() for a in range(agents))


def reports(folder: Path) -> list[Report]:
    with Store.open(folder, read_only=True) as store:
        return store.reports(sketches=False)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a command in a session of its own; what a failed test leaves running is ended by id."""
    started: list[subprocess.Popen[str]] = []

    def begin(*command: str, log: Path | None = None) -> "subprocess.Popen[str]":
        output = os.open(log, os.O_CREAT | os.O_WRONLY) if log else subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, text=True, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        started.append(process)
        if log:
            os.close(output)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            for child in (*psutil.Process(process.pid).children(recursive=True), process):
                child.kill()
        process.communicate()


def wait_until(condition: Callable[[], object], timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)  # other processes have no event to wait for


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def rounds_reported(folder: Path) -> int:
    try:
        return max((report.round for report in reports(folder)), default=0)
    except (UsageError, sqlite3.Error):  # the coordinator is just making it
        return 0


@pytest.mark.parametrize(
    ("shape", "basis", "graph"),
    [("together", "adopt", "path"), ("per-agent", "agree", "path"), ("together", "agree", ONE_WAY)],
)
def test_a_run_ends_with_the_bits_of_its_simulation(
    tmp_path: Path, shape: str, basis: str, graph: str, start: Start
) -> None:
    """With one start for all, and with an agreed basis and the sweeps over it, on a directed graph too."""
    settings = [*SMALL, f"merge.basis={basis}", f"topology.graph={graph}"]
    process = start(
        "dimat", "run", *flags(settings), "--out", str(tmp_path / "run"), "--launch", shape, "--format", "json", "-q"
    )
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert bits(tmp_path / "run", 4) == simulated(*settings, round=4)

    result = json.loads(output.splitlines()[-1])
    assert result["rounds"] == 4
    assert [entry["round"] for entry in result["history"]] == [1, 2, 3, 4]
    assert result["mean_accuracy"] == result["history"][-1]["mean_accuracy"] > 0.3
    assert result["history"][-1]["consensus_distance"] > 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) >= 4
    assert {"config.yaml", "environment.json", "events.jsonl", "processes.json"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }

    entries = processes(tmp_path / "run")
    assert sorted(str(entry["id"]) for entry in entries) == ["0", "1", "2", "None"]
    assert not any(alive(entry["pid"]) for entry in entries), "nothing is left behind"


def test_an_interrupted_run_continues_to_the_bits_of_an_undisturbed_one(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "run"
    command = ("dimat", "run", *flags(LONG), "--out", str(folder))
    process = start(*command)
    wait_until(lambda: rounds_reported(folder) >= 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    stopped_at = {agent: max(r.round for r in reports(folder) if r.agent == agent) for agent in range(3)}
    assert len(set(stopped_at.values())) == 1, "all agents leave after the same round"
    assert stopped_at[0] < 60, "it was stopped in the middle"
    assert not any(alive(entry["pid"]) for entry in processes(folder))

    process = start(*command)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert bits(folder, 60) == simulated(*LONG, round=60)


@pytest.mark.parametrize("moment", ["while agents gather", "in the middle of a round"])
def test_insisting_ends_everything_now_and_leaves_nothing_behind(tmp_path: Path, moment: str, start: Start) -> None:
    folder = tmp_path / "run"
    process = start("dimat", "run", *flags(LONG), "--out", str(folder))
    if moment == "while agents gather":
        wait_until(lambda: psutil.Process(process.pid).children(recursive=True)[2:])
        process.send_signal(signal.SIGINT)
    else:
        wait_until(lambda: rounds_reported(folder) >= 2)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # two of one kind may be delivered as one
    family = psutil.Process(process.pid).children(recursive=True)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopped" in output
    assert not any(alive(child.pid) for child in family)
    assert not any(alive(entry["pid"]) for entry in processes(folder))


def test_the_coordinator_may_be_killed_and_loses_nothing(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "run"
    process = start("dimat", "run", *flags(LONG), "--out", str(folder))
    wait_until(lambda: rounds_reported(folder) >= 3)
    first = next(entry for entry in processes(folder) if entry["role"] == "coordinator")
    os.kill(first["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert bits(folder, 60) == simulated(*LONG, round=60), "training did not notice"
    assert sorted((r.agent, r.round) for r in reports(folder)) == [(a, r) for a in range(3) for r in range(1, 61)]
    coordinators = [entry for entry in processes(folder) if entry["role"] == "coordinator"]
    assert len(coordinators) == 2
    assert len({entry["address"] for entry in coordinators}) == 1


def test_an_agent_that_was_late_comes_back(tmp_path: Path, start: Start) -> None:
    """Its neighbours go on without it; later all merge with all again."""
    folder = tmp_path / "run"
    settings = [*LONG, "exchange.timeout_s=3"]
    process = start("dimat", "run", *flags(settings), "--out", str(folder))
    wait_until(lambda: rounds_reported(folder) >= 3)
    late = next(entry["pid"] for entry in processes(folder) if entry["role"] == "agent" and entry["id"] == 1)
    os.kill(late, signal.SIGSTOP)
    wait_until(lambda: any(1 in report.missing for report in reports(folder)))
    os.kill(late, signal.SIGCONT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert not any(report.missing for report in reports(folder) if report.round > 40)


def test_two_torchrun_nodes_finish_one_run_together(tmp_path: Path, start: Start) -> None:
    settings = [*SMALL, "agents=4"]
    folder = tmp_path / "run"
    port = free_port()
    nodes = [
        start(
            "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test", "--local-addr", "127.0.0.1",
            "-m", "dimat", "agent", *flags(settings), "--out", str(folder), log=tmp_path / f"{node}.log",
        )
        for node in range(2)
    ]  # fmt: skip
    for number, node in enumerate(nodes):
        assert node.wait(timeout=240) == 0, (tmp_path / f"{number}.log").read_text()
    assert bits(folder, 4, agents=4) == simulated(*settings, round=4)


def test_a_launch_that_fails_leaves_no_coordinator_behind(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "run"
    process = start(
        "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
        "-m", "dimat", "agent", *flags(SMALL), "--out", str(folder), log=tmp_path / "log",
    )  # fmt: skip
    wait_until(lambda: any(entry["role"] == "coordinator" for entry in processes(folder)))
    workers = [child for child in psutil.Process(process.pid).children() if child.is_running()]
    workers[-1].kill()
    assert process.wait(timeout=120) != 0
    coordinator = next(entry["pid"] for entry in processes(folder) if entry["role"] == "coordinator")
    wait_until(lambda: not alive(coordinator), timeout_s=60)


@pytest.mark.parametrize("script", ["one_node.sh", "one_launcher_per_agent.sh"])
def test_the_launch_scripts(tmp_path: Path, script: str) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(load_config(None, SMALL).to_yaml())
    done = subprocess.run(
        [str(ROOT / "launch" / script), str(config), str(tmp_path / "run")],
        env={**os.environ, "PYTHON": sys.executable}, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert bits(tmp_path / "run", 4) == simulated(*SMALL, round=4)


def test_a_neighbour_with_another_model_is_refused_by_name(tmp_path: Path, start: Start) -> None:
    settings = [*SMALL, "topology.graph=complete"]  # everybody meets the one that differs
    coordinator = start("dimat", "coordinator", *flags(settings), "--out", str(tmp_path / "c"), log=tmp_path / "c.log")
    wait_until(lambda: processes(tmp_path / "c"))
    address = processes(tmp_path / "c")[0]["address"]
    agents = []
    for agent in range(3):
        wider = ["task.model.hidden=[24]"] if agent == 2 else []
        out = ("--out", str(tmp_path / str(agent)), "--id", str(agent), "--coordinator", address)
        agents.append(start("dimat", "agent", *flags([*settings, *wider]), *out))
    outputs = [agent.communicate(timeout=120)[0] for agent in agents]
    assert {agent.returncode for agent in agents} == {2}
    for mine, peer, here, there in ((0, 2, 16, 24), (1, 2, 16, 24), (2, 0, 24, 16)):
        assert f"agent {mine} (here) and its neighbour agent {peer} (there)" in outputs[mine]
        assert f"'fc1.weight' is float32 [{here}, 64] here and float32 [{there}, 64] there" in outputs[mine]
    coordinator.wait(timeout=60)


def test_a_coordinator_that_is_not_there_is_waited_for_and_named(tmp_path: Path, start: Start) -> None:
    address = f"127.0.0.1:{free_port()}"
    process = start(
        "dimat",
        "agent",
        *flags([*SMALL, "exchange.timeout_s=2"]),
        "--id",
        "0",
        "--coordinator",
        address,
        "--out",
        str(tmp_path / "a"),
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"no coordinator at {address} after 2 s" in output
    assert not (tmp_path / "a").exists()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
