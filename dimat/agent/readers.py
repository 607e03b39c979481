"""Who may fetch from an agent: whoever reads it by the graph, now, a moment ago or in the next round."""

from __future__ import annotations

from dimat.agent.state import Agent
from dimat.transport.base import HISTORY


def may_read(agent: Agent, peer: int) -> bool:
    """Whether `peer` may have what `agent` has published.

    A reader may be as many rounds behind as are kept; where the graph changes from round to round the edges of all
    these count. Before the first merge everything is read that the first window has edges for: the tree along
    which a basis is agreed is among them. The last merge over the complete graph is for everybody in the run.

    Repairs count beside the graph as it was planned: an agent that comes back asks its former neighbours for a model.
    A newcomer of an elastic run has no neighbours yet, and may ask anybody.
    """
    if not 0 <= peer < agent.config.num_seats or peer == agent.id:
        return False
    if peer >= agent.config.agents:
        return True
    now = agent.status.round
    if agent.config.merge.final == "complete" and now >= agent.config.rounds:
        return True
    if any(
        peer in agent.topology_in(round).readers(agent.id, round - 1) for round in range(max(1, now - HISTORY), now + 2)
    ):
        return True
    if agent.id >= agent.config.agents:
        return False
    topology = agent.topology
    # Rounds count from one, those of a topology from zero.
    recent = range(max(0, now - 1 - HISTORY), now)
    rounds = (0,) if topology.static else sorted({*recent, *topology.window()})
    return any(peer in topology.readers(agent.id, round) for round in rounds)
