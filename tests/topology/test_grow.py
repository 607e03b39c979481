"""Newcomers are woven into a graph, and leave it as it was."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from dimat.topology import load_topology, with_newcomers, without_agents
from dimat.topology.grow import woven


@pytest.mark.parametrize("name", ["ring", "path", "star", "complete", "exponential", "one_peer_exponential"])
def test_who_is_present_is_connected_and_who_is_not_is_alone(name: str) -> None:
    topology = load_topology(name, 8)
    grown = with_newcomers(topology, 12, [8, 10])
    for round in topology.window():
        before, graph, matrix = topology.graph(round), grown.graph(round), grown.matrix(round)
        assert sorted(graph) == list(range(12))
        assert graph.number_of_edges() == before.number_of_edges() + 2
        assert np.allclose(matrix.sum(1), 1)
        assert np.array_equal(matrix[[9, 11]], np.eye(12)[[9, 11]])
        for agent in range(8):
            assert graph.degree[agent] == before.degree[agent]
        if not graph.is_directed():
            assert np.allclose(matrix, matrix.T)
            assert nx.is_connected(graph.subgraph([*range(8), 8, 10]))


def test_a_ring_stays_a_ring() -> None:
    ring = woven(nx.cycle_graph(5), 8, [5, 6, 7])
    assert nx.is_connected(ring)
    assert {degree for _, degree in ring.degree} == {2}


def test_a_newcomer_that_leaves_gives_its_edge_back() -> None:
    topology = load_topology("ring", 5)
    assert sorted(with_newcomers(topology, 7, []).graph().edges) == sorted(topology.graph().edges)
    assert with_newcomers(topology, 5, []) is topology


def test_founders_may_be_away_meanwhile() -> None:
    grown = with_newcomers(load_topology("ring", 4), 6, [4])
    left = without_agents(grown, [0], "bridge")
    assert nx.is_connected(left.graph().subgraph([1, 2, 3, 4]))
    assert left.weights(5) == {5: 1.0}


def test_edge_weights_go_along() -> None:
    graph: nx.Graph[int] = nx.Graph()
    graph.add_edge(0, 1, weight=0.25)
    assert {w for _, _, w in woven(graph, 3, [2]).edges(data="weight")} == {0.25}
