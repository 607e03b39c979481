"""Many agents in one process: the same rounds over the in-memory transport, one agent after the other.

Rounds are generators, so an agent runs until it has to wait, and the next one goes on. When everybody waits, the
oldest wait is over: that is what a deadline means without a clock. Each agent keeps its own random streams, so a
simulated run ends with the bits of a networked one. With `exchange.mode: async` nobody waits; then one turn is one
round, and the order of turns stands for the clock: the same bits each time, though not those of any networked run.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dimat.agent.build import build_agent, build_topology
from dimat.agent.comeback import go_on_from_own
from dimat.agent.live import check_neighbours, introduction, run_rounds
from dimat.agent.randomness import Randomness, capture, restore
from dimat.agent.state import Agent
from dimat.agent.steps import Steps
from dimat.config import RunConfig
from dimat.coordinator.signals import Signals
from dimat.errors import ConfigError, Interrupted
from dimat.faults import FaultyTransport, Killed, phase_hook, planned
from dimat.messages import Directive, Heartbeat, Schema, View
from dimat.simulate.faults import Desk, Holdable, Stall, stalls
from dimat.simulate.together import Together
from dimat.transport.base import Wait
from dimat.transport.memory import MemoryControl, MemoryHub, MemoryTransport

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Running:
    """One agent between two waits."""

    agent: Agent
    transport: MemoryTransport | FaultyTransport
    randomness: Randomness
    steps: Steps[Directive] | Holdable | None = None
    wait: Wait | Stall | None = None
    """None: it has not begun."""
    since: int = 0
    """When it began to wait, in steps of the whole simulation."""
    done: bool = False
    error: str = ""
    """Why it ended, when not in order."""

    def can_go_on(self) -> bool:
        """Whether what it waits for is there."""
        return not self.done and not isinstance(self.wait, Stall) and not self.hosted and not self.missing()

    @property
    def hosted(self) -> bool:
        """Whether it waits for work that is done for many agents at once."""
        return isinstance(self.agent.host, Together) and self.agent.id in self.agent.host.pending

    def is_async(self) -> bool:
        """Whether nobody waits for it."""
        return self.agent.config.exchange.mode == "async"

    def missing(self) -> frozenset[int]:
        """The agents that it waits for; empty while a stall holds it."""
        if not isinstance(self.wait, Wait):
            return frozenset()
        return frozenset(self.wait.peers) - self.transport.settled(self.wait)

    def step(self, now: int) -> None:
        """Go on to the next wait, or to the end, on the agent's own random streams."""
        assert self.steps is not None
        restore(self.randomness, self.agent.loader)
        try:
            answer = self.transport.ready(self.wait) if isinstance(self.wait, Wait) else None
            # The first value sent into a generator has to be None.
            self.wait = self.steps.send(answer)  # type: ignore[arg-type]
            self.since = now
        except StopIteration:
            self.done = True
        except Killed:
            self.done, self.error = True, f"killed in round {self.agent.status.round}, as the fault plan says"
            self.transport.close()
        self.randomness = capture(self.agent.loader)


def simulate(
    config: RunConfig,
    folder: Path,
    on_view: Callable[[View], None] | None = None,
    pace: Mapping[int, int] | None = None,
) -> None:
    """Run `config` in this process; numbers, checkpoints and events go to `folder` as in a networked run.

    Args:
        config: the run.
        folder: a prepared run folder; a run that stopped there is continued.
        on_view: told the coordinator's picture whenever it changes.
        pace: how many turns of the others a turn of an agent takes, 1 where nothing is said. In synchronous rounds that
            changes nothing but the order of work; with `exchange.mode: async` it is who is slow.

    Raises:
        ConfigError: agents are to own several ranks.
        DimatError: as the agents of a networked run would.
        Interrupted: by a second interrupt; the first one ends the run after a round that all agents reach.
    """
    if config.launch.ranks_per_agent > 1:
        raise ConfigError(
            f"launch.ranks_per_agent is {config.launch.ranks_per_agent}: a simulation is one process, and what several "
            "ranks compute differs from it in the last bits",
            hint="-s launch.ranks_per_agent=1",
        )
    topology = build_topology(config)
    with Desk(config, topology.diameter, folder) as desk, Signals().listen() as signals, ExitStack() as ends:
        control = MemoryControl(desk)
        hub = MemoryHub()
        running = [_make(config, number, folder, hub) for number in range(config.agents)]
        for one in running:
            view = desk.join(introduction(one.agent, one.transport.start()))
        for one in running:
            check_neighbours(one.agent, timeout_s=0.0)
            if view.start_round not in one.agent.rounds_held():  # it was out of the graph in the run that is continued
                go_on_from_own(one.agent, one.agent.rounds_held()[-1], view.start_round)
            one.steps = run_rounds(one.agent, view, control)
            if config.faults:
                ends.callback(_plan_faults(one))
        together = host_together(config, running, desk.coordinator.note)
        seen, num_steps, num_turns, asked = -1, 0, 0, False
        while any(not one.done for one in running):
            if len(signals.names) > 1:
                raise Interrupted("stopped in the middle of a round", hint="the same command continues the run")
            if signals.names and not asked:
                desk.coordinator.request_stop(f"the user stopped the run ({signals.names[0]})")
                asked = True
            num_turns += 1
            chosen = in_turn(runnable(running), num_turns, pace or {})
            if together is not None and together.pending and not chosen:
                together.work()
                chosen = in_turn(runnable(running), num_turns, pace or {})
            for one in chosen:
                num_steps += 1
                one.step(num_steps)
                if one.error:
                    control.heartbeat(_goodbye(one))
            view = desk.changed(after=-1, timeout_s=0.0)
            if on_view is not None and view.number != seen:
                on_view(view)
                seen = view.number
        for one in running:
            control.heartbeat(_goodbye(one))
            one.transport.close()


