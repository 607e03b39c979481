"""Graphs by name that are the same every round and have nothing random in them.

Each is an example of the contract a plug-in follows:

    fn(n, *, round=0, seed=0, <options>) -> networkx.Graph | networkx.DiGraph

Nodes are the agents 0..n-1. An undirected edge lets both ends read each other; a directed edge j -> i means that agent
i reads j's model. The keyword-only arguments beside `round` and `seed` are the topology's options.
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from dimat.errors import TopologyError
from dimat.topology.options import rectangle, whole


def ring(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph[int]:
    """Every agent has the two next to it as neighbours.

    Metropolis gap for n ≥ 3: (2/3)(1 - cos(2π/n)), so agreement takes O(n²) rounds.

    >>> sorted(ring(5)[0])
    [1, 4]
    """
    del round, seed  # the same every round, nothing random
    graph: nx.Graph[int] = nx.cycle_graph(n)
    return graph


def path(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph[int]:
    """A ring that is cut open: the two ends have one neighbour each."""
    del round, seed  # the same every round, nothing random
    graph: nx.Graph[int] = nx.path_graph(n)
    return graph


def star(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph[int]:
    """Agent 0 is everyone's only neighbour; metropolis gap 1/n for n ≥ 3."""
    del round, seed  # the same every round, nothing random
    graph: nx.Graph[int] = nx.star_graph(n - 1)
    return graph


def complete(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph[int]:
    """Everyone reads everyone: one round averages exactly."""
    del round, seed  # the same every round, nothing random
    graph: nx.Graph[int] = nx.complete_graph(n)
    return graph


def grid(n: int, *, round: int = 0, seed: int = 0, rows: int | None = None, cols: int | None = None) -> nx.Graph[int]:
    """A mesh of rows × cols agents with open borders, as square as n allows (a path when n is prime).

    Raises:
        TopologyError: rows × cols is not n.
    """
    del round, seed  # the same every round, nothing random
    return _mesh("grid", n, rows, cols, periodic=False)


def torus(n: int, *, round: int = 0, seed: int = 0, rows: int | None = None, cols: int | None = None) -> nx.Graph[int]:
    """A mesh of rows × cols agents whose borders are joined, as square as n allows (a ring when n is prime).

    >>> sorted(torus(16)[0])
    [1, 3, 4, 12]

    Raises:
        TopologyError: rows × cols is not n.
    """
    del round, seed  # the same every round, nothing random
    return _mesh("torus", n, rows, cols, periodic=True)


def hypercube(n: int, *, round: int = 0, seed: int = 0) -> nx.Graph[int]:
    """Agents whose numbers differ in one bit are neighbours; n = 2^k, metropolis gap 2/(k + 1).

    >>> sorted(hypercube(8)[0])
    [1, 2, 4]

    Raises:
        TopologyError: n is not a power of two.
    """
    del round, seed  # the same every round, nothing random
    below = 1 << (n.bit_length() - 1)
    if n != below:
        sizes = f"{below} or {2 * below}" if below > 1 else f"{2 * below}"
        raise TopologyError(
            f"hypercube: the number of agents must be a power of two, not {n}; the nearest sizes are {sizes}",
            hint="exponential is as sparse and takes any number of agents",
        )
    graph: nx.Graph[int] = nx.empty_graph(n)
    graph.add_edges_from((i, i ^ (1 << bit)) for i in range(n) for bit in range(n.bit_length() - 1))
    return graph


def exponential(n: int, *, round: int = 0, seed: int = 0) -> nx.DiGraph[int]:
    """Directed: agent i reads those 1, 2, 4, 8, … places before it on a circle, ⌈log₂ n⌉ of them.

    Uniform weights are doubly stochastic on it, with gap 2/(1 + ⌈log₂ n⌉) for even n.
    Source: Ying et al., «Exponential graph is provably efficient for decentralized deep training», arXiv 2110.13363.

    >>> sorted(exponential(8).predecessors(0))
    [4, 6, 7]
    """
    del round, seed  # the same every round, nothing random
    graph: nx.DiGraph[int] = nx.empty_graph(n, create_using=nx.DiGraph)
    graph.add_edges_from((j, (j + (1 << k)) % n) for j in range(n) for k in range((n - 1).bit_length()))
    return graph


def barbell(n: int, *, round: int = 0, seed: int = 0, bridge: int | None = None) -> nx.Graph[int]:
    """Two cliques of equal size joined by a path of `bridge` agents (0 or 1, whichever leaves two equal halves).

    Raises:
        TopologyError: fewer than four agents, or a bridge that leaves no two equal cliques of at least two.
    """
    del round, seed  # the same every round, nothing random
    if n < 4:
        raise TopologyError(f"barbell: two cliques need at least 4 agents, not {n}")
    between = n % 2 if bridge is None else whole("barbell", "bridge", bridge, 0, n - 4)
    if (n - between) % 2:
        other = between - 1 if between == n - 4 or between else between + 1
        raise TopologyError(
            f"barbell: bridge={between} leaves {n - between} of {n} agents, which are no two equal halves; try {other}"
        )
    half = (n - between) // 2
    return nx.barbell_graph(half, between)


def _mesh(name: str, n: int, rows: int | None, cols: int | None, *, periodic: bool) -> nx.Graph[int]:
    height, width = rectangle(name, n, rows, cols)
    mesh: nx.Graph[Any] = nx.grid_2d_graph(height, width, periodic=periodic)
    if not periodic:  # pictures draw a mesh as a mesh; a torus would hide its long edges that way
        nx.set_node_attributes(mesh, {place: (place[1], -place[0]) for place in mesh}, "pos")
    number: dict[Any, int] = {(row, col): row * width + col for row, col in mesh}
    graph: nx.Graph[int] = nx.relabel_nodes(mesh, number)
    return graph
