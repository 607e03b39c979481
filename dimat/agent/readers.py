"""Who may fetch from an agent: whoever reads it by the graph, now or a moment ago."""

from __future__ import annotations

from dimat.agent.state import Agent
from dimat.transport.base import HISTORY


def may_read(agent: Agent, peer: int) -> bool:
    """Whether `peer` may have what `agent` has published.

    A reader may be as many rounds behind as are kept; where the graph changes from round to round the edges of all
    these count. Before the first merge everything is read that the first window has edges for: the tree along
    which a basis is agreed is among them. The last merge over the complete graph is for everybody in the run.
    """
    if not 0 <= peer < agent.config.agents or peer == agent.id:
        return False
    now = agent.status.round
    if agent.config.merge.final == "complete" and now >= agent.config.rounds:
        return True
    topology = agent.topology
    # Rounds count from one, those of a topology from zero.
    recent = range(max(0, now - 1 - HISTORY), now)
    rounds = (0,) if topology.static else sorted({*recent, *topology.window()})
    return any(peer in topology.readers(agent.id, round) for round in rounds)
