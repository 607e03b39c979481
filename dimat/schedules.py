"""In which rounds models merge: a pure function of the round, by name or as a plug-in.

A schedule is a function `fn(round, rounds, *, ...options) -> bool`: whether round `round` (from 1) of `rounds` ends
with a merge. It sees nothing else, so every agent and the coordinator come to the same answer without a word. Built in:

    period       every n-th round: round % every == 0                       (`merge.every` is its n)
    growing      gaps that grow: ceil(first * factor^k) rounds before the (k + 1)-th merge, factor above 1
    shrinking    gaps that shrink: ceil(first * factor^k), factor below 1, down to a merge in every round
    late         a fixed number of merges, evenly over the last `window` rounds; all in a row where nothing is said

Late communication may be worth more than the same amount spread evenly, and one merge of all at the very end
(`merge.final: complete`) most of all: «On the surprising effectiveness of a single global merging in decentralized
learning», arXiv 2507.06542.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dimat.errors import ConfigError, DimatError, PluginError
from dimat.plugins import check_options, resolve

GROUP = "dimat.schedules"
"""The entry points that add schedules."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rounds of one run that end with a merge.

    >>> schedule = Schedule(rounds=9, merging=(3, 6, 9))
    >>> schedule.merges(6), schedule.lead(1), schedule.lead(2)
    (True, 3, 6)
    """

    rounds: int
    merging: tuple[int, ...]
    """Ascending."""

    def merges(self, round: int) -> bool:
        """Whether `round` ends with a merge."""
        return round in self.merging

    def lead(self, hops: int) -> int:
        """How many rounds an agent can be ahead of another that is `hops` edges away, at most; at least 1.

        Between two merges agents do not wait for each other. With a neighbour's merge m_k still to come an agent waits
        in m_k itself; each further hop allows one merge more. So it is the longest stretch of `hops` gaps in a row,
        the start (round 0) and the end (the round after the last) counted in.
        """
        meetings = [0, *self.merging, self.rounds + 1]
        hops = max(1, min(hops, len(meetings) - 1))
        return max(later - earlier for earlier, later in zip(meetings, meetings[hops:], strict=False))


def period(round: int, rounds: int, *, every: int = 1) -> bool:
    """A merge in every n-th round.

    Args:
        round: from 1.
        rounds: of the run.
        every: n; a config says it as merge.every.

    >>> [round for round in range(1, 8) if period(round, 7, every=3)]
    [3, 6]
    """
    del rounds  # the period does not depend on the end
    _whole("every", every)
    return round % every == 0


def growing(round: int, rounds: int, *, first: int = 1, factor: float = 2.0) -> bool:
    """Merges that become rarer.

    Args:
        round: from 1.
        rounds: of the run.
        first: rounds to the first merge.
        factor: how many times longer each gap is than the one before; above 1.

    >>> [round for round in range(1, 32) if growing(round, 31)]
    [1, 3, 7, 15, 31]
    """
    del rounds  # it begins early and does not look at the end
    if not _number("factor", factor) > 1:
        raise ValueError(f"factor is {factor!r}, expected a number above 1: gaps are to grow")
    return _in_gaps(round, _whole("first", first), factor)


def shrinking(round: int, rounds: int, *, first: int = 8, factor: float = 0.5) -> bool:
    """Merges that become more frequent, down to one in every round.

    Args:
        round: from 1.
        rounds: of the run.
        first: rounds to the first merge.
        factor: the share that each gap is of the one before; above 0 and below 1.

    >>> [round for round in range(1, 19) if shrinking(round, 18)]
    [8, 12, 14, 15, 16, 17, 18]
    """
    del rounds  # what it comes down to is a merge in every round, whenever the end is
    if not 0 < _number("factor", factor) < 1:
        raise ValueError(f"factor is {factor!r}, expected a number above 0 and below 1: gaps are to shrink")
    return _in_gaps(round, _whole("first", first), factor)


def late(round: int, rounds: int, *, budget: int, window: int | None = None) -> bool:
    """A fixed number of merges at the end of the run, the last one in its last round.

    Args:
        round: from 1.
        rounds: of the run.
        budget: how many merges.
        window: the last so many rounds, over which they are spread evenly; none: as many as merges.

    >>> [round for round in range(1, 21) if late(round, 20, budget=3)]
    [18, 19, 20]
    >>> [round for round in range(1, 21) if late(round, 20, budget=3, window=10)]
    [14, 17, 20]
    """
    _whole("budget", budget)
    window = budget if window is None else _whole("window", window)
    if not budget <= window <= rounds:
        raise ValueError(
            f"budget is {budget} and window {window} in a run of {rounds} rounds, expected budget <= window <= rounds"
        )
    place = round - (rounds - window)
    return place >= 1 and place * budget // window > (place - 1) * budget // window


BUILTIN: Mapping[str, Callable[..., bool]] = {
    "period": period,
    "growing": growing,
    "shrinking": shrinking,
    "late": late,
}


def make_schedule(name: str, options: Mapping[str, Any], rounds: int, *, final: bool = False) -> Schedule:
    """The schedule `name` for a run of `rounds` rounds; with `final` the last one merges whatever the schedule says.

    Raises:
        PluginError: nothing answers to the name (the closest is told), or it answers something else than yes or no.
        ConfigError: an option that the schedule does not have, or a value that it refuses.

    >>> make_schedule("late", {"budget": 2}, 10).merging
    (9, 10)
    >>> make_schedule("perod", {}, 10)
    Traceback (most recent call last):
    dimat.errors.PluginError: unknown merge schedule 'perod'. Did you mean 'period'? ...
    """
    return _made(name, json.dumps(dict(options), sort_keys=True), rounds, final)


@lru_cache(maxsize=64)  # agents ask in every round
def _made(name: str, options: str, rounds: int, final: bool) -> Schedule:
    asked: dict[str, Any] = json.loads(options)
    function: Any = resolve("merge schedule", name, BUILTIN, group=GROUP)
    if not callable(function):
        raise PluginError(f"merge schedule {name!r} is a {type(function).__name__}, expected a function")
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    check_options("merge schedule", name, asked, known)
    merging = []
    for round in range(1, rounds + 1):
        try:
            answer = function(round, rounds, **asked)
        except DimatError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"merge schedule {name!r} refuses its options {asked}: {error}") from error
        except Exception as error:  # a user's function
            raise PluginError(
                f"merge schedule {name!r} failed for round {round} of {rounds}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(answer, bool):
            raise PluginError(
                f"merge schedule {name!r} answered {answer!r} for round {round}, expected True or False",
                hint="a schedule is fn(round, rounds, *, ...options) -> bool",
            )
        if answer or (final and round == rounds):
            merging.append(round)
    return Schedule(rounds, tuple(merging))


def _in_gaps(round: int, first: int, factor: float) -> bool:
    """Whether `round` is one of the sums of ceil(first * factor^k), k = 0, 1, ..."""
    at, gap = 0, float(first)
    while at < round:
        at += max(1, math.ceil(gap - 1e-9))
        gap = min(gap * factor, 1e9)
    return at == round


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
    return value


def _number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, expected a number")
    return float(value)
