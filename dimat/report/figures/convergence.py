"""Do the agents learn, and do they become one? Accuracy, consensus distance, contraction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dimat.report import numbers, words
from dimat.report.record import RunRecord
from dimat.report.style import AFTER, BEFORE, INK, MUTED, PREDICTED, line, new_figure, round_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def accuracy(record: RunRecord) -> Figure | None:
    """Test accuracy of each agent and their mean over the rounds, before and after the merge; None without any."""
    after, before = numbers.metric(record, "accuracy"), numbers.metric(record, "accuracy_before")
    # A round that not all agents have reported yet would bend the mean; summaries exist for whole rounds only.
    rounds = list(numbers.by_round(record))
    whole = {each.round for each in record.summaries} or set(rounds)
    keep = [index for index, number in enumerate(rounds) if number in whole]
    after, before, rounds = after[:, keep], before[:, keep], [rounds[index] for index in keep]
    if not np.isfinite(after).any() and not np.isfinite(before).any():
        return None

    figure = new_figure(_accuracy_title(after, before, rounds), height=3.9)
    over_time, last = figure.subplots(1, 2, width_ratios=[2.6, 1])
    for values, color, when in ((before, BEFORE, "before the merge"), (after, AFTER, "after the merge")):
        if np.isfinite(values).any():
            dot = "." if len(rounds) == 1 else None
            over_time.plot(rounds, values.T, color=color, alpha=0.28, linewidth=1.0, marker=dot)
            style = "--" if values is before else "-"
            line(over_time, rounds, numbers.column_means(values), label=f"mean {when}", color=color, linestyle=style)
    over_time.plot([], [], color=MUTED, alpha=0.5, linewidth=1.0, label="single agents")
    over_time.set_ylabel("test accuracy")
    round_axis(over_time, rounds)
    over_time.legend(loc="lower right")
    _newest_by_agent(last, record)
    return figure


def _accuracy_title(after: np.ndarray, before: np.ndarray, rounds: list[int]) -> str:
    values, when = (after, "after") if np.isfinite(after).any() else (before, "before")
    means = numbers.column_means(values)
    newest = max(index for index, mean in enumerate(means) if math.isfinite(mean))
    worst = float(np.nanmin(values[:, newest]))
    title = f"Mean accuracy {words.accuracy(means[newest])} {when} the merge of round {rounds[newest]}"
    return f"{title}, worst agent {words.accuracy(worst)}"


def _newest_by_agent(axes: Axes, record: RunRecord) -> None:
    """One line per agent: where its newest merge took it from and to."""
    rows = numbers.agent_rows(record)
    newest = max(row.last_round for row in rows)
    for place, row in enumerate(rows):
        axes.plot([row.accuracy_before, row.accuracy], [place, place], color="#9AA5B1", linewidth=1.5, zorder=1)
        if row.last_round < newest and math.isfinite(row.accuracy):
            left_at = f" round {row.last_round}" if row.last_round else ""
            axes.text(row.accuracy, place, f" {left_at}", va="center", fontsize=8, color=MUTED)
    dot = 34 if len(rows) <= 16 else 12
    places = range(len(rows))
    axes.scatter([row.accuracy_before for row in rows], places, s=dot, color=BEFORE, zorder=2)
    axes.scatter([row.accuracy for row in rows], places, s=dot, color=AFTER, zorder=3)
    step = math.ceil(len(rows) / 20)
    axes.set_yticks(range(0, len(rows), step), labels=[f"agent {row.agent}" for row in rows[::step]])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("test accuracy")
    axes.set_title("newest round of each agent")
    # A hundredth is the least that is worth a whole axis: closer agents are drawn close.
    shown = [value for row in rows for value in (row.accuracy_before, row.accuracy) if math.isfinite(value)]
    middle, reach = (min(shown) + max(shown)) / 2, max(0.01, max(shown) - min(shown))
    axes.set_xlim(middle - 0.62 * reach, middle + 0.62 * reach)
    axes.locator_params(axis="x", nbins=4)


@styled
def consensus_distance(record: RunRecord) -> Figure | None:
    """Consensus distance before and after each merge, with what the mixing matrix predicts; None without merges."""
    known = sorted((each for each in record.summaries if math.isfinite(each.consensus_distance)), key=lambda s: s.round)
    if not known:
        return None
    rounds = [each.round for each in known]
    after = np.array([each.consensus_distance for each in known])
    before = np.array([each.consensus_distance_before for each in known])
    predicted = before * np.array([each.predicted_contraction for each in known])
    bound = before * _bounds(record, rounds)

    figure = new_figure(_consensus_title(record), height=3.9)
    axes = figure.subplots()
    series = [values[np.isfinite(values) & (values > 0)] for values in (after, before, predicted)]
    positive = np.concatenate(series)
    if positive.size:
        axes.set_yscale("log")
        # Agreement to the last bit has no place on a logarithmic axis: it is drawn at the lower edge.
        floor = max(positive.min() / 10, positive.max() * 1e-7)
        after, predicted, bound = (np.where(values <= floor, floor, values) for values in (after, predicted, bound))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: _minor_label(value, positive))
    if len(rounds) <= 60:
        axes.vlines(rounds, after, before, color="#CBD2D9", linewidth=1.2, zorder=1)
    if np.isfinite(before).any():
        line(axes, rounds, before, label="before the merge", color=BEFORE, linestyle="--")
    line(axes, rounds, after, label="after the merge", color=AFTER)
    if np.isfinite(predicted).any():
        hollow = {"markerfacecolor": "white", "marker": "D" if len(rounds) <= 40 else None, "markersize": 5.5}
        line(axes, rounds, predicted, label="predicted", color=PREDICTED, linewidth=1.0, zorder=1.5, **hollow)
    if np.isfinite(bound).any():
        axes.plot(rounds, bound, color=MUTED, linestyle=":", linewidth=1.3, label="no higher than (bound)")
    axes.set_ylabel("consensus distance (L2 norm)")
    round_axis(axes, rounds)
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    return figure


def _minor_label(value: float, shown: np.ndarray) -> str:
    """Labels 2 and 5 between the powers of ten when the axis spans less than two of them, else nothing."""
    if shown.max() / shown.min() > 100:
        return ""
    leading = value / 10 ** math.floor(math.log10(value) + 1e-9)
    return f"{value:g}" if round(leading) in (2, 5) else ""


def _consensus_title(record: RunRecord) -> str:
    ends = numbers.consensus_ends(record)
    if ends is None or ends[0].round == ends[1].round:
        return "How far the agents are from their mean model"
    first, last = ends
    if last.consensus_distance <= 1e-6 * max(first.consensus_distance, last.consensus_distance_before):
        return f"Agents are one after round {last.round}"
    if first.consensus_distance == 0:
        return f"Agents were one after round {first.round}, and {last.consensus_distance:.2g} apart after {last.round}"
    factor = first.consensus_distance / last.consensus_distance
    if factor >= 1:
        return f"Agents are {words.plain(factor)} times closer after round {last.round} than after round {first.round}"
    return f"Agents are {words.plain(1 / factor)} times farther apart after round {last.round} than after {first.round}"


def _bounds(record: RunRecord, rounds: list[int]) -> np.ndarray:
    reports = numbers.by_round(record)
    return np.array([numbers.contraction_bound(reports.get(number, {})) for number in rounds])


@styled
def contraction(record: RunRecord) -> Figure | None:
    """What one merge leaves of the consensus distance: observed, predicted, bound; None without merges."""
    known = sorted(
        (each for each in record.summaries if math.isfinite(each.observed_contraction)), key=lambda each: each.round
    )
    if not known:
        return None
    rounds = [each.round for each in known]
    observed = np.array([each.observed_contraction for each in known])
    predicted = np.array([each.predicted_contraction for each in known])
    bound = _bounds(record, rounds)

    title = f"A merge leaves {words.share(float(np.median(observed)))} of the disagreement"
    if np.isfinite(predicted).any():
        expected = float(np.median(predicted[np.isfinite(predicted)]))
        title += f"; its mixing matrix predicts {words.share(expected)}"
    figure = new_figure(title, height=3.3)
    axes = figure.subplots()
    line(axes, rounds, observed, label="observed", color=AFTER)
    if np.isfinite(predicted).any():
        hollow = {"markerfacecolor": "white", "marker": "D" if len(rounds) <= 40 else None, "markersize": 5.5}
        line(axes, rounds, predicted, label="predicted", color=PREDICTED, linewidth=1.0, **hollow)
    if np.isfinite(bound).any():
        axes.plot(rounds, bound, color=MUTED, linestyle=":", linewidth=1.3, label="no higher than (bound)")
    if observed.max() > 1:
        axes.axhline(1.0, color=INK, linewidth=0.8)
    axes.set_ylim(bottom=0.0, top=None if observed.max() > 1 else 1.02)
    axes.set_ylabel("distance after / before")
    round_axis(axes, rounds)
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    return figure
