"""Draw a topology: agents as discs, edges as wide as their weight, arrows from the agent read to its reader.

Nothing is random: the same graph gives the same picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from dimat.errors import TopologyError
from dimat.topology.mixing import Matrix
from dimat.topology.topology import Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DISC, _RIM, _EDGE, _TEXT = "#e8f0f7", "#1f4e79", "#6f8fae", "#14283c"
_PAPER = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}  # text over edges


def layout(graph: nx.Graph[int]) -> dict[int, tuple[float, float]]:
    """A place for every agent.

    Places that the graph brings along (node attribute `pos`) are kept. Graphs whose agents are alike, or that are
    dense or in pieces, go on a circle with agent 0 on top; the others where distances on paper follow distances along
    edges (Kamada-Kawai, started from the circle).
    """
    given = nx.get_node_attributes(graph, "pos")
    if len(given) == len(graph):
        return {agent: (float(x), float(y)) for agent, (x, y) in given.items()}
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(graph)) / len(graph)
    circle = {agent: (float(np.cos(a)), float(np.sin(a))) for agent, a in zip(sorted(graph), angles, strict=True)}
    simple: nx.Graph[int] = nx.Graph(graph)
    alike = len({degree for _, degree in simple.degree}) == 1
    if alike or nx.density(simple) > 0.8 or not nx.is_connected(simple):
        return circle
    return {
        agent: (float(x), float(y)) for agent, (x, y) in nx.kamada_kawai_layout(simple, pos=circle, weight=None).items()
    }


def draw(
    graph: nx.Graph[int],
    ax: Axes,
    *,
    edge_labels: Mapping[tuple[int, int], str] | None = None,
    weights: Matrix | None = None,
) -> None:
    """Draw a graph into matplotlib axes.

    Args:
        graph: on the agents 0..n-1; the node attribute `name` is shown under the number.
        ax: where to draw; its frame is removed.
        edge_labels: text by edge (from, to), for undirected edges either way round, such as bytes sent.
        weights: the mixing matrix, (n, n); without it all edges are equally wide.
    """
    places = layout(graph)
    edges = list(graph.edges)
    crowd = max(0.35, min(1.0, (16 / len(graph)) ** 0.5))  # more agents, smaller discs
    size = 620 * crowd**2
    options: dict[str, Any] = {
        "width": _widths(edges, weights, crowd * min(1.0, (60 / max(len(edges), 1)) ** 0.5)),
        "edge_color": _EDGE,
        "node_size": size,
    }
    if graph.is_directed():
        options |= {"arrowstyle": "-|>", "arrowsize": 11 * crowd, "connectionstyle": "arc3,rad=0.08"}
    nx.draw_networkx_edges(graph, places, edgelist=edges, ax=ax, **options)
    nx.draw_networkx_nodes(graph, places, ax=ax, node_size=size, node_color=_DISC, edgecolors=_RIM, linewidths=1.3)
    nx.draw_networkx_labels(graph, places, ax=ax, font_size=10 * crowd, font_color=_TEXT)
    for agent, name in graph.nodes(data="name"):
        if name is not None:
            under = (0, -(size**0.5) / 2 - 2)
            style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 8, "color": _TEXT, "bbox": _PAPER}
            ax.annotate(str(name), places[agent], under, textcoords="offset points", **style)
    for (u, v), text in (edge_labels or {}).items():
        # Nearer to the reader when directed, so that the two directions of a pair do not cover each other.
        share = 0.65 if graph.is_directed() else 0.5
        x, y = (a + share * (b - a) for a, b in zip(places[u], places[v], strict=True))
        ax.text(x, y, text, ha="center", va="center", fontsize=8 * crowd, color=_TEXT, bbox=_PAPER)
    ax.margins(0.16)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()


def save_png(topology: Topology, path: Path | str, *, round: int = 0) -> None:
    """Write the picture of one round as a PNG; the file appears whole or not at all.

    Raises:
        TopologyError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    draw(topology.graph(round), ax, weights=topology.matrix(round))
    summary = topology.summary(round)
    speed = summary["rounds_per_tenfold"]
    when = "" if topology.static else f", round {round}"
    together = f" over {topology.period} rounds" if topology.period > 1 else ""
    ax.set_title(
        f"{topology.name}: {topology.num_agents} agents{when}\n"
        f"{topology.mixing} weights, gap {summary['spectral_gap']:.4f}{together}, "
        + ("agents never agree" if speed is None else f"tenfold agreement in {speed} rounds"),
        fontsize=11,
        color=_TEXT,
    )
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    try:
        Path(path).write_bytes(image.getvalue())
    except OSError as error:
        raise TopologyError(f"the picture {str(path)!r} cannot be written: {error}") from error


def _widths(edges: list[tuple[int, int]], weights: Matrix | None, crowd: float) -> list[float]:
    if weights is None or not edges:
        return [1.6 * crowd] * len(edges)
    each = np.array([max(weights[u, v], weights[v, u]) for u, v in edges])
    return [float(width) for width in crowd * (0.5 + 2.0 * each / each.max())]
