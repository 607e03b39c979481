"""What every mixing matrix and every reading tree must do, over random connected graphs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.topology import (
    check_mixing,
    contraction_bound,
    diameter,
    mixing_matrix,
    mixing_weights,
    reading_tree,
    rounds_per_tenfold,
    spectral_gap,
    telling_tree,
    without_edges,
)
from dimat.topology.mixing import SCHEMES
from dimat.topology.schedule import rounds_to_hear

modest = settings(max_examples=60, deadline=None)


@st.composite
def connected_graphs(draw: st.DrawFn) -> nx.Graph:
    """A random tree and some more edges."""
    n = draw(st.integers(2, 12))
    tree = [(draw(st.integers(0, child - 1)), child) for child in range(1, n)]
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] != pair[1])
    graph = nx.Graph([*tree, *draw(st.lists(pairs, max_size=15))])
    return nx.Graph(nx.convert_node_labels_to_integers(graph, ordering="sorted"))


@st.composite
def directed_graphs(draw: st.DrawFn) -> nx.DiGraph:
    """A directed cycle through everyone and some more edges."""
    n = draw(st.integers(2, 10))
    order = draw(st.permutations(range(n)))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] != pair[1])
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(zip(order, [*order[1:], order[0]], strict=True))
    graph.add_edges_from(draw(st.lists(pairs, max_size=15)))
    return graph


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


@modest
@given(st.one_of(connected_graphs(), directed_graphs()))
def test_every_child_reads_its_parent_one_level_up(graph: nx.Graph) -> None:
    root, parents = reading_tree(graph)
    distance = {node: nx.shortest_path_length(graph, root, node) for node in graph}
    centres = {node: max(nx.shortest_path_length(graph, node).values()) for node in graph}
    assert root == min(node for node in graph if centres[node] == min(centres.values()))
    assert set(parents) == set(graph) - {root}
    for child, parent in parents.items():
        up = [node for node in graph if graph.has_edge(node, child) and distance[node] == distance[child] - 1]
        assert parent == min(up)
    assert list(parents) == sorted(parents, key=lambda child: (distance[child], child))


@modest
@given(st.one_of(connected_graphs(), directed_graphs()))
def test_what_is_told_comes_to_the_root_by_readable_edges(graph: nx.Graph) -> None:
    root, parents = reading_tree(graph)
    told = telling_tree(graph, root)
    distance = {node: nx.shortest_path_length(graph, node, root) for node in graph}
    assert set(told) == set(graph) - {root}
    for teller, hearer in told.items():
        assert hearer == min(n for n in graph if graph.has_edge(teller, n) and distance[n] == distance[teller] - 1)
    assert list(told) == sorted(told, key=lambda teller: (distance[teller], teller))
    if not graph.is_directed():
        assert told == parents


def test_the_tree_of_a_directed_graph_follows_readable_edges() -> None:
    graph = nx.cycle_graph(4, create_using=nx.DiGraph)  # 0 -> 1 -> 2 -> 3 -> 0
    assert reading_tree(graph) == (0, {1: 0, 2: 1, 3: 2})


@modest
@given(st.one_of(connected_graphs(), directed_graphs()))
def test_the_rounds_until_all_have_heard_from_all_are_the_diameter(graph: nx.Graph) -> None:
    longest = max(max(lengths.values()) for _, lengths in nx.all_pairs_shortest_path_length(graph))
    assert diameter(graph) == rounds_to_hear([graph]) == longest


def test_hearing_takes_the_worst_first_round_of_a_schedule() -> None:
    left, right = nx.Graph([(0, 1)]), nx.Graph([(1, 2)])
    left.add_node(2)
    right.add_node(0)
    assert rounds_to_hear([left, right]) == 3  # 0 - 1, 1 - 2, 0 - 1: only then 0 has heard from 2
    still = nx.empty_graph(3)
    assert rounds_to_hear([left, right, still]) == 5  # begun in the round when nobody reads: it costs one more
    with pytest.raises(nx.NetworkXError):
        diameter(still)
