"""A disk that refuses a checkpoint: the agent says so, keeps what it has, goes on for a while, then leaves."""

import errno
import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from dimat.agent import checkpoint
from dimat.agent.checkpoint import rounds_held
from dimat.config import load_config
from dimat.errors import DimatError
from dimat.files import write_atomically
from dimat.messages import Report
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.telemetry.metrics import append_metrics

# A path of three has the diameter 2: four checkpoints are kept, and an agent may miss two of them.
CONFIG = load_config(
    None,
    ["agents=3", "topology.graph=path", "rounds=8", "task.model.name=mlp", "task.model.hidden=[8]", "train.epochs=1"],
)
FULL = OSError(errno.ENOSPC, "No space left on device")
Break = Callable[[range, str], None]


@pytest.fixture
def break_disk(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Refuse agent 1's files that end in `suffix`, in some rounds."""

    def break_it(rounds: range, suffix: str) -> None:
        def write(path: Path, content: bytes | str) -> None:
            if path.parent.name == "1" and int(path.stem) in rounds and path.suffix == suffix:
                raise FULL
            write_atomically(path, content)

        monkeypatch.setattr(checkpoint, "write_atomically", write)

    return break_it


def files(folder: Path, agent: int) -> set[str]:
    return {path.name for path in (folder / "checkpoints" / str(agent)).iterdir()}


def bits(folder: Path) -> list[bytes]:
    return [(folder / "checkpoints" / str(agent) / "8.safetensors").read_bytes() for agent in range(3)]


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_checkpoint_that_cannot_be_written_costs_itself_alone(
    tmp_path: Path, break_disk: Break, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    simulate(CONFIG, prepare(CONFIG, tmp_path / "undisturbed"))
    break_disk(range(7, 8), suffix)
    simulate(CONFIG, prepare(CONFIG, tmp_path / "run"))
    assert "agent 1: the checkpoint of round 7 could not be written: [Errno 28] No space left" in caplog.text
    assert rounds_held(tmp_path / "run" / "checkpoints" / "1") == [4, 5, 6, 8]
    assert not any(name.startswith("7") for name in files(tmp_path / "run", 1)), "no half of it is left"
    assert bits(tmp_path / "run") == bits(tmp_path / "undisturbed")


def test_who_has_no_point_in_going_on_leaves_and_can_be_continued(
    tmp_path: Path, break_disk: Break, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    simulate(CONFIG, prepare(CONFIG, tmp_path / "undisturbed"))
    folder = prepare(CONFIG, tmp_path / "run")
    break_disk(range(4, 9), ".safetensors")
    with pytest.raises(
        DimatError, match="agent 1: no checkpoint since round 3 could be written, now in round 6"
    ) as told:
        simulate(CONFIG, folder)
    assert told.value.hint is not None and "make room" in told.value.hint
    assert [f"round {number} could not be written" in caplog.text for number in range(3, 7)] == [
        False,
        True,
        True,
        False,
    ]
    shared = set.intersection(*(set(rounds_held(folder / "checkpoints" / str(agent))) for agent in range(3)))
    assert max(shared) == 3, "the others still hold the newest that it has"

    monkeypatch.setattr(checkpoint, "write_atomically", write_atomically)  # somebody made room
    simulate(CONFIG, folder)
    assert bits(folder) == bits(tmp_path / "undisturbed")


def test_a_line_of_metrics_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    report = Report(agent=0, session="s", round=1, metrics={"accuracy": 0.5}, seconds={})
    append_metrics(path, report)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system itself takes ten bytes more and then no more, as a disk does that is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError):
            append_metrics(path, report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append_metrics(path, report)
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 1]
