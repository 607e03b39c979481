"""One agent as a process: find the others, join, go through the rounds, leave."""

from __future__ import annotations

import logging
import secrets
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import cast

from dimat.agent.build import build_agent
from dimat.agent.comeback import catch_up, others_at
from dimat.agent.directory import StoreDirectory, addresses_in, may_be_started_again
from dimat.agent.heartbeat import Pulse
from dimat.agent.live import check_neighbours, introduction, run_rounds
from dimat.agent.ranks import Ranks, dismiss, follow
from dimat.agent.readers import may_read
from dimat.agent.state import Agent
from dimat.agent.steps import drive
from dimat.agent.waiting import wait_on_network
from dimat.config import RunConfig
from dimat.errors import Interrupted, SchemaError
from dimat.faults import phase_hook, planned
from dimat.messages import Directive, Schema, View
from dimat.runfolder import register_process
from dimat.transport.base import Transport
from dimat.transport.grpc import GrpcControl, GrpcTransport, Limits
from dimat.transport.security import Credentials

log = logging.getLogger(__name__)

LINGER_S = 10.0
"""How long an agent that refuses a neighbour goes on answering, so that the neighbour can refuse it too."""

FORMING_TIMEOUT_S = 600.0
"""How long an agent waits for the others to join: as long as torchrun waits for its nodes. Machines start slowly."""


def run_agent(
    config: RunConfig,
    agent_id: int,
    folder: Path,
    coordinator: str,
    *,
    directory: StoreDirectory | None = None,
    bind: str = "127.0.0.1",
    advertise: str | None = None,
    insecure: bool = False,
    credentials: Credentials | None = None,
    ranks: Ranks | None = None,
) -> bool:
    """Be agent `agent_id` until the run ends; returns whether the user asked this process to stop.

    Args:
        config: the run's config, the same for all agents.
        agent_id: 0 to `config.agents` - 1. It comes from the user or from RANK, and is what checkpoints go by.
        folder: the run folder on this machine.
        coordinator: HOST:PORT.
        directory: torchrun's store, when there is one; else the coordinator's view tells addresses.
        bind: host to listen at; the port is any free one.
        advertise: host that others dial, when it is not `bind`.
        insecure: allow plain text beyond loopback.
        credentials: who this agent is; without them it speaks plain text.
        ranks: the agent's other processes, where it owns several; this one is the first.

    Raises:
        DimatError: the run cannot be joined, or this agent cannot go on.
        Interrupted: stopped by the user for the second time, in the middle of a round.
    """
    session = secrets.token_hex(8)

    def make_transport(schema: Schema) -> Transport:
        door = GrpcTransport(
            agent_id,
            session,
            schema,
            bind=bind,
            advertise=advertise,
            insecure=insecure,
            credentials=credentials,
            may_read=lambda peer: may_read(agent, peer),  # nobody asks before the transport is started
            limits=Limits(config.security.max_calls_per_s, config.security.max_calls, config.num_seats),
        )
        return planned(door, agent_id, config.faults)

    agent = build_agent(config, agent_id, folder, session, make_transport)
    agent.status.on_phase = phase_hook(config.faults, agent_id, folder)
    stop = _listen_to_signals(agent)
    if ranks is not None:
        ranks.start(agent)
        agent.ranks = ranks
    # gRPC's threads start here, after everything that forks.
    address = agent.transport.start()
    register_process(folder, "agent", agent_id, address)
    control = GrpcControl(coordinator, credentials=credentials, insecure=insecure)
    pulse = Pulse(agent_id, session, agent.status, control, agent.hear)
    error = ""
    try:
        view = control.join(introduction(agent, address), timeout_s=FORMING_TIMEOUT_S)
        agent.addresses = dict(_addresses(view, agent, address, directory))
        agent.transport.connect(agent.addresses)
        agent.hear(Directive(changes=view.changes))
        agent.status.round = view.start_round  # what heartbeats say from the first one on
        pulse.start()
        if agent.id < config.agents and others_at(agent.id, view) <= view.start_round:
            _check_neighbours(agent, config.exchange.timeout_s)
        else:
            view = catch_up(agent, view)
        drive(run_rounds(agent, view, control), partial(wait_on_network, agent))
        dismiss(agent)
        return agent.status.stop_asked
    except BaseException as failure:  # whatever ended it: an agent that failed must not say that it is done
        error = str(failure) or type(failure).__name__
        raise
    finally:
        stop()
        # Agents that all said they failed would end the run that torchrun is about to continue.
        pulse.close(error, silently=bool(error) and may_be_started_again())
        control.close()
        agent.transport.close()
        if ranks is not None:
            ranks.close()


def follow_agent(config: RunConfig, agent_id: int, folder: Path, ranks: Ranks) -> None:
    """Be a further process of agent `agent_id`, which only trains.

    Signals are the leader's business: after the first it finishes the round and dismisses its followers, after the
    second it leaves, which breaks their connection. A follower mostly waits inside of gloo, where Python's signal
    handlers do not run, so it either ignores a signal or dies of it.

    Raises:
        DimatError: the agent's other processes are gone.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # It never speaks to other agents.
    agent = build_agent(config, agent_id, folder, "follower", lambda schema: cast("GrpcTransport", None))
    register_process(folder, "follower", agent_id, "")
    try:
        ranks.start(agent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not may_be_started_again():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        follow(agent, ranks)
    finally:
        ranks.close()


def _check_neighbours(agent: Agent, timeout_s: float) -> None:
    try:
        check_neighbours(agent, timeout_s)
    except SchemaError as difference:
        # The others compare at the same moment: who leaves at once is somebody they can tell nothing about.
        log.error("%s", difference)
        time.sleep(min(LINGER_S, timeout_s))
        raise


def _addresses(view: View, agent: Agent, address: str, directory: StoreDirectory | None) -> Mapping[int, str]:
    if directory is None:
        return addresses_in(view)
    directory.register(f"agent/{agent.id}", address)
    peers = range(agent.config.agents)
    return {peer: directory.lookup(f"agent/{peer}") for peer in peers if peer != agent.id}


def _listen_to_signals(agent: Agent) -> partial[None]:
    """First signal: ask that everybody stops after a round that is still to come. Second: leave now.

    Where torchrun may start all workers again, SIGTERM is how it ends those that are left after a crash: then there is
    nothing to finish, and nobody's wish to pass on. Ctrl-C still is a wish.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if agent.status.stop_asked or (number == signal.SIGTERM and may_be_started_again()):
            raise Interrupted(f"agent {agent.id} was stopped in the middle of round {agent.status.round}")
        agent.status.stop_asked = True
        log.warning("agent %d: %s: stopping after this round", agent.id, signal.Signals(number).name)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(handlers: Mapping[signal.Signals, signal._HANDLER]) -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    return partial(restore, before)
