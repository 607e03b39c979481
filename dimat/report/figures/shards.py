"""How different are the agents? Classes by agent, and how far alignment moved their units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dimat.report import numbers, words
from dimat.report.record import RunRecord
from dimat.report.style import AFTER, heat_map, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def class_histograms(record: RunRecord) -> Figure | None:
    """Training samples by agent and class, and each agent's number of samples; None when nobody told its histogram."""
    members = sorted((member for member in record.members if member.histogram), key=lambda member: member.agent)
    if not members:
        return None
    labels = sorted({label for member in members for label in member.histogram}, key=_label_order)
    counts = np.array([[member.histogram.get(label, 0) for label in labels] for member in members], dtype=np.float64)
    num_classes, totals = (counts > 0).sum(axis=1), counts.sum(axis=1)

    seen = _span(num_classes)
    title = f"Each agent holds {seen} of {len(labels)} classes"
    title += f" and {_span(totals)} samples"
    figure = new_figure(title, height=min(9.0, max(3.0, 1.5 + 0.3 * len(members))))
    cells, bars = figure.subplots(1, 2, width_ratios=[4, 1], sharey=True)
    names = [f"agent {member.agent}" for member in members]
    heat_map(cells, counts, rows=names, columns=labels, write=lambda value: f"{value:.0f}" if value else "")
    cells.set_xlabel("class")
    cells.set_title("training samples of each class")
    bars.barh(range(len(members)), totals, color=AFTER, height=0.72)
    bars.set_title("all samples")
    bars.set_xlabel("samples")
    bars.locator_params(axis="x", nbins=3)
    bars.grid(visible=False, axis="y")
    bars.tick_params(axis="y", which="both", length=0, labelleft=False)
    return figure


def _label_order(label: str) -> tuple[int, str]:
    """Numbers as numbers, then words."""
    return (int(label), "") if label.isdecimal() else (2**63, label)


def _span(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}"


@styled
def units_moved(record: RunRecord) -> Figure | None:
    """Share of units whose permutation is not the identity, by group; None when nothing was aligned.

    By agent when units moved in a single round (a basis that is agreed once), else by round, over all agents.
    """
    rounds = {
        number: {
            agent: report.moved for agent, report in reports.items() if any(map(math.isfinite, report.moved.values()))
        }
        for number, reports in numbers.by_round(record).items()
    }
    rounds = {number: moved for number, moved in rounds.items() if moved}
    if not rounds:
        return None
    groups = list(
        dict.fromkeys(group for moved in rounds.values() for of_agent in moved.values() for group in of_agent)
    )
    if len(rounds) == 1:
        (only, moved), *_ = rounds.items()
        columns, when = [f"agent {agent}" for agent in moved], f"in round {only}"
        values = np.array([[moved[agent].get(group, math.nan) for agent in moved] for group in groups])
        unit = ""
    else:
        columns, when = [str(number) for number in rounds], f"in each of {len(rounds)} rounds"
        by_round = [[[moved[a].get(group, math.nan) for a in moved] for group in groups] for moved in rounds.values()]
        values = np.stack([numbers.column_means(np.array(one).T) for one in by_round], axis=1)
        unit = "round"
    overall = float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else math.nan
    figure = new_figure(
        f"Alignment moved {words.share(overall)} of a group's units {when}, on average",
        height=min(12.0, max(2.4, 1.4 + 0.3 * len(groups))),
    )
    axes = figure.subplots()
    heat_map(axes, values, rows=groups, columns=columns, write=words.share, highest=1.0)
    axes.set_xlabel(unit)
    axes.set_title("share of each group's units that changed their position")
    if not unit and len(columns) > 10:
        axes.tick_params(axis="x", rotation=90)
    return figure
