"""A simulation by events: whatever is next in virtual time happens next, and the clock jumps there.

An agent's steps between two waits take no time. A wait ends when all of its peers have done what is waited for, or at
its deadline; training and transfers end when `dimat.simulate.network` says. What happens at one moment happens in the
order in which it was brought about, deadlines last: who comes at the last moment has come. So a run is the same each
time, and what agents remember of waits, their deadlines and the seconds in their reports are those of the clock.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from dimat.agent.host import Answers
from dimat.agent.state import Agent
from dimat.agent.waiting import remember
from dimat.errors import ConfigError
from dimat.simulate.ahead import TimedTransfers
from dimat.simulate.faults import Stall
from dimat.simulate.network import NS, Conditions, in_time
from dimat.simulate.running import Running
from dimat.transport.base import Wait
from dimat.transport.memory import MemoryHub

NOBODY = -1


@dataclass(slots=True)
class Waiting:
    """An agent that waits for others."""

    since_ns: int
    arrivals: dict[int, float] = field(default_factory=dict)
    """Seconds after which each peer came."""
    over: bool = False
    """All have come; the agent goes on at this same moment."""


class Timeline:
    """The virtual clock and what is to happen; `clock` of `dimat.simulate.together.Together`."""

    def __init__(self, conditions: Conditions, hub: MemoryHub) -> None:
        self.now_ns = 0
        self._conditions = conditions
        self._hub = hub
        hub.on_read = self._note_read
        self._reads: list[tuple[int, int, str, int]] = []
        self._events: list[tuple[int, int, int, int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._num_fetches: dict[int, int] = defaultdict(int)
        self._num_gradients: dict[int, int] = defaultdict(int)
        self._lives: dict[int, int] = defaultdict(int)
        """How many waits an agent has ended: an event for an earlier one is void."""
        self._waiting: dict[int, Waiting] = {}
        self._waiters: dict[int, set[int]] = defaultdict(set)
        """By agent, who waits for it."""
        self._running: dict[int, Running] = {}

    @property
    def now_s(self) -> float:
        """Virtual seconds since the run began."""
        return self.now_ns / NS

    def run(
        self,
        running: list[Running],
        *,
        work: Callable[[], None],
        on_end: Callable[[Running], None],
        between: Callable[[], None],
    ) -> None:
        """Until all agents have ended.

        Args:
            running: the agents, before their first step.
            work: does what agents have handed in to be done together, if any.
            on_end: told of an agent that ends before its time.
            between: called whenever the clock goes on, and at the end.
        """
        self._running = {one.agent.id: one for one in running}
        self._work, self._on_end = work, on_end
        for agent in sorted(self._running):
            self._at(0, agent, partial(self._wake, agent))
        while any(not one.done for one in running):
            time_ns, _, _, agent, life, action = heapq.heappop(self._events)
            if agent != NOBODY and life != self._lives[agent]:
                continue
            if time_ns > self.now_ns:
                between()
            self.now_ns = time_ns
            action()
        between()

    # -------------------------------------------------------------------------------------------- how long it takes

    def training_s(self, agent: Agent, number: int) -> float:
        """How long the agent's training in round `number` lasts.

        Raises:
            ConfigError: its task does not say how many samples it has.
        """
        if agent.config.simulation.compute_s_per_sample is None:
            return 0.0
        samples = getattr(agent.task, "num_samples", None)
        if samples is None:
            raise ConfigError(
                f"simulation.compute_s_per_sample needs to know how many samples agent {agent.id} has, and its task "
                f"{type(agent.task).__name__} has no num_samples"
            )
        num_samples = agent.config.train.epochs * int(samples)
        return self._conditions.training_ns(agent.id, number, num_samples) / NS

    def gradient_s(self, agent: Agent, num_samples: int) -> float:
        """How long one of the agent's gradients within a round lasts, on so many samples."""
        count = self._num_gradients[agent.id]
        self._num_gradients[agent.id] += 1
        return self._conditions.training_ns(agent.id, count, num_samples) / NS

    def transfer(
        self, agent: Agent, answers: Answers, num_bytes: Mapping[int, int], timeout_s: float
    ) -> tuple[Answers, float]:
        """What has come of `answers`, which begin to travel now, and after how many seconds all is there."""
        lasts_ns = self._transfers_ns(agent, num_bytes)
        limit_ns = math.ceil(timeout_s * NS)
        reads, self._reads = self._reads, []
        for reader, publisher, kind, round in reads:
            if lasts_ns[publisher] <= limit_ns:
                action = partial(self._acknowledge, reader, publisher, kind, round)
                self._at(self.now_ns + lasts_ns[publisher], NOBODY, action)
        longest_ns = max((min(one, limit_ns) for one in lasts_ns.values()), default=0)
        return in_time(answers, lasts_ns, limit_ns), longest_ns / NS

    def begin(self, agent: Agent, answers: Answers, num_bytes: Mapping[int, int]) -> TimedTransfers:
        """`answers` begin to travel now, and the agent goes on."""
        lasts_ns = self._transfers_ns(agent, num_bytes)
        transfers = TimedTransfers(answers, num_bytes, lasts_ns, lambda: self.now_ns, self.now_ns)
        reads, self._reads = self._reads, []
        for read in reads:
            publisher = read[1]
            self._at(self.now_ns + lasts_ns[publisher], NOBODY, partial(self._arrive, transfers, *read))
        return transfers

    def _transfers_ns(self, agent: Agent, num_bytes: Mapping[int, int]) -> dict[int, int]:
        count = self._num_fetches[agent.id]
        self._num_fetches[agent.id] += 1
        return self._conditions.transfers_ns(agent.id, count, num_bytes)

    def _arrive(self, transfers: TimedTransfers, reader: int, publisher: int, kind: str, round: int) -> None:
        if publisher in transfers.peers:
            self._acknowledge(reader, publisher, kind, round)

    def _note_read(self, reader: int, publisher: int, kind: str, round: int) -> None:
        self._reads.append((reader, publisher, kind, round))

    def _acknowledge(self, reader: int, publisher: int, kind: str, round: int) -> None:
        self._hub.acknowledge(reader, publisher, kind, round)
        self._look(publisher)

    # ----------------------------------------------------------------------------------------------------- events

    def _at(self, time_ns: int, agent: int, action: Callable[[], None], *, late: bool = False) -> None:
        life = self._lives[agent]
        heapq.heappush(self._events, (time_ns, int(late), next(self._order), agent, life, action))

    def _wake(self, agent: int, *, expired: bool = False) -> None:
        """Let an agent go on to its next wait."""
        one = self._running[agent]
        self._end_wait(one, expired=expired)
        if one.hosted:
            self._work()
        one.step(0)
        if one.error:
            self._on_end(one)
        if not one.done:
            self._begin_wait(one)
        for waiter in sorted(self._waiters[agent]):
            self._look(waiter)

    def _begin_wait(self, one: Running) -> None:
        agent, wait = one.agent.id, one.wait
        wake = partial(self._wake, agent)
        if isinstance(wait, Stall):
            self._at(self.now_ns + round(wait.seconds * NS), agent, wake)
        elif isinstance(wait, Wait) and wait.what == "hosted":
            self._at(self.now_ns + round(wait.timeout_s * NS), agent, wake)
        elif isinstance(wait, Wait):
            self._waiting[agent] = Waiting(self.now_ns)
            for peer in wait.peers:
                self._waiters[peer].add(agent)
            self._look(agent)
            if not self._waiting[agent].over:
                end_ns = self.now_ns + math.ceil(wait.timeout_s * NS)
                self._at(end_ns, agent, partial(self._wake, agent, expired=True), late=True)

    def _end_wait(self, one: Running, *, expired: bool) -> None:
        agent, wait = one.agent.id, one.wait
        self._lives[agent] += 1
        waited = self._waiting.pop(agent, None)
        if waited is None or not isinstance(wait, Wait):
            return
        for peer in wait.peers:
            self._waiters[peer].discard(agent)
        if wait.peers:
            waited_s = wait.timeout_s if expired else (self.now_ns - waited.since_ns) / NS
            remember(one.agent, wait, one.transport.ready(wait), waited.arrivals, waited_s)

    def _look(self, agent: int) -> None:
        """Whether what an agent waits for has come; then it goes on, after all that was brought about before."""
        waiting = self._waiting.get(agent)
        one = self._running[agent]
        if waiting is None or waiting.over or not isinstance(one.wait, Wait):
            return
        missing = one.missing()
        for peer in one.wait.peers:
            if peer not in missing:
                waiting.arrivals.setdefault(peer, (self.now_ns - waiting.since_ns) / NS)
        if not missing:
            waiting.over = True
            self._at(self.now_ns, agent, partial(self._wake, agent))
