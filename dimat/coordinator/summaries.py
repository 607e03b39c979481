"""What the agents' reports say together: one summary per round, and the tables of the report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from dimat.coordinator.consensus import consensus_distance, predicted_contraction, ratio, read_sketches, realised_gap
from dimat.messages import Report, RoundSummary


def summarise(round: int, reports: Iterable[Report], *, linear: bool = True) -> RoundSummary:
    """One round over the agents that reported it.

    Args:
        round: which one.
        reports: at most one per agent.
        linear: whether the merge is a plain weighted sum of the models as sketched; else nothing is predicted.

    >>> summarise(1, [Report(0, "s", 1, {"accuracy": 0.5}), Report(1, "s", 1, {"accuracy": 1.0})]).mean_accuracy
    0.75
    """
    # Sorted, because sums of floats depend on their order and agents report in any.
    ordered = sorted(reports, key=lambda report: report.agent)
    accuracies = _values(ordered, "accuracy")
    before = _distance([report.sketch_before for report in ordered])
    after = _distance([report.sketch_after for report in ordered])
    return RoundSummary(
        round=round,
        mean_accuracy=_mean(accuracies),
        min_accuracy=min(accuracies, default=math.nan),
        mean_accuracy_before_merge=_mean(_values(ordered, "accuracy_before")),
        consensus_distance=after,
        consensus_distance_before=before,
        predicted_contraction=predicted_contraction(ordered) if linear else math.nan,
        observed_contraction=ratio(after, before),
        mean_loss=_mean(_values(ordered, "loss")),
        num_agents=len(ordered),
        spectral_gap=realised_gap(ordered),
        num_missing=len({frozenset((report.agent, peer)) for report in ordered for peer in report.missing}),
        num_refused=sum(len(report.refused) for report in ordered),
        num_held_back=sum(report.metrics.get("gate", 1.0) < 1.0 for report in ordered),
    )


def bytes_per_edge(reports: Iterable[Report]) -> dict[tuple[int, int], int]:
    """Payload bytes over all rounds by edge (sender, receiver), sorted."""
    totals: dict[tuple[int, int], int] = defaultdict(int)
    for report in reports:
        for sender, num_bytes in report.bytes_received.items():
            totals[sender, report.agent] += num_bytes
    return dict(sorted(totals.items()))


def seconds_per_phase(reports: Iterable[Report]) -> dict[int, dict[str, float]]:
    """Mean wall-clock seconds over the agents, by round and phase; phases in the order agents go through them.

    An agent that did not go through a phase counts with zero seconds.
    """
    return _mean_by_round(reports, lambda report: report.seconds, everyone=True)


def units_moved(reports: Iterable[Report]) -> dict[int, dict[str, float]]:
    """Share of units that alignment moved, by round and permutation group: the mean over the agents that aligned."""
    return _mean_by_round(reports, lambda report: report.moved, everyone=False)


def _mean_by_round(
    reports: Iterable[Report], read: Callable[[Report], Mapping[str, float]], *, everyone: bool
) -> dict[int, dict[str, float]]:
    values: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    num_reports: dict[int, int] = defaultdict(int)
    for report in sorted(reports, key=lambda report: (report.round, report.agent)):
        num_reports[report.round] += 1
        for name, value in read(report).items():
            values[report.round][name].append(value)
    return {
        round: {
            name: math.fsum(found) / (num_reports[round] if everyone else len(found)) for name, found in names.items()
        }
        for round, names in values.items()
    }


def _distance(sketches: Sequence[bytes]) -> float:
    present = [sketch for sketch in sketches if sketch]
    alike = len({len(sketch) for sketch in present}) == 1  # an agent of another version must not end the run
    return consensus_distance(read_sketches(present)) if alike else math.nan


def _values(reports: Sequence[Report], name: str) -> list[float]:
    return [report.metrics[name] for report in reports if name in report.metrics]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
