"""How long a neighbour is waited for: its own past decides, between a floor and a ceiling.

With d_1 ... d_n the seconds that past waits for one neighbour took, newest `WINDOW` of them,

    m = median(d)        MAD = median |d_i - m|        deadline = min(ceiling, max(floor, m + 4 MAD))

Both are medians, so a few odd rounds (an evaluation, a garbage collection) do not move the deadline, and a neighbour
that is regularly late is waited for as long as it regularly takes. Until `MIN_SAMPLES` waits are known the ceiling
holds: the first rounds, in which agents start and align, are the least regular ones. A wait that expired is no
duration: how long it would have taken is not known.

Whoever missed its deadline is late, and its next deadline is half the floor, or m + 4 MAD where that is more. So long
as it goes on publishing rounds, old ones though, it keeps that: it finds its neighbours' rounds ready, need not wait
for them, and so catches up. When it publishes nothing from one wait to the next, the deadline is halved each time,
down to a sixteenth of the floor: one that is gone costs next to nothing, and is noticed when it comes back.

Half the floor, because an agent that waits for a late neighbour is late itself for its other neighbours by as much; had
they no more patience than it has, they would drop it, and be dropped in turn. And less for one that is gone than for
one that is late, because else two healthy groups could stay a round apart for ever, each waiting as long as the other,
one for the lost agent and one for them. `tests/agent/test_deadline_model.py` plays both.

Everything is a pure function; the memory is a value that is passed in and out.

Source of the robust estimate: Hampel, «The influence curve and its role in robust estimation», JASA 69, 1974.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

WINDOW = 20
"""Waits that are remembered of each neighbour."""

LEAST_SHARE = 1 / 16
"""Of the floor: how long one is waited for that has not been heard of for long."""

MIN_SAMPLES = 5
"""Waits that must be known before the deadline follows them."""

DEFAULT_FLOOR_S = 10.0
"""A neighbour on a busy machine may stand still for seconds without being ill."""

What = Literal["published", "read", "fetched"]
"""What is awaited: that a neighbour publishes, that a reader reads, that a transfer ends."""

Key = tuple[What, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """Between what deadlines move.

    >>> Limits(60.0), Limits(3.0).floor_s
    (Limits(ceiling_s=60.0, min_s=None, adaptive=True), 3.0)
    """

    ceiling_s: float
    min_s: float | None = None
    """None: `DEFAULT_FLOOR_S`, or the ceiling where that is lower."""
    adaptive: bool = True
    """False: every deadline is the ceiling."""

    @property
    def floor_s(self) -> float:
        """The shortest deadline of a neighbour that came last time."""
        return min(self.ceiling_s, DEFAULT_FLOOR_S if self.min_s is None else self.min_s)


@dataclass(frozen=True, slots=True)
class Past:
    """What an agent remembers of its waits, by what was awaited and from whom."""

    waits: Mapping[Key, tuple[float, ...]] = field(default_factory=dict)
    """Seconds that waits took which did not expire, oldest first."""
    expiries: Mapping[Key, int] = field(default_factory=dict)
    """Deadlines that passed in a row while nothing came at all, of those who are late; others are not in it."""
    seen: Mapping[int, int] = field(default_factory=dict)
    """The newest round that a late neighbour had published when it was last looked at."""


def deadline_s(past: Past, what: What, peer: int, limits: Limits) -> float:
    """Seconds after which `peer` is not waited for any longer.

    >>> past = Past({("published", 1): (2.0, 3.0, 2.0, 2.0, 4.0)})
    >>> deadline_s(past, "published", 1, Limits(60.0, 1.0))
    2.0
    >>> deadline_s(Past(), "published", 1, Limits(60.0, 1.0))
    60.0
    """
    if not limits.adaptive:
        return limits.ceiling_s
    waits = past.waits.get((what, peer), ())
    known = len(waits) >= MIN_SAMPLES
    usual_s = min(limits.ceiling_s, median_and_mads(waits)) if known else limits.ceiling_s
    expiries = past.expiries.get((what, peer), 0)
    if not expiries or what == "fetched":  # a transfer that is cut short was for nothing
        return max(limits.floor_s, usual_s)
    late_s = max(limits.floor_s / 2, usual_s) if known else limits.floor_s / 2
    return max(limits.floor_s * LEAST_SHARE, late_s * 0.5 ** (expiries - 1))


def median_and_mads(waits: tuple[float, ...], num_mads: float = 4.0) -> float:
    """The median plus `num_mads` times the median distance from it.

    >>> median_and_mads((1.0, 2.0, 3.0, 4.0, 100.0))
    7.0
    """
    middle = statistics.median(waits)
    return middle + num_mads * statistics.median(abs(wait - middle) for wait in waits)


def came(past: Past, what: What, peer: int, waited_s: float) -> Past:
    """What is remembered after a wait of `waited_s` seconds that `peer` ended."""
    key = (what, peer)
    waits = (*past.waits.get(key, ()), waited_s)[-WINDOW:]
    return replace(answered(past, what, peer), waits={**past.waits, key: waits})


def answered(past: Past, what: What, peer: int) -> Past:
    """What is remembered of one that is there, where how long it took says nothing of the next time.

    >>> answered(expired(Past(), "fetched", 1), "fetched", 1) == Past()
    True
    """
    return replace(past, expiries={key: number for key, number in past.expiries.items() if key != (what, peer)})


def expired(past: Past, what: What, peer: int) -> Past:
    """What is remembered after a deadline that passed.

    >>> expired(expired(Past(), "published", 1), "published", 1).expiries
    {('published', 1): 2}
    """
    key = (what, peer)
    return replace(past, expiries={**past.expiries, key: past.expiries.get(key, 0) + 1})


def looked_at(past: Past, peer: int, newest: int) -> Past:
    """What is remembered after a look at a late neighbour whose newest round is `newest`: one that moves is alive.

    >>> past = looked_at(expired(expired(Past(), "published", 1), "published", 1), 1, newest=7)
    >>> past.expiries, past.seen
    ({('published', 1): 1}, {1: 7})
    """
    expiries = past.expiries
    key: Key = ("published", peer)
    if newest > past.seen.get(peer, -1) and key in expiries:
        expiries = {**expiries, key: 1}
    return replace(past, expiries=expiries, seen={**past.seen, peer: newest})


def is_late(past: Past, what: What, peer: int) -> bool:
    """Whether `peer` did not come in time when it was last waited for."""
    return (what, peer) in past.expiries
