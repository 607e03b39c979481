"""Many agents in one process: the same rounds over the in-memory transport, one agent after the other.

Rounds are generators, so an agent runs until it has to wait, and the next one goes on. When everybody waits, the
oldest wait is over: that is what a deadline means without a clock. Each agent keeps its own random streams, so a
simulated run ends with the bits of a networked one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dimat.agent.build import build_agent, build_topology
from dimat.agent.live import check_neighbours, introduction, run_rounds
from dimat.agent.randomness import Randomness, capture, restore
from dimat.agent.state import Agent
from dimat.agent.steps import Steps
from dimat.config import RunConfig
from dimat.coordinator import Coordinator, Store
from dimat.coordinator.signals import Signals
from dimat.errors import ConfigError, Interrupted
from dimat.messages import Directive, Heartbeat, View
from dimat.transport.base import Wait
from dimat.transport.memory import MemoryControl, MemoryHub, MemoryTransport


@dataclass(slots=True)
class Running:
    """One agent between two waits."""

    agent: Agent
    transport: MemoryTransport
    randomness: Randomness
    steps: Steps[Directive] | None = None
    wait: Wait | None = None
    """None: it has not begun."""
    since: int = 0
    """When it began to wait, in steps of the whole simulation."""
    done: bool = False

    def can_go_on(self) -> bool:
        """Whether what it waits for is there."""
        return not self.done and (self.wait is None or self.transport.settled(self.wait) >= set(self.wait.peers))

    def step(self, now: int) -> None:
        """Go on to the next wait, or to the end, on the agent's own random streams."""
        assert self.steps is not None
        restore(self.randomness, self.agent.loader)
        try:
            answer = None if self.wait is None else self.transport.ready(self.wait)
            # The first value sent into a generator has to be None.
            self.wait = self.steps.send(answer)  # type: ignore[arg-type]
            self.since = now
        except StopIteration:
            self.done = True
        self.randomness = capture(self.agent.loader)


def simulate(config: RunConfig, folder: Path, on_view: Callable[[View], None] | None = None) -> None:
    """Run `config` in this process; numbers, checkpoints and events go to `folder` as in a networked run.

    Args:
        config: the run.
        folder: a prepared run folder; a run that stopped there is continued.
        on_view: told the coordinator's picture whenever it changes.

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
    with Store.open(folder) as store, Signals().listen() as signals:
        # Time stands still for membership: nobody is late in a simulation.
        coordinator = Coordinator(config, topology.diameter, store, clock=lambda: 0.0)
        control = MemoryControl(coordinator)
        hub = MemoryHub()
        running = [_make(config, number, folder, hub) for number in range(config.agents)]
        for one in running:
            view = coordinator.join(introduction(one.agent, one.transport.start()))
        for one in running:
            check_neighbours(one.agent, timeout_s=0.0)
            one.steps = run_rounds(one.agent, view, control)
        seen, num_steps, asked = -1, 0, False
        while any(not one.done for one in running):
            if len(signals.names) > 1:
                raise Interrupted("stopped in the middle of a round", hint="the same command continues the run")
            if signals.names and not asked:
                coordinator.request_stop(f"the user stopped the run ({signals.names[0]})")
                asked = True
            for one in runnable(running):
                num_steps += 1
                one.step(num_steps)
            view = coordinator.changed(after=-1, timeout_s=0.0)
            if on_view is not None and view.number != seen:
                on_view(view)
                seen = view.number
        for one in running:
            control.heartbeat(
                Heartbeat(one.agent.id, one.agent.session, one.agent.status.round, phase="done", done=True)
            )
            one.transport.close()


def runnable(running: list[Running]) -> list[Running]:
    """The agents to step now, by id: those that have what they wait for; else the one that has waited longest."""
    ready = [one for one in running if one.can_go_on()]
    return ready or [min((one for one in running if not one.done), key=lambda one: one.since)]


def _make(config: RunConfig, number: int, folder: Path, hub: MemoryHub) -> Running:
    session = secrets.token_hex(8)
    agent = build_agent(config, number, folder, session, lambda schema: MemoryTransport(number, session, schema, hub))
    assert isinstance(agent.transport, MemoryTransport)
    return Running(agent=agent, transport=agent.transport, randomness=agent.start)
