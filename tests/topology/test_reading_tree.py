"""The tree along which a basis is agreed, and diameters."""

from __future__ import annotations

import networkx as nx
import pytest
from graph_strategies import connected_graphs, directed_graphs, modest
from hypothesis import given
from hypothesis import strategies as st

from dimat.topology import diameter, reading_tree
from dimat.topology.schedule import rounds_to_hear


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
