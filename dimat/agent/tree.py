"""The tree along which agents come to one basis: an agent's place in it, and what comes from a parent.

It is the breadth-first tree from the graph's centre (`dimat.topology.reading_tree`), of those who are in the graph.
What goes to the root goes along another where edges have a direction (`dimat.topology.telling_tree`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dimat.agent.host import fetch
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.errors import TransportError
from dimat.snapshot.encode import decode
from dimat.statedict import StateDict
from dimat.transport.base import Wait

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an agent is in the tree along which a basis is agreed."""

    root: int
    parent: int | None
    """None for the root."""
    children: tuple[int, ...]
    tellers: tuple[int, ...]
    """Those from whom the agent hears what is on its way to the root: its children, where edges have no direction."""
    members: tuple[int, ...]
    """All agents of the tree, ascending."""
    turn: int
    """The agent's place among the members."""
    depth: int
    """Edges to the root."""
    height: int
    """Edges from the furthest member to the root, on the way up."""
    below: int
    """Edges to the agent from the furthest of those from whom it hears on the way up."""


def place_of(agent: Agent, number: int) -> Place:
    """The agent's place among those who are in the graph in round `number` and can hear from it."""
    root, parents = agent.topology_in(number).tree(around=agent.id)
    depths = {root: 0}
    for child, parent in parents.items():  # level by level
        depths[child] = depths[parent] + 1
    told = agent.topology_in(number).tree_up(around=agent.id)
    below = dict.fromkeys(depths, 0)
    for teller in reversed(told):  # from the leaves
        below[told[teller]] = max(below[told[teller]], below[teller] + 1)
    members = tuple(sorted(depths))
    return Place(
        root=root,
        parent=parents.get(agent.id),
        children=tuple(sorted(child for child, parent in parents.items() if parent == agent.id)),
        tellers=tuple(sorted(teller for teller, hearer in told.items() if hearer == agent.id)),
        members=members,
        turn=members.index(agent.id),
        depth=depths[agent.id],
        height=below[root],
        below=below[agent.id],
    )


def fetch_from_parent(
    agent: Agent, number: int, received: dict[int, int], clock: PhaseClock
) -> Steps[StateDict | None]:
    """The parent's basis, or the lowest live neighbour's when the parent is dead; None for the root, or all alone."""
    place = place_of(agent, number)
    if place.parent is None:
        return None  # the root: the others come to it
    # A parent may itself wait a whole deadline for its own: who is deeper in the tree has more patience.
    patience_s = agent.config.exchange.timeout_s * place.depth
    others = tuple(peer for peer in agent.topology_in(number).neighbours(agent.id) if peer != place.parent)
    for peers, timeout_s in (((place.parent,), patience_s), (others, 1.0)):
        with clock("wait"):
            ready = yield Wait("published", peers, "basis", number, timeout_s)
        basis = yield from _fetch_first(agent, sorted(ready), number, received, clock)
        if basis is not None:
            return basis
    log.warning("agent %d found nobody to agree on a basis with and keeps its own", agent.id)
    return None


def _fetch_first(
    agent: Agent, peers: list[int], number: int, received: dict[int, int], clock: PhaseClock
) -> Steps[StateDict | None]:
    """The first basis of `peers` that arrives whole."""
    for peer in peers:
        with clock("gather"):
            fetches = (agent.fetch_from(peer, "basis", number),)
            answer = (yield from fetch(agent, fetches, agent.config.exchange.timeout_s))[peer]
        if not isinstance(answer, TransportError):
            received[peer] = received.get(peer, 0) + answer.num_bytes
            return decode(answer)
        log.warning("agent %d: the basis of agent %d did not come: %s", agent.id, peer, answer)
    return None
