"""Who first agrees with whom: a tree along which every agent can take over what its parent has agreed on."""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx


def diameter(graph: nx.Graph[int]) -> int:
    """The longest shortest path, along the edges' direction when directed: rounds until all have heard from all.

    >>> diameter(nx.cycle_graph(8))
    4
    """
    return int(nx.diameter(graph))


def part_of(graph: nx.Graph[int], agent: int) -> nx.Graph[int]:
    """The part of a graph whose agents all hear from `agent` and are heard by it, itself included.

    >>> sorted(part_of(nx.Graph([(0, 1), (2, 3)]), 3))
    [2, 3]
    """
    if isinstance(graph, nx.DiGraph):
        return graph.subgraph((nx.ancestors(graph, agent) & nx.descendants(graph, agent)) | {agent})
    return graph.subgraph(nx.node_connected_component(graph, agent))


def reading_tree(graph: nx.Graph[int]) -> tuple[int, dict[int, int]]:
    """A breadth-first tree from the graph's centre, in which every child reads its parent.

    The root is the agent of lowest id among those with the smallest eccentricity (the greatest distance to another
    agent; for a directed graph along the edges out of it, because a child reads its parent by the edge parent ->
    child). A parent is the lowest id among the agents that the child reads one level nearer to the root.

    Args:
        graph: connected, strongly when directed.

    Returns:
        the root, and the parent by child, level by level and ascending within one.

    >>> reading_tree(nx.path_graph(5))
    (2, {1: 2, 3: 2, 0: 1, 4: 3})
    """
    levels = dict(nx.all_pairs_shortest_path_length(graph))
    root = min(graph, key=lambda agent: (max(levels[agent].values()), agent))
    return root, _parents(graph, root)


def telling_tree(graph: nx.Graph[int], root: int) -> dict[int, int]:
    """A breadth-first tree to `root`, in which every parent reads its children: what is told comes together there.

    Where edges have no direction it is the reading tree.

    Args:
        graph: connected, strongly when directed.
        root: of `reading_tree`.

    Returns:
        the parent by child, level by level and ascending within one; a parent is the lowest id among the agents that
        read the child and are one level nearer to the root.

    >>> telling_tree(nx.cycle_graph(4, create_using=nx.DiGraph), 0)  # 0 -> 1 -> 2 -> 3 -> 0
    {3: 0, 2: 3, 1: 2}
    """
    return _parents(graph.reverse(copy=False) if isinstance(graph, nx.DiGraph) else graph, root)


def steps_apart(parents: Mapping[int, int], one: int, other: int) -> int:
    """Edges of a tree on the way from one agent to another.

    Args:
        parents: the parent by child.
        one: an agent in the tree.
        other: another, or the same.

    >>> root, parents = reading_tree(nx.cycle_graph(5))
    >>> steps_apart(parents, 0, 1), steps_apart(parents, 1, 4), steps_apart(parents, 2, 3)
    (1, 2, 4)
    """
    upwards = {one: 0}
    while one in parents:
        one, steps = parents[one], upwards[one] + 1
        upwards[one] = steps
    steps = 0
    while other not in upwards:
        other, steps = parents[other], steps + 1
    return upwards[other] + steps


def _parents(graph: nx.Graph[int], root: int) -> dict[int, int]:
    """The parent by child in the breadth-first tree out of `root`, along the edges' direction."""
    level = nx.single_source_shortest_path_length(graph, root)
    parents: dict[int, int] = {}
    for child in sorted(graph, key=lambda agent: (level[agent], agent)):
        if child != root:
            before = graph.predecessors(child) if isinstance(graph, nx.DiGraph) else graph.neighbors(child)
            parents[child] = min(agent for agent in before if level[agent] == level[child] - 1)
    return parents
