"""What every mixing matrix must do, over random connected graphs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from graph_strategies import connected_graphs, directed_graphs, modest
from hypothesis import given
from hypothesis import strategies as st

from dimat.errors import TopologyError
from dimat.topology import (
    check_mixing,
    contraction_bound,
    mixing_matrix,
    mixing_weights,
    rounds_per_tenfold,
    spectral_gap,
    without_edges,
)
from dimat.topology.mixing import SCHEMES


def models(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 7))


def disagreement(x: np.ndarray) -> float:
    return float(np.linalg.norm(x - x.mean(axis=0)))


@modest
@given(connected_graphs())
def test_metropolis_is_symmetric_and_doubly_stochastic(graph: nx.Graph) -> None:
    W = mixing_matrix(graph, "metropolis")
    assert (W == W.T).all() or np.allclose(W, W.T, atol=1e-15)
    assert np.allclose(W.sum(axis=0), 1, atol=1e-12) and np.allclose(W.sum(axis=1), 1, atol=1e-12)
    assert (W >= 0).all()
    for i, j in graph.edges:
        assert W[i, j] == pytest.approx(1 / (1 + max(graph.degree[i], graph.degree[j])))
    edges = {frozenset(edge) for edge in graph.edges}
    off = {frozenset((int(i), int(j))) for i, j in np.argwhere(W > 0) if i != j}
    assert off == edges


@modest
@given(connected_graphs(), st.sampled_from(["metropolis", "max_degree", "lazy"]), st.integers(0, 99))
def test_averaging_keeps_the_mean_and_shrinks_the_disagreement_by_the_second_eigenvalue(
    graph: nx.Graph, scheme: str, seed: int
) -> None:
    W = mixing_matrix(graph, scheme)
    x = models(len(graph), seed)
    assert np.allclose((W @ x).mean(axis=0), x.mean(axis=0), atol=1e-12)
    second = np.sort(np.abs(np.linalg.eigvalsh(W)))[-2]
    assert disagreement(W @ x) <= second * disagreement(x) + 1e-9


@modest
@given(st.one_of(connected_graphs(), directed_graphs()), st.sampled_from(SCHEMES[1:4]))
def test_the_gap_is_the_norm_for_doubly_stochastic_and_the_second_eigenvalue_else(graph: nx.Graph, scheme: str) -> None:
    W = mixing_matrix(graph, scheme)
    n = len(W)
    if check_mixing(W, graph).doubly_stochastic:
        expected = 1 - np.linalg.svd(W - np.full((n, n), 1 / n), compute_uv=False)[0]
        assert contraction_bound(W) == pytest.approx(1 - expected, abs=1e-9)
    else:
        expected = 1 - sorted(abs(np.linalg.eigvals(W)))[-2]
    assert spectral_gap(W) == pytest.approx(expected, abs=1e-9)
    assert 0 < spectral_gap(W) <= 1


@modest
@given(st.one_of(connected_graphs(), directed_graphs()), st.sampled_from([None, "uniform", "max_degree", "lazy"]))
def test_rows_sum_to_one_and_the_influence_is_where_the_powers_lead(graph: nx.Graph, scheme: str | None) -> None:
    W = mixing_matrix(graph, scheme)
    report = check_mixing(W, graph)
    assert np.allclose(W.sum(axis=1), 1, atol=1e-12)
    limit = np.linalg.matrix_power(W, 1 << 14)
    assert np.allclose(limit, np.array(report.influence)[None, :], atol=1e-6)
    assert sum(report.influence) == pytest.approx(1)
    assert bool(report.bias) == (not report.doubly_stochastic)
    assert report.symmetric == np.allclose(W, W.T, atol=1e-9)


@modest
@given(directed_graphs())
def test_a_row_weighs_only_what_the_agent_reads(graph: nx.DiGraph) -> None:
    W = mixing_matrix(graph)
    for agent in graph:
        row = mixing_weights(graph, agent)
        assert list(row) == sorted({agent, *graph.predecessors(agent)})
        assert [W[agent, j] for j in row] == list(row.values())
        assert row[agent] == pytest.approx(1 / (1 + graph.in_degree(agent)))
        assert W[agent].sum() == pytest.approx(1)


@modest
@given(connected_graphs(), st.data())
def test_both_ends_dropping_an_edge_keep_a_symmetric_matrix_doubly_stochastic(
    graph: nx.Graph, data: st.DataObject
) -> None:
    W = mixing_matrix(graph)
    i, j = data.draw(st.sampled_from(sorted(graph.edges)))
    both = without_edges(W, [(i, j), (j, i)])
    assert both[i, j] == both[j, i] == 0
    assert both[i, i] == pytest.approx(W[i, i] + W[i, j])
    assert np.allclose(both.sum(axis=0), 1) and np.allclose(both.sum(axis=1), 1)
    one = without_edges(W, [(i, j)])
    assert np.allclose(one.sum(axis=1), 1)
    assert not np.allclose(one.sum(axis=0), 1)


@modest
@given(connected_graphs())
def test_rounds_per_tenfold_is_the_first_round_below_a_tenth(graph: nx.Graph) -> None:
    W = mixing_matrix(graph)
    rounds = rounds_per_tenfold(W)
    assert rounds is not None
    J = np.full_like(W, 1 / len(W))
    norm = [np.linalg.norm(np.linalg.matrix_power(W - J, r), 2) for r in (rounds - 1, rounds)]
    assert norm[1] <= 0.1 + 1e-9
    assert rounds == 1 or norm[0] > 0.1 - 1e-9


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
