"""What a run's numbers say: pure functions from a `RunRecord` to figures of speech and rows of a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimat.coordinator import consensus
from dimat.messages import Report, RoundSummary
from dimat.report.record import RunRecord

PHASES = (
    "train", "wait", "publish", "gather", "align", "check", "fold", "calibrate", "gate", "statistics", "evaluate",
    "sketch", "checkpoint",
)  # fmt: skip
"""Phases of a round in the order in which they are drawn."""
MERGING = ("gather", "align", "check", "fold", "calibrate", "gate", "statistics")
"""The phases that there would be no need of without merging; waiting is counted apart."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One line of the per-agent table."""

    agent: int
    state: str
    num_samples: int
    accuracy_before: float
    accuracy: float
    last_round: int
    """0: it has not reported."""
    missing: Mapping[int, int]
    """How many merges went by without a neighbour, by neighbour."""
    refused: Mapping[int, int]
    """In how many of these the neighbour had answered and was refused, by neighbour."""
    num_gated: int
    """How many merges went through a gate ..."""
    num_held_back: int
    """... and of how many it took a part only, or nothing."""
    matchings_skipped: float
    """Share of the models to align for which no matching was needed, the mean over rounds with such; NaN: none had."""
    bytes_received: int


def summary(record: RunRecord) -> dict[str, Any]:
    """The object that `--format json` prints for a run; a number that there is not is None.

    Accuracies are those right after merge and calibration, over the agents alive; `run` is the run's folder, as other
    commands take it.
    """
    history = [
        {
            "round": each.round,
            "mean_accuracy": _finite(each.mean_accuracy),
            "min_accuracy": _finite(each.min_accuracy),
            "mean_accuracy_before_merge": _finite(each.mean_accuracy_before_merge),
            "consensus_distance": _finite(each.consensus_distance),
        }
        for each in sorted(record.summaries, key=lambda each: each.round)
    ]
    newest = history[-1] if history else {}
    return {
        "run": str(record.folder),
        "reason": record.reason,
        "rounds": newest.get("round", 0),
        "seconds": round(seconds(record), 3),
        "mean_accuracy": newest.get("mean_accuracy"),
        "min_accuracy": newest.get("min_accuracy"),
        "history": history,
    }


def by_round(record: RunRecord) -> dict[int, dict[int, Report]]:
    """Reports by round and agent, both ascending; a round that an agent did twice counts as it was done last."""
    rounds: dict[int, dict[int, Report]] = {}
    for report in record.reports:
        rounds.setdefault(report.round, {})[report.agent] = report
    return {number: dict(sorted(rounds[number].items())) for number in sorted(rounds)}


def agents(record: RunRecord) -> list[int]:
    """Ids of all agents that the config asks for, that joined or that reported."""
    configured = record.config.get("agents")
    expected = range(configured) if isinstance(configured, int) else ()
    return sorted({*expected, *(m.agent for m in record.members), *(r.agent for r in record.reports)})


def metric(record: RunRecord, name: str) -> Matrix:
    """One metric of every agent in every reported round, (agents, rounds) float64; NaN where it was not reported."""
    ids, rounds = agents(record), by_round(record)
    values = np.full((len(ids), len(rounds)), np.nan)
    for column, reports in enumerate(rounds.values()):
        for agent, report in reports.items():
            values[ids.index(agent), column] = report.metrics.get(name, math.nan)
    return values


def column_means(values: Matrix) -> Matrix:
    """The mean of each column's finite entries; NaN for a column without any.

    >>> column_means(np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()
    [2.0, nan]
    """
    finite = np.isfinite(values)
    counts = finite.sum(axis=0)
    sums = np.where(finite, values, 0.0).sum(axis=0)
    means: Matrix = np.divide(sums, counts, out=np.full(values.shape[1], np.nan), where=counts > 0)
    return means


def contraction_bound(reports: Mapping[int, Report]) -> float:
    """‖W − J‖₂, the largest factor by which the merge of one round can multiply the consensus distance.

    W is the matrix that the agents really used, over those that reported, and J the averaging matrix (all entries 1/n).
    NaN when nobody merged.
    """
    rows = {agent: report.weights or {agent: 1.0} for agent, report in reports.items()}
    if not any(len(row) > 1 for row in rows.values()):
        return math.nan
    mixing = consensus.realised_matrix(rows)
    return consensus.contraction_bound(mixing) if np.isfinite(mixing).all() else math.nan


