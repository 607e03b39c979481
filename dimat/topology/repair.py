"""A topology when some of its agents are away: whom the others read then, and with which weights.

drop      edges to agents that are away carry nothing; their weight goes to the reader itself. Whoever remains keeps
          its edges and weights, and a symmetric matrix stays doubly stochastic. The graph may fall apart.
bridge    the neighbours of an agent that is away are joined, so that those who could reach each other through it still
          can, and the weights are made anew for that graph by the run's scheme. On an undirected graph they are joined
          in a row by id: each gets two edges at most where it lost one (a ring stays a ring, the leaves of a star
          become a path). On a directed one the lowest of them takes over what the other read and who read it.

Agents that are away stay in the graph as nodes without edges, with weight 1 for themselves: ids and shapes stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal

import networkx as nx

from dimat.topology.mixing import Matrix, check_mixing, mixing_matrix, sources, without_edges
from dimat.topology.topology import Topology

Policy = Literal["drop", "bridge"]


def without_agents(topology: Topology, away: Iterable[int], policy: Policy = "bridge") -> Topology:
    """The topology while the agents `away` are not there; `topology` itself when nobody is.

    Args:
        topology: of all agents.
        away: ids; others than the topology's own are ignored.
        policy: `drop` or `bridge`, as described above.

    Returns:
        A topology on the same ids. Its graphs need not be connected: those that are away are alone in them.

    >>> from dimat.topology import load_topology
    >>> ring = load_topology("ring", 5)
    >>> without_agents(ring, [2], "bridge").weights(1), without_agents(ring, [2], "drop").weights(1)
    ({0: 0.333..., 1: 0.333..., 3: 0.333...}, {0: 0.333..., 1: 0.666...})
    """
    gone = frozenset(agent for agent in away if 0 <= agent < topology.num_agents)
    if not gone:
        return topology

    # Keyed by the graph object: a topology gives one per round, and one for all rounds of a static graph.
    @lru_cache(maxsize=256)
    def repaired(graph: nx.Graph[int]) -> nx.Graph[int]:
        left = bridged(graph, gone) if policy == "bridge" else dropped(graph, gone)
        nx.freeze(left)
        return left

    weighted = lru_cache(maxsize=256)(partial(remade, scheme=topology.mixing))

    def matrix_at(round: int) -> Matrix:
        if policy == "bridge":
            return weighted(repaired(topology.graph_at(round)))
        missing = [(i, j) for i in range(topology.num_agents) for j in range(topology.num_agents) if {i, j} & gone]
        matrix = without_edges(topology.matrix_at(round), missing)
        matrix.flags.writeable = False
        return matrix

    return replace(topology, graph_at=lambda round: repaired(topology.graph_at(round)), matrix_at=matrix_at)


def remade(graph: nx.Graph[int], scheme: str) -> Matrix:
    """The mixing matrix of a graph that was changed, by the run's scheme; read-only.

    >>> remade(nx.path_graph(2), "metropolis").tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    matrix = mixing_matrix(within_one(graph) if scheme == "edge_weights" else graph, scheme)
    check_mixing(matrix, graph)
    matrix.flags.writeable = False
    return matrix


def within_one(graph: nx.Graph[int]) -> nx.Graph[int]:
    """`graph` with its edges' `weight`s scaled down where what an agent gives to others would be more than 1.

    On an undirected graph an edge is divided by the larger sum of its two ends, so that both still give each other the
    same; on a directed one by the reader's.

    >>> heavy = nx.Graph([(0, 1, {"weight": 0.75}), (1, 2, {"weight": 0.75})])
    >>> [weight for _, _, weight in within_one(heavy).edges(data="weight")]
    [0.5, 0.5]
    """
    result: nx.Graph[int] = nx.DiGraph(graph) if graph.is_directed() else nx.Graph(graph)
    sums = {agent: sum(graph.edges[j, agent].get("weight", 0.0) for j in sources(graph, agent)) for agent in graph}
    for a, b, data in result.edges(data=True):
        most = sums[b] if graph.is_directed() else max(sums[a], sums[b])
        if "weight" in data and most > 1:
            data["weight"] = data["weight"] / most
    return result


def dropped(graph: nx.Graph[int], away: Iterable[int]) -> nx.Graph[int]:
    """`graph` without the edges of those who are away; they stay as nodes.

    >>> sorted(dropped(nx.cycle_graph(4), [1]).edges)
    [(0, 3), (2, 3)]
    """
    left: nx.Graph[int] = nx.create_empty_copy(graph)
    gone = frozenset(away)
    left.add_edges_from(edge for edge in graph.edges(data=True) if not gone & set(edge[:2]))
    return left


def bridged(graph: nx.Graph[int], away: Iterable[int]) -> nx.Graph[int]:
    """`graph` with the neighbours of those who are away joined; one after the other, by id.

    Those who could reach each other still can. A new edge has the smaller `weight` of the two that it stands for.

    >>> sorted(bridged(nx.cycle_graph(5), [1, 2]).edges)
    [(0, 3), (0, 4), (3, 4)]
    """
    left: nx.Graph[int] = nx.DiGraph(graph) if graph.is_directed() else nx.Graph(graph)
    for agent in sorted(frozenset(away) & set(graph)):
        joined = _takeover(left, agent) if isinstance(left, nx.DiGraph) else _row(left, agent)
        left = dropped(left, [agent])
        left.add_edges_from(joined)
    return left


def _row(graph: nx.Graph[int], agent: int) -> list[tuple[int, int, dict[str, float]]]:
    """Edges that join an agent's neighbours in a row."""
    around = sorted(set(graph.adj[agent]) - {agent})
    new = [pair for pair in pairwise(around) if not graph.has_edge(*pair)]
    return [(a, b, _weight(graph.edges[agent, a], graph.edges[agent, b])) for a, b in new]


def _takeover(graph: nx.DiGraph[int], agent: int) -> list[tuple[int, int, dict[str, float]]]:
    """Edges by which the lowest neighbour reads what the agent read, and is read by whom the agent was read by."""
    read, reading = set(graph.pred[agent]) - {agent}, set(graph.succ[agent]) - {agent}
    if not read or not reading:
        return []
    heir = min(read | reading)
    into = [(j, heir, _weight(graph.edges[j, agent])) for j in sorted(read - {heir}) if not graph.has_edge(j, heir)]
    out = [(heir, i, _weight(graph.edges[agent, i])) for i in sorted(reading - {heir}) if not graph.has_edge(heir, i)]
    return into + out


def _weight(*edges: dict[str, float]) -> dict[str, float]:
    weights = [edge["weight"] for edge in edges if "weight" in edge]
    return {"weight": min(weights)} if weights else {}
