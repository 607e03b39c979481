"""An agent that comes, or comes back, while the others are in their rounds: from its checkpoint or a neighbour's model.

One that is a round behind does that round: its neighbours keep two and wait for it. Its own checkpoint serves while it
is at most `membership.max_staleness` rounds behind: the agent goes on from it in the round of the others and leaves out
what it missed, since alone it would never be faster than they are. Further behind, or when the others have agreed on a
basis without it, it takes the newest model of a neighbour that answers, in the basis that all agreed on, and goes on
after that model's round; the optimiser starts anew. So does an agent that joins an elastic run; only one
that brings a trained model (`init` names a folder) keeps it, and permutes itself into the basis of the others.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from dimat.agent.basis import match, permute_agent
from dimat.agent.live import refuse_difference
from dimat.agent.state import Agent
from dimat.errors import PeerUnavailable, TransportError
from dimat.messages import View
from dimat.snapshot.encode import decode
from dimat.statedict import load_into
from dimat.transport.base import HISTORY, Fetch

ASK_S = 5.0
"""How long one that may be gone is asked: there are others."""
RETRY_S = 0.5
"""Pause of a newcomer before it asks for a first model again."""

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
    if agent.id >= agent.config.agents and view.start_round == 0:
        return replace(view, start_round=_join_in(agent, view))
    if behind <= HISTORY - 1:
        return view
    agent.resume(view.start_round)
    missed = range(view.start_round + 1, view.start_round + behind + 1)
    without_basis = not agent.basis_settled and any(agent.merges(round) for round in missed)
    round = None
    if behind > agent.config.membership.max_staleness or without_basis:
        round = _await_model(agent, view)
    if round is None:
        round = view.start_round + behind
        go_on_from_own(agent, view.start_round, round)
    agent.status.round = round
    return replace(view, start_round=round)


def go_on_from_own(agent: Agent, held: int, round: int) -> None:
    """Take the checkpoint of round `held` for one of `round`: what was missed is left out."""
    log.warning("agent %d: its checkpoint of round %d has to do for round %d", agent.id, held, round)
    agent.resume(held)
    agent.save(round)


def _join_in(agent: Agent, view: View) -> int:
    """The round after which a newcomer goes on; waits until somebody has published a model.

    Raises:
        PeerUnavailable: nobody has within the deadline.
    """
    round = _await_model(agent, view)
    if round is None:
        timeout_s = agent.config.exchange.timeout_s
        raise PeerUnavailable(
            f"agent {agent.id} found nobody who would give it a model to begin with in {timeout_s:g} s",
            hint="are the others in their rounds? `exchange.timeout_s` says how long to wait for the first one",
        )
    agent.status.round = round
    return round


def _await_model(agent: Agent, view: View) -> int | None:
    """`take_neighbours_model` of whoever publishes one within the deadline; None if nobody does."""
    end = time.monotonic() + agent.config.exchange.timeout_s
    while (round := take_neighbours_model(agent, _alive(agent, view))) is None and time.monotonic() < end:
        time.sleep(RETRY_S)
    return round


def take_neighbours_model(agent: Agent, peers: list[int]) -> int | None:
    """Become what the first of `peers` that answers published last, and save it; returns its round, None if none did.

    A newcomer with a trained model of its own takes over the basis alone.

    Raises:
        SchemaError: it trains another model.
    """
    timeout_s = agent.config.exchange.timeout_s
    for peer in peers:
        try:
            theirs = agent.transport.describe(peer, min(ASK_S, timeout_s)).schema
            refuse_difference(agent.id, agent.schema, peer, theirs)
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
        trained = agent.id >= agent.config.agents and agent.config.init not in ("same", "different")
        if trained and agent.spec is not None and agent.config.basis == "agree":
            permute_agent(agent, match(agent, decode(answer), moves="self")[0])
        elif not trained:
            load_into(agent.model, decode(answer))
        agent.basis_settled = True
        agent.remember_base()
        agent.save(round)
        what = "basis" if trained else "model"
        log.warning("agent %d starts with the %s of agent %d after round %d", agent.id, what, peer, round)
        return round
    return None


def _alive(agent: Agent, view: View) -> list[int]:
    """Agents in their rounds: neighbours first, then all others, by id."""
    running = {member.agent for member in view.members if member.state == "running" and member.agent != agent.id}
    near: set[int] = set()
    if agent.id < agent.config.agents:  # a newcomer is not in the graph yet
        near = {peer for round in agent.topology.window() for peer in agent.topology.neighbours(agent.id, round)}
    return [*sorted(running & near), *sorted(running - near)]