def phase_seconds(record: RunRecord) -> dict[int, dict[str, float]]:
    """Mean seconds a round that each agent spent in each phase, phases in drawing order."""
    totals: dict[int, dict[str, float]] = {}
    num_rounds: dict[int, int] = {}
    for reports in by_round(record).values():
        for agent, report in reports.items():
            if not report.seconds or not all(map(math.isfinite, report.seconds.values())):
                continue
            num_rounds[agent] = num_rounds.get(agent, 0) + 1
            spent = totals.setdefault(agent, {})
            for phase, value in report.seconds.items():
                spent[phase] = spent.get(phase, 0.0) + value
    names = sorted({phase for spent in totals.values() for phase in spent}, key=phase_order)
    return {
        agent: {phase: totals[agent].get(phase, 0.0) / num_rounds[agent] for phase in names} for agent in sorted(totals)
    }


def phase_order(phase: str) -> tuple[int, str]:
    """Sorts phases as a round runs through them; unknown ones come last, by name."""
    return (PHASES.index(phase) if phase in PHASES else len(PHASES), phase)


def merge_share(record: RunRecord) -> float:
    """Seconds to gather, align, fold and calibrate over the seconds of a round without its waiting, for all agents."""
    spent = phase_seconds(record)
    working = sum(value for phases in spent.values() for phase, value in phases.items() if phase != "wait")
    merging = sum(phases.get(phase, 0.0) for phases in spent.values() for phase in MERGING)
    return merging / working if working > 0 else math.nan


def seconds(record: RunRecord) -> float:
    """Wall-clock seconds of the run: as recorded, else the slowest agent of every round, added up."""
    if math.isfinite(record.seconds):
        return record.seconds
    return sum(
        max(sum(filter(math.isfinite, report.seconds.values())) for report in reports.values())
        for reports in by_round(record).values()
    )


def bytes_by_edge(record: RunRecord) -> dict[tuple[int, int], int]:
    """Payload bytes over the whole run by (from, to), for each edge that was used or should have been."""
    totals: dict[tuple[int, int], int] = {}
    for reports in by_round(record).values():
        for agent, report in reports.items():
            for other in {*report.weights, *report.bytes_received, *report.missing} - {agent}:
                received = report.bytes_received.get(other, 0)
                totals[other, agent] = totals.get((other, agent), 0) + received
    return dict(sorted(totals.items()))


def consensus_ends(record: RunRecord) -> tuple[RoundSummary, RoundSummary] | None:
    """The first and the newest round whose consensus distance after the merge is known, or None."""
    known = [each for each in record.summaries if math.isfinite(each.consensus_distance)]
    known.sort(key=lambda each: each.round)
    return (known[0], known[-1]) if known else None


def agent_rows(record: RunRecord) -> list[AgentRow]:
    """The per-agent table: every agent's newest numbers, and what it got and missed over the whole run."""
    members = {member.agent: member for member in record.members}
    reports: dict[int, list[Report]] = {agent: [] for agent in agents(record)}
    for each_round in by_round(record).values():
        for agent, report in each_round.items():
            reports[agent].append(report)
    return [_row(agent, reports[agent], members.get(agent)) for agent in reports]


def _row(agent: int, reports: list[Report], member: Any) -> AgentRow:
    newest = reports[-1] if reports else None
    metrics: Mapping[str, float] = newest.metrics if newest else {}
    shares, skipped = (
        [report.metrics[name] for report in reports if name in report.metrics] for name in ("gate", "matchings_skipped")
    )
    return AgentRow(
        agent=agent,
        state=member.state if member else "absent",
        num_samples=member.num_samples if member else 0,
        accuracy_before=metrics.get("accuracy_before", math.nan),
        accuracy=metrics.get("accuracy", math.nan),
        last_round=newest.round if newest else 0,
        missing=_counted(report.missing for report in reports),
        refused=_counted(report.refused for report in reports),
        num_gated=len(shares),
        num_held_back=sum(share < 1 for share in shares),
        matchings_skipped=sum(skipped) / len(skipped) if skipped else math.nan,
        bytes_received=_total(report.bytes_received.values() for report in reports),
    )


def _counted(groups: Iterable[Iterable[int]]) -> dict[int, int]:
    return dict(sorted(Counter(other for group in groups for other in group).items()))


def _total(groups: Iterable[Iterable[int]]) -> int:
    return sum(sum(group) for group in groups)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
