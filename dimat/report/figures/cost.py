"""What does merging cost? Time by phase, bytes by edge."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from dimat.report import numbers, words
from dimat.report.record import RunRecord
from dimat.report.style import INK, new_figure, styled
from dimat.topology import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Work of one's own in greys and blues, waiting nearly white, merging in warm colours.
_COLORS = {
    "train": "#7B8794", "wait": "#E4E7EB", "publish": "#56B4E9", "gather": "#E69F00", "align": "#D55E00",
    "fold": "#CC79A7", "calibrate": "#F0E442", "statistics": "#DDCC77", "evaluate": "#0072B2", "sketch": "#332288",
    "checkpoint": "#009E73",
}  # fmt: skip
_OTHERS = ("#882255", "#44AA99", "#AA4499", "#117733")


@styled
def time_per_phase(record: RunRecord) -> Figure | None:
    """Mean seconds a round by phase, stacked for each agent, and each phase's share; None without timings."""
    spent = numbers.phase_seconds(record)
    phases = list(next(iter(spent.values()), {}))
    if not phases:
        return None
    share = numbers.merge_share(record)
    finding = f"Merging takes {words.share(share)} of a round" if math.isfinite(share) else "Where a round's time goes"
    num_agents = len(spent)
    figure = new_figure(f"{finding} (without waiting)", height=min(9.0, max(3.2, 1.6 + 0.24 * num_agents)))
    by_agent, shares = figure.subplots(1, 2, width_ratios=[2.2, 1])
    unknown = iter(_OTHERS * len(phases))
    colors = {phase: _COLORS.get(phase) or next(unknown) for phase in phases}

    left = np.zeros(num_agents)
    for phase in phases:
        values = np.array([spent[agent][phase] for agent in spent])
        by_agent.barh(range(num_agents), values, left=left, color=colors[phase], label=phase, height=0.72)
        left += values
    step = math.ceil(num_agents / 32)
    by_agent.set_yticks(range(0, num_agents, step), labels=[f"agent {agent}" for agent in list(spent)[::step]])
    by_agent.set_ylim(num_agents - 0.4, -0.6)
    by_agent.grid(visible=False, axis="y")
    by_agent.set_xlabel("mean seconds a round")
    _shares(shares, spent, colors)
    return figure


def _shares(axes: Axes, spent: dict[int, dict[str, float]], colors: dict[str, str]) -> None:
    totals = {phase: sum(phases[phase] for phases in spent.values()) for phase in colors}
    whole = sum(totals.values())
    parts = [total / whole if whole > 0 else 0.0 for total in totals.values()]
    axes.barh(range(len(parts)), parts, color=list(colors.values()), height=0.72, edgecolor="#9AA5B1", linewidth=0.5)
    for place, part in enumerate(parts):
        axes.text(part, place, f" {words.share(part)}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(parts)), labels=list(totals))
    axes.set_ylim(max(len(parts), len(spent) / 2) - 0.4, -0.6)  # beside many agents the bars stay slim
    axes.set_xlim(0, max([*parts, 0.01]) * 1.28)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title("share of all agents' time")


@styled
def topology(record: RunRecord) -> Figure | None:
    """The edges that were used, with the bytes that travelled over each in the whole run; None before the first merge.

    The graph is the one that the agents report, not the one that the config asks for: an edge of a time-varying
    topology appears when it was in any round, and nobody's own Python code is run to draw a report.
    """
    edges = numbers.bytes_by_edge(record)
    if not edges:
        return None
    directed = any((reader, source) not in edges for source, reader in edges)
    graph: nx.Graph[int] = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(numbers.agents(record))
    totals: dict[tuple[int, int], int] = {}
    for (source, reader), num_bytes in edges.items():
        edge = (source, reader) if directed else (min(source, reader), max(source, reader))
        totals[edge] = totals.get(edge, 0) + num_bytes
    graph.add_edges_from(totals)

    whole = sum(totals.values())
    merges = sum(1 for reports in numbers.by_round(record).values() if any(r.weights for r in reports.values()))
    title = f"{words.size(whole)} travelled over {words.count(len(totals), 'edge')} in {words.count(merges, 'merge')}"
    if merges:
        title += f": {words.size(whole / merges / len(totals))} per edge and merge"
    figure = new_figure(title, height=4.8)
    axes = figure.subplots()
    axes.grid(visible=False)
    widths = np.zeros((max(graph) + 1, max(graph) + 1))
    for edge, total in totals.items():
        widths[edge] = total
    labels = {edge: words.size(total) for edge, total in totals.items()} if len(totals) <= 24 else None
    picture.draw(graph, axes, edge_labels=labels, weights=widths)
    return figure
