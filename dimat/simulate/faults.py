"""A fault plan in one process and without a clock: agents that end, agents that are held, a coordinator that restarts.

Killing ends an agent's steps and closes its door. Stalling holds it in the middle of a phase, until its neighbours have
let as many deadlines pass as fit into the stall: a simulation has no seconds, deadlines are its only clock. So the same
plan gives the same bits twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dimat.agent.steps import Steps
from dimat.config import RunConfig
from dimat.coordinator import Coordinator, Store
from dimat.faults import Killed, Marks
from dimat.faults.plan import restarts
from dimat.messages import Directive, Drain, Heartbeat, Join, Report, View
from dimat.transport.base import Wait


@dataclass(slots=True)
class Stall:
    """An agent is held until its neighbours have given up on it in this many rounds."""

    num_deadlines: int
    seconds: float = 0.0
    """How long it is held where there is a clock."""
    first: int | None = None
    """The round in which it was missed first; None while nobody has waited for it."""

    def is_over(self, missed: list[int]) -> bool:
        """Whether it ends now that nobody can go on; `missed` are the rounds in which neighbours wait for it."""
        if not missed:
            return True
        if self.first is None:
            self.first = min(missed)
        return min(missed) >= self.first + self.num_deadlines

    def turn_is_over(self) -> bool:
        """One turn of the others has begun; whether those that the stall lasts are over."""
        self.num_deadlines -= 1
        return self.num_deadlines < 0


class Holdable:
    """Steps in a thread of their own, so that a stall can hold them where no `yield` stands.

    One thread runs at a time: whoever sends waits until the steps wait, are held or have ended.
    """

    def __init__(self, steps: Steps[Directive]) -> None:
        self._steps = steps
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._news: SimpleQueue[Wait | Stall | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="held-agent", daemon=True)

    def send(self, answer: frozenset[int] | None) -> Wait | Stall:
        """Go on to the next wait or stall; raises what the steps raise, `StopIteration` at their end."""
        if self._thread.ident is None:
            self._thread.start()
        self._answers.put(answer)
        news = self._news.get()
        if isinstance(news, BaseException):
            self._thread.join()
            raise news
        return news

    def hold(self, num_deadlines: int) -> None:
        """Called by the steps themselves: sleep until the next `send`."""
        self._be_held(Stall(num_deadlines))

    def last(self, seconds: float) -> None:
        """As `hold`, where there is a clock that tells when the stall is over."""
        self._be_held(Stall(0, seconds))

    def _be_held(self, stall: Stall) -> None:
        self._news.put(stall)
        if self._answers.get() is Killed:
            raise Killed

    def close(self) -> None:
        """End the steps where they are, if they have not ended; a second call does nothing."""
        if self._thread.is_alive():
            self._answers.put(Killed)
            self._thread.join()

    def _run(self) -> None:
        try:
            while (answer := self._answers.get()) is not Killed:
                self._news.put(self._steps.send(answer))
        except BaseException as end:  # everything is told to the thread that sends, the end too
            self._news.put(end)


def stalls(hold: Callable[[int], None], timeout_s: float) -> Callable[[float], None]:
    """How a simulated agent stalls: for as many deadlines as fit into the seconds; less than one is not noticed."""

    def stall(seconds: float) -> None:
        if num_deadlines := int(seconds // timeout_s):
            hold(num_deadlines)

    return stall


class Desk:
    """The coordinator of a simulation, which a fault plan may restart: it then is made anew from what is on disk."""

    def __init__(
        self, config: RunConfig, diameter: int, folder: Path, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._wall_clock = wall_clock
        self._diameter = diameter
        self._folder = folder
        self._marks = Marks(folder)
        self._goodbyes: list[Heartbeat] = []
        self._planned = restarts(config.faults)
        self._open()

    def _open(self) -> None:
        self._store = Store.open(self._folder)
        # Time stands still for membership: nobody is late in a simulation.
        self.coordinator = Coordinator(
            self._config, self._diameter, self._store, clock=lambda: 0.0, wall_clock=self._wall_clock
        )

    def join(self, join: Join) -> View:
        """As `Coordinator.join`."""
        return self.coordinator.join(join)

    def heartbeat(self, beat: Heartbeat) -> Directive:
        """As `Coordinator.heartbeat`."""
        if beat.done:
            self._goodbyes.append(beat)
        return self.coordinator.heartbeat(beat)

    def report(self, report: Report) -> Directive:
        """As `Coordinator.report`; what the plan has for the report's round happens after it was acknowledged."""
        directive = self.coordinator.report(report)
        for place, fault in self._planned.items():
            if fault.at is not None and report.round >= fault.at.round and not self._marks.happened(place, fault):
                self._marks.mark(place, fault)
                self._store.close()
                self._open()
                self.coordinator.note("restarted", "the coordinator was started again and took up what was written")
                for beat in self._goodbyes:  # over a network a lease tells that they are gone
                    self.coordinator.heartbeat(beat)
        return directive

    def drain(self, drain: Drain) -> Directive:
        """As `Coordinator.drain`."""
        return self.coordinator.drain(drain)

    def changed(self, after: int, timeout_s: float) -> View:
        """As `Coordinator.changed`."""
        return self.coordinator.changed(after, timeout_s)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
