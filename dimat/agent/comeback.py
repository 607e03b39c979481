"""An agent that comes back while the others are in their rounds: from its own checkpoint, or from a neighbour's model.

Its own checkpoint serves while it is at most `membership.max_staleness` rounds behind: the agent trains through what it
missed, alone, because its neighbours keep two rounds only and the coordinator has taken it out of the graph until it
has caught up. Further behind, it takes the newest model of a neighbour that answers, in the basis that all agreed on,
and goes on after that model's round; the optimiser starts anew.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from dimat.agent.live import refuse_difference
from dimat.agent.state import Agent
from dimat.errors import TransportError
from dimat.messages import View
from dimat.snapshot.encode import decode
from dimat.statedict import load_into
from dimat.transport.base import Fetch

log = logging.getLogger(__name__)


def others_at(agent: int, view: View) -> int:
    """The newest round that another agent in its rounds has reported; 0 when there is none."""
    return max((one.round for one in view.members if one.agent != agent and one.state == "running"), default=0)


def catch_up(agent: Agent, view: View) -> View:
    """The view from which this agent goes on, its own start in it; takes a neighbour's model where its own is too old.

    Raises:
        SchemaError: a neighbour that answers trains another model.
    """
    behind = others_at(agent.id, view) - view.start_round
    if behind <= agent.config.membership.max_staleness:
        log.info("agent %d: %d rounds behind, going on from its own checkpoint", agent.id, behind)
        return view
    round = take_neighbours_model(agent, _alive(agent, view))
    return view if round is None else replace(view, start_round=round)


def take_neighbours_model(agent: Agent, peers: list[int]) -> int | None:
    """Become what the first of `peers` that answers published last, and save it; returns its round, None if none did.

    Raises:
        SchemaError: it trains another model.
    """
    timeout_s = agent.config.exchange.timeout_s
    for peer in peers:
        try:
            refuse_difference(agent.id, agent.schema, peer, agent.transport.describe(peer, timeout_s).schema)
        except TransportError as error:
            log.info("agent %d: agent %d does not answer: %s", agent.id, peer, error)
            continue
        fetch = Fetch(peer, "snapshot", None, agent.buffer_for(peer))
        answer = agent.transport.gather((fetch,), timeout_s)[peer]
        if isinstance(answer, TransportError):
            log.info("agent %d: the model of agent %d did not come: %s", agent.id, peer, answer)
            continue
        round = answer.header.round
        agent.resume(0)
        load_into(agent.model, decode(answer))
        agent.basis_settled = True
        agent.remember_base()
        agent.save(round)
        log.warning("agent %d starts with the model of agent %d after round %d", agent.id, peer, round)
        return round
    return None


def _alive(agent: Agent, view: View) -> list[int]:
    """Agents in their rounds: neighbours first, then all others, by id."""
    running = {member.agent for member in view.members if member.state == "running" and member.agent != agent.id}
    near = {peer for round in agent.topology.window() for peer in agent.topology.neighbours(agent.id, round)}
    return [*sorted(running & near), *sorted(running - near)]