def runnable(running: list[Running]) -> list[Running]:
    """The agents to step now, by id: those that have what they wait for; else the one that has waited longest."""
    ready = [one for one in running if one.can_go_on()]
    if ready:
        # Where nobody waits there are no deadlines to count: a stall then is as many turns of the others.
        over = [one for one in running if isinstance(one.wait, Stall) and one.is_async() and one.wait.turn_is_over()]
        return sorted([*ready, *over], key=lambda one: one.agent.id)
    left = [one for one in running if not one.done]
    if any(one.hosted for one in left):
        return []
    waiting = [one for one in left if isinstance(one.wait, Wait)]
    for one in left:
        if isinstance(one.wait, Stall):
            missed = [other.wait.round for other in waiting if one.agent.id in other.missing()]  # type: ignore[union-attr]
            if one.wait.is_over(missed):
                return [one]
    return [min(waiting, key=lambda one: one.since)]


def _goodbye(one: Running) -> Heartbeat:
    phase = "failed" if one.error else "done"
    return Heartbeat(
        one.agent.id, one.agent.session, one.agent.status.round, phase=phase, done=True, error=one.error
    )  # fmt: skip


def _plan_faults(one: Running) -> Callable[[], None]:
    """Let the run's fault plan take hold of an agent; returns what ends it when the simulation does."""
    config, agent = one.agent.config, one.agent

    def kill() -> None:
        raise Killed

    assert isinstance(one.steps, Generator)
    held = Holdable(one.steps)
    stall = stalls(held.hold, config.exchange.timeout_s)
    agent.status.on_phase = phase_hook(config.faults, agent.id, agent.folder, kill=kill, stall=stall)
    if agent.status.on_phase is not None:
        one.steps = held
    return held.close


@dataclass(frozen=True, slots=True)
class Streams:
    """The random streams of waiting agents; implements `dimat.simulate.together.Streams`."""

    running: list[Running]

    def read(self, agent: int) -> Randomness:
        """As the agent left them."""
        return self.running[agent].randomness

    def replace(self, agent: int, streams: Randomness) -> None:
        """Let the agent go on with these."""
        self.running[agent].randomness = streams


def host_together(config: RunConfig, running: list[Running], note: Callable[[str, str], None]) -> Together | None:
    """Have the agents train and evaluate together, where the config asks for it."""
    if config.simulation.vectorise == "off":
        return None

    def tell(text: str) -> None:
        log.warning(text)
        note("vectorise", text)

    together = Together(Streams(running), must=config.simulation.vectorise == "on", tell=tell)
    for one in running:
        one.agent.host = together
        one.agent.status.now = partial(together.now, one.agent.id)
    return together


def in_turn(ready: list[Running], turn: int, pace: Mapping[int, int]) -> list[Running]:
    """Those of `ready` whose turn it is: agent a's is every `pace[a]`-th."""
    return [one for one in ready if turn % pace.get(one.agent.id, 1) == 0]


def _make(config: RunConfig, number: int, folder: Path, hub: MemoryHub) -> Running:
    session = secrets.token_hex(8)

    def make_transport(schema: Schema) -> MemoryTransport | FaultyTransport:
        return planned(MemoryTransport(number, session, schema, hub), number, config.faults)

    agent = build_agent(config, number, folder, session, make_transport)
    assert isinstance(agent.transport, MemoryTransport | FaultyTransport)
    return Running(agent=agent, transport=agent.transport, randomness=agent.start)
