"""What an agent is doing right now, for heartbeats; and how long each phase of a round took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Status:
    """Written by the round, read by the heartbeat's thread; each field is replaced whole."""

    round: int = 0
    phase: str = "starting"
    waiting: str = ""
    stop_asked: bool = False
    superseded: bool = False
    """Another process of the same agent has joined since: this one has to go."""
    on_phase: Callable[[int, str], None] | None = None
    """Told the round and the phase that is entered: where a fault plan takes hold. None without one."""
    now: Callable[[], float] = time.monotonic
    """The agent's clock in seconds, by which phases and deadlines are measured; a simulation may have another one."""
    wall: Callable[[], float] = time.time
    """Seconds since the epoch; in a simulation with a virtual clock, since the run began."""

    def wait_for(self, round: int, pending: Mapping[int, str], since: float) -> None:
        """Say whom the agent waits for, for how long and what is known of each."""
        if not pending:
            self.waiting = ""
            return
        names = ", ".join(f"{agent} ({known})" if known else str(agent) for agent, known in sorted(pending.items()))
        agents = "agent" if len(pending) == 1 else "agents"
        self.waiting = f"round {round}: waiting {self.now() - since:.0f} s for {agents} {names}"


@dataclass(slots=True)
class PhaseClock:
    """Seconds by phase; entering a phase also names it in the status."""

    status: Status
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block as (part of) `phase`."""
        self.status.phase = phase
        start = self.status.now()
        try:
            if self.status.on_phase is not None:
                self.status.on_phase(self.status.round, phase)
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self.status.now() - start
