"""Mixing matrices with known entries, and those that are refused."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from dimat.errors import TopologyError
from dimat.topology import check_mixing, mixing_matrix, mixing_weights


def test_lazy_has_no_negative_eigenvalue_where_metropolis_has_one() -> None:
    graph = nx.star_graph(1)
    swap = mixing_matrix(nx.cycle_graph(4))
    assert np.linalg.eigvalsh(swap).min() < -0.3
    assert np.linalg.eigvalsh(mixing_matrix(nx.cycle_graph(4), "lazy")).min() >= 0
    assert mixing_matrix(graph, "lazy").tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_uniform_weights_on_a_star_favour_the_hub_and_say_so() -> None:
    graph = nx.star_graph(4)
    report = check_mixing(mixing_matrix(graph, "uniform"), graph)
    assert not report.doubly_stochastic
    assert report.influence == pytest.approx([5 / 13, *[2 / 13] * 4])  # proportional to degree + 1
    assert "agent 0 counts 1.92 times" in report.bias


def test_edge_weights_are_taken_from_the_edges_and_leave_the_rest_to_the_agent() -> None:
    graph = nx.DiGraph()
    graph.add_weighted_edges_from([(0, 1, 0.25), (1, 0, 0.5), (2, 0, 0.5), (1, 2, 1.0)])
    assert mixing_matrix(graph, "edge-weights").tolist() == [[0, 0.5, 0.5], [0.25, 0.75, 0], [0, 1, 0]]


@pytest.mark.parametrize("weight", [-0.1, 0, float("nan"), float("inf"), "much", True])
def test_an_edge_weight_that_is_none_is_refused(weight: object) -> None:
    graph = nx.Graph()
    graph.add_edge(0, 1, weight=weight)
    with pytest.raises(TopologyError, match=r"the edge 1 - 0 has the weight"):
        mixing_matrix(graph, "edge_weights")


def test_edge_weights_missing_or_above_one_are_refused() -> None:
    graph = nx.path_graph(3)
    with pytest.raises(TopologyError, match=r"has no attribute `weight`"):
        mixing_matrix(graph, "edge_weights")
    nx.set_edge_attributes(graph, 0.6, "weight")
    with pytest.raises(TopologyError, match=r"agent 1 gives to \[0, 2\] sum to 1.2, above 1"):
        mixing_matrix(graph, "edge_weights")


def test_metropolis_on_a_directed_graph_is_refused_with_the_cure() -> None:
    with pytest.raises(TopologyError, match="undirected") as caught:
        mixing_matrix(nx.cycle_graph(3, create_using=nx.DiGraph), "metropolis")
    assert "uniform" in str(caught.value.hint)


def test_an_unknown_scheme_or_agent_is_answered_with_what_exists() -> None:
    with pytest.raises(TopologyError, match="Did you mean 'metropolis'"):
        mixing_matrix(nx.cycle_graph(3), "metropolys")
    with pytest.raises(TopologyError, match="agent 3 is not in the graph; its agents are 0 to 2"):
        mixing_weights(nx.cycle_graph(3), 3)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.array([[0.5, 0.4], [0.5, 0.5]]), r"row 0 .* sums to 0.9, and must sum to 1"),
        (np.array([[1.5, -0.5], [0.5, 0.5]]), r"row 0 .* negative"),
        (np.array([[0.5, 0.5], [np.nan, 0.5]]), r"row 1 .* NaN"),
        (np.full((2, 3), 1 / 3), r"square"),
        (np.full((3, 3), 1 / 3), r"for 3 agents, and the graph has 2"),
    ],
)
def test_a_matrix_that_is_no_mixing_matrix_is_refused(matrix: np.ndarray, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        check_mixing(matrix, nx.path_graph(2))


def test_a_weight_without_an_edge_is_refused() -> None:
    with pytest.raises(TopologyError, match=r"agent 0 read agent 2 \(weight 0.333\), which no edge allows"):
        check_mixing(np.full((3, 3), 1 / 3), nx.path_graph(3))
    one_way = nx.DiGraph([(0, 1)])
    with pytest.raises(TopologyError, match="agent 0 read agent 1"):
        check_mixing(np.array([[0.5, 0.5], [0.5, 0.5]]), one_way)
