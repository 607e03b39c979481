"""What a graph must be before a run may use it; every refusal says the cure.

Self-loops are refused rather than dropped: an agent always keeps itself, with the weight that its neighbours leave
(the diagonal of the mixing matrix), so a loop in a file means that its author thinks of something else.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import networkx as nx

from dimat.errors import TopologyError


def checked_shape(graph: Any, n: int, who: str) -> nx.Graph[int]:
    """A frozen copy of `graph` with nodes 0..n-1 in order, once it is a simple graph on exactly those nodes.

    Args:
        graph: what a plug-in or a file gave.
        n: the number of agents.
        who: the start of every message, such as «topology 'ring' in round 3».

    Raises:
        TopologyError: the wrong type, wrong nodes, parallel edges, self-loops.
    """
    if not isinstance(graph, nx.Graph):
        raise TopologyError(f"{who} gave a {type(graph).__name__}; expected a networkx.Graph or networkx.DiGraph")
    if graph.is_multigraph():
        raise TopologyError(
            f"{who} is a {type(graph).__name__}, which may hold an edge twice; expected at most one edge per pair",
            hint="networkx.Graph(graph) or networkx.DiGraph(graph) keeps one edge of each pair",
        )
    _check_nodes(graph, n, who)
    loops = sorted(int(node) for node, _ in nx.selfloop_edges(graph))
    if loops:
        raise TopologyError(
            f"{who} has an edge from an agent to itself ({_some(loops)}); an agent always keeps itself in a merge, "
            "with the weight that its neighbours leave",
            hint="remove these edges: graph.remove_edges_from(list(networkx.selfloop_edges(graph)))",
        )
    copy: nx.Graph[int] = nx.DiGraph() if graph.is_directed() else nx.Graph()
    copy.add_nodes_from((int(node), data) for node, data in sorted(graph.nodes(data=True), key=lambda item: item[0]))
    ends = sorted(((int(u), int(v), data) for u, v, data in graph.edges(data=True)), key=lambda edge: edge[:2])
    copy.add_edges_from(ends)
    nx.freeze(copy)
    return copy


def check_connected(graph: nx.Graph[int], who: str) -> None:
    """Check that what any agent learns can reach every other.

    Raises:
        TopologyError: it cannot; the message names the parts.
    """
    if isinstance(graph, nx.DiGraph):
        parts = sorted(sorted(part) for part in nx.strongly_connected_components(graph))
        wanted, cure = "strongly connected", "add edges until every agent can be reached from every other along them"
    else:
        parts = sorted(sorted(part) for part in nx.connected_components(graph))
        wanted, cure = "connected", "add an edge between the parts"
    if len(parts) > 1:
        names = ", ".join("{" + _some(part) + "}" for part in parts[:6]) + (", …" if len(parts) > 6 else "")
        raise TopologyError(f"{who} is not {wanted}: it falls into {len(parts)} parts, {names}", hint=cure)


def check_count(n: object, who: str) -> int:
    """`n` when it is a number of agents, two or more.

    Raises:
        TopologyError: it is not.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise TopologyError(f"{who} needs at least 2 agents, not {n!r}; one alone has nobody to merge with")
    return n


def _check_nodes(graph: nx.Graph[Any], n: int, who: str) -> None:
    nodes = list(graph)
    if len(nodes) != n:
        raise TopologyError(f"{who} has {len(nodes)} agents, and {n} were asked for")
    wrong = [node for node in nodes if isinstance(node, bool | float | str) or node not in range(n)]
    if wrong:
        raise TopologyError(
            f"{who} has nodes that are no agents: {_some(wrong)}; expected the whole numbers 0 to {n - 1}",
            hint="networkx.convert_node_labels_to_integers(graph) numbers them",
        )


def _some(values: Collection[object], most: int = 12) -> str:
    shown = [repr(value) for value in list(values)[:most]]
    return ", ".join(shown) + (", …" if len(values) > most else "")
