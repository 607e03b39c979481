"""Random graphs for property tests."""

from __future__ import annotations

import networkx as nx
from hypothesis import settings
from hypothesis import strategies as st

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
