"""Who may fetch from an agent: whoever reads it by the graph, now or a moment ago, and members that catch up."""

from __future__ import annotations

from dimat.agent.state import Agent
from dimat.transport.base import HISTORY


def may_read(agent: Agent, peer: int) -> bool:
    """Whether `peer` may have what `agent` has published. Called while the round goes on, from the thread that serves.

    A reader may be as many rounds behind as are kept, and may not have heard yet how the graph was repaired: the edges
    of these rounds count, and those that the run began with. Before the first merge everything is read that the first
    window has edges for; the tree along which a basis is agreed is among them. The last merge over the complete graph
    is for everybody, and a member that is not in the graph takes its first model from anybody: it was away, or is new.
    """
    if not 0 <= peer < agent.config.num_seats or peer == agent.id:
        return False
    now = agent.status.round
    if agent.config.merge.final == "complete" and now >= agent.config.rounds:
        return True
    if peer in agent.away(now):
        return True
    # Rounds count from one, those of a topology from zero; where models travel within a round, exchanges do.
    if agent.algorithm is not None:
        recent = [(now, exchange) for exchange in range(agent.exchange - HISTORY, agent.exchange + 1)]
    else:
        recent = [(round, round) for round in range(now - HISTORY, now + 1)]
    if any(peer in agent.topology_in(round).readers(agent.id, at - 1) for round, at in recent if at >= 1):
        return True
    return agent.id < agent.topology.num_agents and any(
        peer in agent.topology.readers(agent.id, round) for round in agent.topology.window()
    )
