"""Who is merged with right after an agreement whose sweeps were taken back: those who are near in its tree.

Every agent has been matched to its parent. Between two others lie as many matchings as there are edges of the tree from
one to the other, and what each has got wrong adds up: an edge of the graph that closes a long way round the tree, such
as the last one of a ring, joins two models whose units hardly correspond. Sweeps (`dimat.agent.sweeps`) match across
such edges too. Where they have been taken back the edge is left out of this one merge, at both ends, and its weight
goes to self: a symmetric row stays symmetric, so that W stays doubly stochastic. From the next round on it counts.

Siblings are near: their parent is between them, and on a complete graph nobody is further apart. What it is worth is
told in docs/notes.md, for the ring; a grid loses more edges in that merge. Where reading is not mutual only one end of
an edge would leave it out, and where the graph changes the edge may not come back soon: there nobody is left out.
"""

from __future__ import annotations

import logging

from dimat.agent.gather import realised_row
from dimat.agent.state import Agent
from dimat.topology.tree import steps_apart

NEAR = 2
"""Edges of the tree between two agents, at most."""

log = logging.getLogger(__name__)


def nearby_row(agent: Agent, number: int) -> dict[int, float]:
    """The agent's row of the mixing matrix in round `number` without those who are not near in the tree of that round.

    Args:
        agent: whose row it is.
        number: the round of the agreement.

    Returns:
        weights by agent, self included; what the others had is added to the agent's own. In the final merge over the
        complete graph, on directed graphs and on those that change from round to round nobody is left out.
    """
    row = agent.row(number)
    if agent.is_final_merge(number) or not agent.mutual(number) or len(agent.topology.window()) > 1:
        return row
    root, parents = agent.topology_in(number).tree(around=agent.id)
    there = frozenset((root, *parents))
    near = frozenset(peer for peer in there & frozenset(row) if steps_apart(parents, agent.id, peer) <= NEAR)
    for peer in sorted(frozenset(row) - near):
        log.info("agent %d: round %d: agent %d is left out: too far in the tree of the basis", agent.id, number, peer)
    return realised_row(agent.id, row, near)
