"""What the rows of a table say: spreads over seeds, the default's lead, budgets and crossovers, overhead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.decentralized.cells import Cell, Setting
from benchmarks.decentralized.methods import RIVALS
from benchmarks.decentralized.table import PHASES, Row, finished

SHOWN_ROUNDS = (1, 3, 10, 20)
TOLERANCE = 0.015
"""By how much the default may be below the best of its rivals."""
OVERHEAD_LIMIT = 0.05
"""What the default's merges may cost over plain averaging, of its round."""
MEASURING = ("wait", "evaluate", "sketch", "checkpoint")
"""Phases that are not the method's work: the others' turns, and what is there to look on."""
MERGING = ("publish", "gather", "align", "check", "fold", "calibrate", "gate")
SETTLED = 3
"""Overhead is counted after this round: a basis is agreed on once, at the first merge."""

Runs = Mapping[int, Sequence[Row]]
"""The rows of one method on one setting by seed, in order of rounds."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation (n - 1) over the seeds; NaN where there are too few.

    >>> spread([0.5, 0.75, 1.0]).std
    0.25
    """

    mean: float
    std: float
    num: int


def spread(values: Iterable[float]) -> Spread:
    """Of the numbers that are there."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Spread(math.nan, math.nan, 0)
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Spread(mean, math.nan, 1)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1)), len(known))


def by_setting(rows: Iterable[Row]) -> dict[Setting, dict[str, dict[int, list[Row]]]]:
    """The rows of finished cells by setting, method and seed, in the order in which they stand in the table."""
    rows = list(rows)
    whole = finished(rows)
    found: dict[Setting, dict[str, dict[int, list[Row]]]] = {}
    for row in rows:
        if row.cell in whole:
            runs = found.setdefault(row.cell.setting, {}).setdefault(row.cell.method, {})
            runs.setdefault(row.cell.seed, []).append(row)
    for methods in found.values():
        for runs in methods.values():
            for seed in runs:
                runs[seed].sort(key=lambda row: row.round)
    return found


def shown_rounds(setting: Setting) -> list[int]:
    """The rounds that tables show of a setting: 1, 3, 10, 20 and, of shorter runs, the last."""
    return sorted({number for number in SHOWN_ROUNDS if number <= setting.rounds} | {min(setting.rounds, 20)})


def at_round(runs: Runs, number: int, column: str = "accuracy") -> Spread:
    """A column in one round, over the seeds."""
    return spread(row.numbers[column] for rows in runs.values() for row in rows if row.round == number)


def lead(methods: Mapping[str, Runs], number: int) -> float:
    """Accuracy of `dimat` minus that of the best rival, means over the seeds that all of them have; NaN without any."""
    compared = ("dimat", *RIVALS)
    if any(name not in methods for name in compared):
        return math.nan
    seeds = set.intersection(*(set(methods[name]) for name in compared))
    if not seeds:
        return math.nan
    means = {name: at_round({s: methods[name][s] for s in seeds}, number).mean for name in compared}
    return means["dimat"] - max(means[name] for name in RIVALS)


def diverged(rows: Iterable[Row]) -> dict[Cell, int]:
    """The runs that diverged, and the last round that each of them did: after it nothing is spent any more."""
    ended: dict[Cell, int] = {}
    for row in rows:
        if math.isnan(row.numbers["consensus"]) and seconds_of(row) == 0:
            ended[row.cell] = min(ended.get(row.cell, row.round), row.round - 1)
    return ended


def difference(methods: Mapping[str, Runs], one: str, other: str, number: int) -> float:
    """Accuracy of one method minus that of another, means over the seeds that both have; NaN without any."""
    seeds = set(methods.get(one, ())) & set(methods.get(other, ()))
    if not seeds:
        return math.nan
    first, second = (at_round({s: methods[name][s] for s in sorted(seeds)}, number).mean for name in (one, other))
    return first - second


def holds(leads: Iterable[float]) -> bool:
    """Whether the default is nowhere further below than the tolerance; floats get a millionth of grace."""
    return all(value >= -TOLERANCE - 1e-6 for value in leads)


def seconds_of(row: Row) -> float:
    """Mean seconds of an agent that are the method's: training and merging, without waiting and measuring."""
    return sum(row.numbers[f"s_{phase}"] for phase in PHASES if phase not in MEASURING) + row.numbers["s_other"]


Curve = list[tuple[float, float]]
"""What was spent up to the end of each round, and the accuracy then."""


def curve(runs: Runs, spent: str) -> Curve:
    """Mean accuracy over the seeds against `round`, `bytes` (all agents together) or `seconds` (of one agent)."""
    points: list[list[tuple[float, float]]] = []
    for rows in runs.values():
        total, mine = 0.0, []
        for row in rows:
            total += {"round": 1.0, "bytes": row.numbers["bytes"], "seconds": seconds_of(row)}[spent]
            mine.append((total, row.numbers["accuracy"]))
        points.append(mine)
    return [
        (math.fsum(x for x, _ in each) / len(each), math.fsum(y for _, y in each) / len(each))
        for each in zip(*points, strict=True)
    ]


def within(points: Curve, budget: float) -> float:
    """The accuracy of the last round that ended within the budget; NaN before the first has.

    >>> within([(10.0, 0.5), (20.0, 0.75)], 15.0), within([(10.0, 0.5)], 5.0)
    (0.5, nan)
    """
    last = math.nan
    for spent, accuracy in points:
        if spent > budget * (1 + 1e-9):
            break
        last = accuracy
    return last


def crossover(mine: Curve, other: Curve) -> float | None:
    """The budget from which on `other` stays above `mine`; None when it does not end above.

    A method that has ended keeps its last accuracy, and one whose first round is not over yet has none.

    >>> crossover([(1.0, 0.5), (2.0, 0.6)], [(4.0, 0.4), (8.0, 0.7)])
    8.0
    """
    ahead: float | None = None
    for budget in sorted({spent for spent, _ in (*mine, *other)}):
        theirs, ours = within(other, budget), within(mine, budget)
        if theirs > ours or (math.isnan(ours) and not math.isnan(theirs)):
            ahead = budget if ahead is None else ahead
        else:
            ahead = None
    return ahead


@dataclass(frozen=True, slots=True)
class Cost:
    """Where the seconds of a method's rounds go after the first three, as shares of them."""

    seconds: float
    """Of an agent's round, without waiting and measuring."""
    align: float
    fold: float
    calibrate: float
    merging: float
    """All phases of the merge together, publishing and fetching too."""


def cost(runs: Runs) -> Cost | None:
    """Over all seeds and the rounds after the third; None when there are none."""
    rows = [row for each in runs.values() for row in each if row.round > SETTLED]
    whole = math.fsum(seconds_of(row) for row in rows)
    if not rows or whole <= 0:
        return None

    def share(*phases: str) -> float:
        return math.fsum(row.numbers[f"s_{phase}"] for row in rows for phase in phases) / whole

    return Cost(whole / len(rows), share("align"), share("fold"), share("calibrate"), share(*MERGING))


def overhead(mine: Cost, plain: Cost) -> float:
    """What a method's merges take longer than those of plain averaging, as a share of plain averaging's round."""
    return (mine.merging * mine.seconds - plain.merging * plain.seconds) / plain.seconds
