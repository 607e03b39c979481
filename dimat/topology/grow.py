"""A topology with seats for agents that come later: each newcomer is woven into an edge.

A newcomer takes the place of an edge: a - b becomes a - newcomer - b. So a ring stays a ring, nobody's degree changes,
and when the newcomer is gone again the edge is back. Which edge follows from the newcomer's id alone, so that all
agents build the same graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache, partial

import networkx as nx

from dimat.topology.repair import remade
from dimat.topology.topology import Topology


def with_newcomers(topology: Topology, num_seats: int, present: Iterable[int]) -> Topology:
    """The topology on `num_seats` ids, with the newcomers `present` woven in; `topology` itself where no seat is added.

    Args:
        topology: of the agents that a run begins with, 0 to n - 1.
        num_seats: ids there are, at least n. Those that are not present have no edges, and weight 1 for themselves.
        present: newcomers, n to num_seats - 1.

    >>> from dimat.topology import load_topology
    >>> grown = with_newcomers(load_topology("ring", 3), 5, [3])
    >>> grown.neighbours(3), grown.neighbours(0), grown.weights(4)
    ([0, 1], [2, 3], {4: 1.0})
    """
    if num_seats == topology.num_agents:
        return topology
    newcomers = sorted(present)

    # Keyed by the graph object, as in `without_agents`.
    @lru_cache(maxsize=256)
    def grown(graph: nx.Graph[int]) -> nx.Graph[int]:
        result = woven(graph, num_seats, newcomers)
        nx.freeze(result)
        return result

    weighted = lru_cache(maxsize=256)(partial(remade, scheme=topology.mixing))

    return replace(
        topology,
        num_agents=num_seats,
        graph_at=lambda round: grown(topology.graph_at(round)),
        matrix_at=lambda round: weighted(grown(topology.graph_at(round))),
    )


def woven(graph: nx.Graph[int], num_seats: int, newcomers: Iterable[int]) -> nx.Graph[int]:
    """`graph` with each newcomer in the place of an edge; a round without edges leaves newcomers alone.

    >>> sorted(woven(nx.path_graph(3), 4, [3]).edges)
    [(0, 3), (1, 2), (1, 3)]
    """
    result: nx.Graph[int] = nx.DiGraph(graph) if graph.is_directed() else nx.Graph(graph)
    first = len(graph)
    result.add_nodes_from(range(first, num_seats))
    for newcomer in sorted(newcomers):
        edges = sorted(tuple(edge) if graph.is_directed() else tuple(sorted(edge)) for edge in result.edges)
        if not edges:
            break
        a, b = edges[(newcomer - first) % len(edges)]
        weight = dict(result.edges[a, b])
        result.remove_edge(a, b)
        result.add_edge(a, newcomer, **weight)
        result.add_edge(newcomer, b, **weight)
    return result
