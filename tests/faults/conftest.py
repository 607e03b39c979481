"""Small runs in this process with a fault plan, and what they left behind; lets tests import the relay by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dimat.config import load_config
from dimat.coordinator import Event, Outcome, Store
from dimat.messages import Report, RoundSummary
from dimat.runfolder import prepare
from dimat.simulate import simulate

sys.path.insert(0, str(Path(__file__).parent))

NUM_AGENTS, NUM_ROUNDS = 4, 5
SETTINGS = [
    "task.model.name=mlp",
    "task.model.hidden=[8]",
    "train.epochs=1",
    "train.batch_size=128",
    f"rounds={NUM_ROUNDS}",
    f"agents={NUM_AGENTS}",
]


@dataclass(frozen=True)
class Told:
    """What a run left in its folder."""

    folder: Path
    reports: dict[tuple[int, int], Report]
    """By agent and round."""
    summaries: dict[int, RoundSummary]
    events: list[Event]
    outcome: Outcome | None

    def bits(self, agent: int, round: int = NUM_ROUNDS) -> bytes:
        """Weights and optimiser of an agent after a round."""
        return (self.folder / "checkpoints" / str(agent) / f"{round}.safetensors").read_bytes()

    def rounds_of(self, agent: int) -> list[int]:
        """The rounds that an agent reported."""
        return sorted(round for reporter, round in self.reports if reporter == agent)


Run = Callable[..., Told]


@pytest.fixture(scope="session")
def undisturbed_runs() -> dict[str, Told]:
    """Oracles that several tests compare with are simulated once."""
    return {}


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, undisturbed_runs: dict[str, Told]) -> Run:
    """Simulates the ring of 4 with the given faults: `run(fault, ..., settings=(...), folder=..., oracle=True)`."""

    def run(
        *faults: dict[str, Any], settings: tuple[str, ...] = (), folder: Path | None = None, oracle: bool = False
    ) -> Told:
        config = load_config(None, [*SETTINGS, *settings, f"faults={json.dumps(faults)}"])
        if oracle and config.digest in undisturbed_runs:
            return undisturbed_runs[config.digest]
        folder = prepare(config, folder or tmp_path_factory.mktemp("run") / "run")
        simulate(config, folder)
        told = read(folder)
        if oracle:
            undisturbed_runs[config.digest] = told
        return told

    return run


def read(folder: Path) -> Told:
    """What is in a run folder."""
    with Store.open(folder, read_only=True) as store:
        return Told(
            folder=folder,
            reports={(report.agent, report.round): report for report in store.reports()},
            summaries={summary.round: summary for summary in store.summaries()},
            events=store.events(),
            outcome=store.outcome(),
        )
