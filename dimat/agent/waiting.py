"""Wait on the network: say whom for and why while it lasts, remember how long it took, tell what deadlines passed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from dimat.agent.deadline import What, came, expired
from dimat.agent.state import Agent
from dimat.transport.base import Wait

log = logging.getLogger(__name__)

_REMEMBERED: Mapping[str, What] = {"published": "published", "acknowledged": "read"}
_REGULAR = ("snapshot", "step", "difference")
"""Kinds that are awaited again and again, so that past waits tell of those to come."""
_MISSED = {"published": "has not published it", "acknowledged": "has not confirmed that it has read it"}


def wait_on_network(agent: Agent, wait: Wait) -> frozenset[int]:
    """Block until all of `wait.peers` have done it or the time is over; returns who has.

    Heartbeats carry whom the agent waits for, the log has it when it changes. How long each peer took goes into
    `agent.past`, from which the next deadlines follow.
    """
    if not wait.peers:
        return frozenset()
    since = agent.status.now()
    arrivals: dict[int, float] = {}
    told = ""

    def on_change(pending: Mapping[int, str]) -> None:
        nonlocal told
        now = agent.status.now()
        for peer in wait.peers:
            if peer not in pending:
                arrivals.setdefault(peer, now - since)
        agent.status.wait_for(wait.round, pending, since)
        if pending and now - since > 1.0 and agent.status.waiting != told:
            told = agent.status.waiting
            log.info("agent %d: %s", agent.id, told)

    there = agent.transport.wait(wait, on_change)
    agent.status.waiting = ""
    remember(agent, wait, there, arrivals, agent.status.now() - since)
    return there


def remember(agent: Agent, wait: Wait, there: frozenset[int], arrivals: Mapping[int, float], waited_s: float) -> None:
    """Keep in `agent.past` how a wait went, and tell of those who have not come.

    Args:
        agent: who waited.
        wait: for what.
        there: who has come.
        arrivals: after how many seconds, where it is known.
        waited_s: how long it has waited altogether.
    """
    if wait.kind in _REGULAR:
        for peer in sorted(there):
            agent.past = came(agent.past, _REMEMBERED[wait.what], peer, arrivals.get(peer, waited_s))
    for peer in sorted(set(wait.peers) - there):
        _tell(agent, wait, peer, passed=waited_s >= wait.timeout_s)


def _tell(agent: Agent, wait: Wait, peer: int, *, passed: bool) -> None:
    """Log that `peer` has not come: its deadline has passed, or it need not be waited for any more."""
    if not passed:
        log.info("agent %d: round %d: %s: agent %d is not waited for any more", agent.id, wait.round, wait.kind, peer)
        return
    in_a_row = ""
    if wait.kind in _REGULAR:
        what = _REMEMBERED[wait.what]
        agent.past = expired(agent.past, what, peer)
        number = agent.past.expiries[what, peer]
        in_a_row = f" ({number} times in a row)" if number > 1 else ""
    log.warning(
        "agent %d: round %d: %s: agent %d %s by its deadline of %.3g s%s",
        *(agent.id, wait.round, wait.kind, peer, _MISSED[wait.what], wait.timeout_s, in_a_row),
    )
