"""Who is in the graph, from which round on: decided from the seats, told to the agents as numbered changes.

An agent leaves the graph when it is lost, has failed, has left before the end or is asked to. It is back when it is in
its rounds again, about as far as the others. A change names a round that nobody has begun: reports are answered before
their sender goes on, so an agent in round r hears of it before round r + 1, and both ends of an edge use the same
graph. An agent that does not hear (the coordinator is away) goes on with what it knows; edges on which two differ are
dropped at both ends by the acknowledgements of each merge.
"""

from __future__ import annotations

from collections.abc import Sequence

from dimat.coordinator.membership import Group, Seat
from dimat.coordinator.options import names
from dimat.messages import Change

NUM_TOLD = 8
"""As many of the newest changes are told: agents are a few rounds apart at most."""


def away_now(changes: Sequence[Change], newcomers: frozenset[int] = frozenset()) -> frozenset[int]:
    """Who is out of the graph by the newest change; before the first one those whom a run does not begin with."""
    return frozenset(changes[-1].away) if changes else newcomers


def next_change(
    group: Group,
    changes: Sequence[Change],
    newest: int,
    last_round: int,
    newcomers: frozenset[int] = frozenset(),
    most_behind: int = 1,
) -> Change | None:
    """The change that is due, or None.

    Args:
        group: all seats; after a restart of the coordinator nothing is decided before every running agent was heard.
        changes: those made so far, ascending.
        newest: the newest round that anybody has reported.
        last_round: after which all agents stop.
        newcomers: agents that may come later.
        most_behind: rounds that an agent may be behind the newest report when it is taken back into the graph.

    >>> from dataclasses import replace
    >>> group = replace(Group(tuple(Seat(agent, "running", at=7) for agent in range(3))), forming=False)
    >>> change = next_change(group.with_seat(Seat(1, "lost", at=7)), [], newest=6, last_round=20)
    >>> change.number, change.from_round, change.away, change.reason
    (1, 8, (1,), 'without agent 1 (lost)')
    """
    running = group.in_state("running")
    if group.forming or not running or any(seat.presumed for seat in running):
        return None
    before = away_now(changes, newcomers)
    away = frozenset(seat.agent for seat in group.seats if _is_away(seat, before, newest - most_behind, last_round))
    from_round = max(newest + 1, *(seat.at for seat in running)) + 1
    if away == before or from_round > last_round:
        return None
    number = changes[-1].number + 1 if changes else 1
    leaving = tuple(seat.agent for seat in running if seat.draining)
    return Change(number, from_round, tuple(sorted(away)), _reason(group, before, away), leaving)


def last_round_of(seat: Seat, changes: Sequence[Change]) -> int | None:
    """The round after which an agent that was asked to leave does; None for all others.

    The others do without it from the next round on.
    """
    if not seat.draining:
        return None
    left = None
    for change in reversed(changes):
        if seat.agent not in change.away:
            break
        left = change.from_round - 1
    return left


def after_restart(
    changes: Sequence[Change],
    start_round: int,
    absent: frozenset[int] = frozenset(),
    newcomers: frozenset[int] = frozenset(),
) -> tuple[Change, ...]:
    """The changes of a run whose agents all start anew after `start_round`: all but the `absent` are in the graph."""
    kept = tuple(change for change in changes if change.from_round <= start_round)
    if away_now(kept, newcomers) == absent and kept == tuple(changes):
        return kept
    number = max((change.number for change in changes), default=0) + 1
    return (*kept, Change(number, start_round + 1, tuple(sorted(absent)), "all agents start anew"))


def _is_away(seat: Seat, before: frozenset[int], least: int, last_round: int) -> bool:
    """`least`: the round that one who is out must have come to."""
    match seat.state:
        case "lost" | "failed":
            return True
        case "done":
            return seat.agent in before or max(seat.at, seat.round) < last_round
        case "running":
            if seat.draining:
                return True
            # Slow is not lost: whoever is in the graph stays in it, and deadlines bound what that costs its neighbours.
            return seat.agent in before and seat.at < least
        case _:  # whoever has just come back is where it was until it has begun
            return seat.agent in before


def _reason(group: Group, before: frozenset[int], away: frozenset[int]) -> str:
    parts = []
    if left := sorted(away - before):
        why = ", ".join(sorted({_words(group.seats[agent]) for agent in left}))
        parts.append(f"without {names(left)} ({why})")
    if back := sorted(before - away):
        parts.append(f"with {names(back)}")
    return "; ".join(parts)


def _words(seat: Seat) -> str:
    if seat.state == "running":
        return "leaving"
    return "left" if seat.state == "done" else seat.state
