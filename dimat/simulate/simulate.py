"""Many agents in one process: the same rounds over the in-memory transport, one agent after the other.

Rounds are generators, so an agent runs until it has to wait, and the next one goes on. When everybody waits, the
oldest wait is over: that is what a deadline means without a clock. Each agent keeps its own random streams, so a
simulated run ends with the bits of a networked one. With `exchange.mode: async` nobody waits; then one turn is one
round, and the order of turns stands for the clock: the same bits each time, though not those of any networked run.

With latency, bandwidth or time per sample in the config there is a virtual clock (`dimat.simulate.timeline`), and with
`simulation.vectorise` the agents train as one (`dimat.simulate.together`).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from dimat.agent.build import build_agent, build_topology
from dimat.agent.comeback import go_on_from_own
from dimat.agent.live import check_neighbours, introduction, run_rounds
from dimat.agent.state import Agent
from dimat.config import RunConfig
from dimat.coordinator import Store
from dimat.coordinator.signals import Signals
from dimat.coordinator.store import FILE_NAME
from dimat.errors import ConfigError, Interrupted
from dimat.faults import FaultyTransport, Killed, phase_hook, planned
from dimat.messages import Heartbeat, Schema, View
from dimat.simulate.faults import Desk, Holdable, stalls
from dimat.simulate.network import Conditions
from dimat.simulate.running import Running, Streams
from dimat.simulate.timeline import Timeline
from dimat.simulate.together import Together
from dimat.simulate.turns import take_turns
from dimat.transport.memory import MemoryControl, MemoryHub, MemoryTransport

log = logging.getLogger(__name__)


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
    if pace and config.simulation.timed:
        raise ConfigError("there is a virtual clock: who is slow stands in simulation.stragglers, not in turns")
    hub = MemoryHub()
    timeline = Timeline(Conditions(config.simulation, config.seed), hub) if config.simulation.timed else None
    wall_clock = time.time if timeline is None else clock_from(last_time(folder), timeline)
    diameter = build_topology(config).diameter
    with Desk(config, diameter, folder, wall_clock) as desk, Signals().listen() as signals, ExitStack() as ends:
        control = MemoryControl(desk)
        running = [_make(config, 0, folder, hub, None)]
        running += [_make(config, number, folder, hub, running[0].agent) for number in range(1, config.agents)]
        for one in running:
            view = desk.join(introduction(one.agent, one.transport.start()))
        for one in running:
            check_neighbours(one.agent, timeout_s=0.0)
            if view.start_round not in one.agent.rounds_held():  # it was out of the graph in the run that is continued
                go_on_from_own(one.agent, one.agent.rounds_held()[-1], view.start_round)
            one.steps = run_rounds(one.agent, view, control)
            if config.faults:
                ends.callback(_plan_faults(one))
            one.agent.checkpoint_every = config.simulation.checkpoint_every
            one.agent.rounds_ahead = partial(rounds_ahead, one.agent, running)
            if timeline is not None:
                timeline.training_s(one.agent, 1)  # a task that does not tell its size is refused before any round
        together = _host(config, running, timeline, desk.coordinator.note, wall_clock)
        seen, asked = -1, False

        def between() -> None:
            """What is done whenever nothing happens in the simulation: hear the user, show the picture."""
            nonlocal seen, asked
            if len(signals.names) > 1:
                raise Interrupted("stopped in the middle of a round", hint="the same command continues the run")
            if signals.names and not asked:
                desk.coordinator.request_stop(f"the user stopped the run ({signals.names[0]})")
                asked = True
            if on_view is not None:
                view = desk.changed(after=-1, timeout_s=0.0)
                if view.number != seen:
                    on_view(view)
                    seen = view.number

        def on_end(one: Running) -> None:
            control.heartbeat(_goodbye(one))

        work = together.work if together is not None else nothing
        if timeline is not None:
            timeline.run(running, work=work, on_end=on_end, between=between)
        else:
            take_turns(running, pace or {}, work=work, on_end=on_end, between=between)
        for one in running:
            control.heartbeat(_goodbye(one))
            one.transport.close()


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
    stall = held.last if config.simulation.timed else stalls(held.hold, config.exchange.timeout_s)
    agent.status.on_phase = phase_hook(config.faults, agent.id, agent.folder, kill=kill, stall=stall)
    if agent.status.on_phase is not None:
        one.steps = held
    return held.close


def _host(
    config: RunConfig,
    running: list[Running],
    timeline: Timeline | None,
    note: Callable[[str, str], None],
    wall_clock: Callable[[], float],
) -> Together | None:
    """Have the agents' training and transfers done for them, where the config asks for it."""
    vectorise = config.simulation.vectorise
    if vectorise == "off" and timeline is None:
        return None

    def tell(text: str) -> None:
        log.warning(text)
        note("vectorise", text)

    together = Together(Streams(running), must=vectorise == "on", tell=tell, clock=timeline)
    if config.algorithm.name != "merge" and vectorise != "off":
        together.give_up(f"algorithm {config.algorithm.name} exchanges within a round, step by step")
    elif vectorise == "off":
        together.one_by_one = "simulation.vectorise is off"
    elif config.algorithm.name != "merge":  # `on` is refused by the config
        together.one_by_one = f"algorithm {config.algorithm.name!r} exchanges between single steps"
        tell(f"agents train one by one: {together.one_by_one}")
    for one in running:
        one.agent.host = together
        one.agent.status.now = partial(together.now, one.agent.id)
        one.agent.status.wall = wall_clock
    return together


def rounds_ahead(agent: Agent, running: Sequence[Running]) -> int:
    """How many rounds `agent` is ahead of whoever has come least far."""
    return agent.status.round - min(one.agent.status.round for one in running)


def nothing() -> None:
    """There is no work to be done together."""


def last_time(folder: Path) -> float:
    """The time of the last event of a run that is continued; 0.0 where nothing has happened yet."""
    if not (folder / FILE_NAME).is_file():
        return 0.0
    with Store.open(folder, read_only=True) as store:
        return max((event.time_s for event in store.events()), default=0.0)


def clock_from(start_s: float, timeline: Timeline) -> Callable[[], float]:
    """The virtual clock, going on from where that of an earlier process stood."""
    return lambda: start_s + timeline.now_s


def _make(config: RunConfig, number: int, folder: Path, hub: MemoryHub, like: Agent | None) -> Running:
    session = secrets.token_hex(8)

    def make_transport(schema: Schema) -> MemoryTransport | FaultyTransport:
        return planned(MemoryTransport(number, session, schema, hub, lends=True), number, config.faults)

    agent = build_agent(config, number, folder, session, make_transport, like)
    assert isinstance(agent.transport, MemoryTransport | FaultyTransport)
    return Running(agent=agent, transport=agent.transport, randomness=agent.start)
