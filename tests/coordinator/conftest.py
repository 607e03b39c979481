"""A coordinator on a stage: a clock that is set by hand, agents that say what the test says, restarts at will."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dimat.config import MembershipConfig, RunConfig, StopConfig
from dimat.coordinator import Coordinator, Store
from dimat.messages import Directive, Heartbeat, Join, Report, View

LEASE_S = 15.0


def sketch_of(values: object) -> bytes:
    """A vector as its own sketch: distances are then exact."""
    return np.asarray(values, dtype="<f4").tobytes()


class Stage:
    """A run of `agents` agents; sessions are `a` for first processes."""

    def __init__(
        self, folder: Path, agents: int, rounds: int, diameter: int, stop: StopConfig, num_seats: int | None
    ) -> None:
        self.folder = folder
        self.agents = agents
        self.now = 1000.0
        self.members_stop = True
        self.tick_s: float | None = None
        """None: time passes in leaps here, and all of it counts."""
        membership = MembershipConfig(elastic=num_seats is not None, max_agents=num_seats)
        self._config = RunConfig(agents=agents, rounds=rounds, stop=stop, membership=membership)
        self._diameter = diameter
        self.sessions = dict.fromkeys(range(num_seats or agents), "a")
        self.store, self.coordinator = self._open()

    def _open(self) -> tuple[Store, Coordinator]:
        store = Store.open(self.folder)
        store._connection.execute("PRAGMA synchronous = OFF")  # no test here cuts the power
        coordinator = Coordinator(
            self._config,
            self._diameter,
            store,
            lease_s=LEASE_S,
            tick_s=self.tick_s,
            members_stop=self.members_stop,
            clock=lambda: self.now,
            wall_clock=lambda: self.now,
        )
        return store, coordinator

    def crash(self) -> None:
        """The coordinator dies without a word and another one takes up the folder; time begins anew."""
        self.store.close()
        self.now = 5.0
        self.store, self.coordinator = self._open()

    def join(self, agent: int, session: str = "a", checkpoints: tuple[int, ...] = (), fingerprint: str = "f") -> View:
        self.now += 0.01
        self.sessions[agent] = session
        address = f"127.0.0.1:{7000 + agent}"
        return self.coordinator.join(
            Join(agent, session, address, fingerprint, 100, checkpoints, 10 * agent, {"seven": agent})
        )

    def join_all(self, session: str = "a", checkpoints: tuple[int, ...] = ()) -> View:
        return [self.join(agent, session, checkpoints) for agent in range(self.agents)][-1]

    def beat(self, agent: int, round: int = 0, **more: object) -> Directive:
        self.now += 0.01
        return self.coordinator.heartbeat(Heartbeat(agent, self.sessions[agent], round, "train", **more))  # type: ignore[arg-type]

    def report(self, agent: int, round: int, accuracy: float = 0.5, **more: object) -> Directive:
        self.now += 0.01
        metrics = {"loss": 1.0, "accuracy": accuracy, "accuracy_before": accuracy - 0.1, **more.pop("metrics", {})}  # type: ignore[dict-item]
        return self.coordinator.report(
            Report(agent, self.sessions[agent], round, metrics, **more)  # type: ignore[arg-type]
        )

    def report_all(self, round: int, accuracy: float = 0.5) -> list[Directive]:
        return [self.report(agent, round, accuracy) for agent in range(self.agents)]

    def leave_all(self, round: int) -> None:
        for agent in range(self.agents):
            self.beat(agent, round, done=True)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.coordinator.tick()

    def states(self) -> list[str]:
        return [member.state for member in self.coordinator.view().members]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.events()]


Setting = Callable[..., Stage]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Setting]:
    """Make stages, each in a folder of its own."""
    made: list[Stage] = []

    def make(
        agents: int = 3, rounds: int = 10, diameter: int = 1, num_seats: int | None = None, **stop: object
    ) -> Stage:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Stage(folder, agents, rounds, diameter, StopConfig(**stop), num_seats))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.store.close()
