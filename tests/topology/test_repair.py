"""Graphs without some of their agents."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.topology import load_topology, mixing_matrix, with_newcomers, without_agents
from dimat.topology.repair import Policy, bridged, dropped

GRAPHS = ["ring", "path", "star", "complete", "hypercube", "exponential", "one_peer_exponential"]


def away_from(data: st.DataObject, n: int) -> list[int]:
    return data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=n - 2))


@st.composite
def connected(draw: st.DrawFn, *, directed: bool = False) -> nx.Graph[int]:
    n = draw(st.integers(4, 10))
    graph: nx.Graph[int] = nx.gnp_random_graph(n, draw(st.floats(0.1, 0.6)), draw(st.integers(0, 999)), directed)
    nx.add_cycle(graph, range(n))
    return graph


@settings(max_examples=60, deadline=None)
@given(connected(), st.data())
def test_who_could_reach_each_other_still_can_over_a_bridge(graph: nx.Graph[int], data: st.DataObject) -> None:
    away = away_from(data, len(graph))
    left = bridged(graph, away)
    assert sorted(left) == sorted(graph)
    assert all(left.degree[agent] == 0 for agent in away)
    assert nx.is_connected(left.subgraph(set(graph) - set(away)))
    there = set(graph) - set(away)
    assert all(left.has_edge(*edge) for edge in graph.subgraph(there).edges)  # what was there stays


@settings(max_examples=60, deadline=None)
@given(connected(directed=True), st.data())
def test_directed_graphs_stay_strongly_connected(graph: nx.DiGraph[int], data: st.DataObject) -> None:
    away = away_from(data, len(graph))
    left = bridged(graph, away)
    assert nx.is_strongly_connected(left.subgraph(set(graph) - set(away)))


def test_a_ring_stays_a_ring_and_leaves_become_a_path() -> None:
    assert nx.utils.graphs_equal(
        nx.Graph(bridged(nx.cycle_graph(6), [2]).subgraph([0, 1, 3, 4, 5])),
        nx.Graph([(0, 1), (1, 3), (3, 4), (4, 5), (5, 0)]),
    )
    star = bridged(nx.star_graph(4), [0])
    assert sorted(map(sorted, star.edges)) == [[1, 2], [2, 3], [3, 4]]


def test_a_lost_agent_adds_two_edges_at_most_to_each_neighbour() -> None:
    star: nx.Graph[int] = nx.star_graph(20)
    assert max(degree for _, degree in bridged(star, [0]).degree) == 2


@pytest.mark.parametrize("policy", ["bridge", "drop"])
@pytest.mark.parametrize("name", GRAPHS)
def test_rows_sum_to_one_and_only_edges_carry_weight(name: str, policy: Policy) -> None:
    topology = load_topology(name, 8)
    left = without_agents(topology, [1, 4], policy)
    for round in range(4):
        matrix, graph = left.matrix(round), left.graph(round)
        assert np.allclose(matrix.sum(1), 1)
        assert np.array_equal(matrix[[1, 4]], np.eye(8)[[1, 4]])
        for agent in range(8):
            assert left.weights(agent, round) == {
                j: matrix[agent, j]
                for j in range(8)
                if matrix[agent, j] > 0 or j in (agent, *left.neighbours(agent, round))
            }
        if not graph.is_directed():
            assert np.allclose(matrix, matrix.T)


def test_drop_gives_the_weight_to_the_reader_and_bridge_weighs_anew() -> None:
    ring = load_topology("ring", 5, mixing="lazy")
    full = ring.matrix()
    oracle = full.copy()
    for i in range(5):
        for j in range(5):
            if i != j and 2 in (i, j):
                oracle[i, j] = 0
    np.fill_diagonal(oracle, 0)
    np.fill_diagonal(oracle, 1 - oracle.sum(1))
    assert np.allclose(without_agents(ring, [2], "drop").matrix(), oracle)
    assert np.allclose(without_agents(ring, [2], "bridge").matrix(), mixing_matrix(bridged(ring.graph(), [2]), "lazy"))


def test_weights_of_edges_are_kept_and_a_bridge_has_the_smaller_one() -> None:
    graph = nx.Graph()
    graph.add_weighted_edges_from([(0, 1, 0.3), (1, 2, 0.1), (2, 0, 0.2), (1, 3, 0.25)])
    left = bridged(graph, [1])
    assert {tuple(sorted(edge)): left.edges[edge]["weight"] for edge in left.edges} == {(0, 2): 0.2, (2, 3): 0.1}


def test_nobody_away_is_the_topology_itself() -> None:
    topology = load_topology("ring", 5)
    assert without_agents(topology, []) is topology
    assert without_agents(topology, [7]) is topology
    assert sorted(dropped(topology.graph(), []).edges) == sorted(topology.graph().edges)


@pytest.mark.parametrize("directed", [False, True])
def test_a_bridge_never_gives_more_than_all_away(directed: bool, tmp_path: Path) -> None:
    """Two edges in the place of one: heavy weights are scaled, alike at both ends of an undirected edge."""
    graph: nx.Graph[int] = nx.DiGraph() if directed else nx.Graph()
    edges = [(0, 1, 0.35), (1, 2, 0.35), (2, 3, 0.25), (3, 4, 0.5), (4, 0, 0.5), (1, 3, 0.25)]
    graph.add_weighted_edges_from(edges)
    if directed:
        graph.add_weighted_edges_from([(b, a, 0.05) for a, b, _ in edges])
    (tmp_path / "heavy.json").write_text(json.dumps(nx.node_link_data(graph)))
    topology = load_topology(str(tmp_path / "heavy.json"), mixing="edge_weights")
    for away in ([1], [3], [1, 4]):
        matrix = without_agents(topology, away).matrix()
        assert np.allclose(matrix.sum(1), 1)
        assert matrix.min() >= 0
        assert directed or np.allclose(matrix, matrix.T)
    grown = with_newcomers(topology, 6, [5]).matrix()
    assert np.allclose(grown.sum(1), 1)
    assert grown.min() >= 0
