"""What a run knows of its topology: graphs and mixing matrices by round, and the numbers that people ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import networkx as nx

from dimat.topology.mixing import (
    Matrix,
    MixingReport,
    check_mixing,
    is_doubly_stochastic,
    mixing_matrix,
    num_reads,
    readers,
    scheme_for,
    sources,
)
from dimat.topology.schedule import rounds_to_hear, union
from dimat.topology.source import agree_size, find_source, is_static, rounds_of
from dimat.topology.spectral import joint_matrix, rounds_per_tenfold, spectral_gap
from dimat.topology.tree import part_of, reading_tree, telling_tree


@dataclass(frozen=True, slots=True)
class Topology:
    """A topology for a known number of agents; build one with `load_topology`.

    Attributes:
        name: as the user gave it.
        num_agents: n; the agents are 0..n-1.
        mixing: the scheme of the mixing matrix, resolved.
        period: rounds per window: the union of a window's graphs is connected. 1 when every round's graph is.
        static: whether all rounds are the same (for a plug-in judged by its first rounds; every round is built anyway).
        graph_at: round -> frozen graph, validated.
        matrix_at: round -> (n, n) float64, read-only.
    """

    name: str
    num_agents: int
    mixing: str
    period: int
    static: bool
    graph_at: Callable[[int], nx.Graph[int]]
    matrix_at: Callable[[int], Matrix]

    def graph(self, round: int = 0) -> nx.Graph[int]:
        """The graph of a round, frozen; an nx.DiGraph when directed, where j -> i means that agent i reads j."""
        return self.graph_at(round)

    def matrix(self, round: int = 0) -> Matrix:
        """The mixing matrix of a round, (n, n) float64, read-only."""
        return self.matrix_at(round)

    def neighbours(self, agent: int, round: int = 0) -> list[int]:
        """The agents that `agent` reads in a round, ascending."""
        return sources(self.graph_at(round), agent)

    def readers(self, agent: int, round: int = 0) -> list[int]:
        """The agents that read `agent` in a round, ascending."""
        return readers(self.graph_at(round), agent)

    def weights(self, agent: int, round: int = 0) -> dict[int, float]:
        """The agent's row of the round's matrix: weight by agent read, itself included, ascending."""
        row = self.matrix_at(round)[agent]
        return {j: float(row[j]) for j in sorted([agent, *self.neighbours(agent, round)])}

    def window(self, round: int = 0) -> range:
        """The rounds of the window that holds `round`."""
        first = round // self.period * self.period
        return range(first, first + self.period)

    def joint_matrix(self, round: int = 0) -> Matrix:
        """What the window that holds `round` does as a whole: the product of its matrices."""
        return joint_matrix([self.matrix_at(r) for r in self.window(round)])

    def mixing_report(self, round: int = 0) -> MixingReport:
        """Whether the window that holds `round` keeps the plain average, and the influence of each agent if not."""
        joint = self.joint_matrix(round)
        reachable = nx.complete_graph(self.num_agents) if self.period > 1 else self.graph_at(round)
        return check_mixing(joint, reachable)

    @property
    def diameter(self) -> int:
        """Rounds until everyone has heard from everyone; for one graph the longest shortest path."""
        return _diameter(self)

    def tree(self, around: int | None = None) -> tuple[int, dict[int, int]]:
        """The root and the parent by child along which a basis is agreed (`dimat.topology.reading_tree`).

        A changing topology takes the union of its first window: all its edges may be read. Where agents are away, the
        graph may have several parts; then the tree is that of the part that holds the agent `around`.
        """
        root, parents, _ = _trees(self, None if around is None else frozenset(part_of(_read_at_all(self), around)))
        return root, dict(parents)

    def tree_up(self, around: int | None = None) -> dict[int, int]:
        """The parent by child along which the root of `tree` hears from all (`dimat.topology.telling_tree`)."""
        return dict(_trees(self, None if around is None else frozenset(part_of(_read_at_all(self), around)))[2])

    def summary(self, round: int = 0) -> dict[str, Any]:
        """The numbers of `dimat topology show --format json`, for one round.

        Degrees count what an agent reads. Where a window has several rounds, `spectral_gap` is the gap of their
        product, `rounds_per_tenfold` counts whole windows in rounds, and `doubly_stochastic` speaks for each of them.
        """
        graph, joint = self.graph_at(round), self.joint_matrix(round)
        degrees = [num_reads(graph, agent) for agent in graph]
        windows = rounds_per_tenfold(joint)
        return {
            "name": self.name,
            "num_agents": self.num_agents,
            "num_edges": graph.number_of_edges(),
            "min_degree": min(degrees),
            "max_degree": max(degrees),
            "diameter": self.diameter,
            "doubly_stochastic": all(is_doubly_stochastic(self.matrix_at(r)) for r in self.window(round)),
            "spectral_gap": spectral_gap(joint),
            "rounds_per_tenfold": None if windows is None else windows * self.period,
            "mixing": self.matrix_at(round).tolist(),
        }


@lru_cache(maxsize=64)
def _diameter(topology: Topology) -> int:
    """Agents ask for it each round; on a thousand of them it takes a second."""
    return rounds_to_hear([topology.graph_at(round) for round in topology.window()])


@lru_cache(maxsize=64)
def _read_at_all(topology: Topology) -> nx.Graph[int]:
    """All edges that are read along in the first window."""
    return union(topology.graph_at(round) for round in topology.window()) if topology.period > 1 else topology.graph()


@lru_cache(maxsize=64)
def _trees(topology: Topology, part: frozenset[int] | None) -> tuple[int, dict[int, int], dict[int, int]]:
    """Of all agents or a part of them. On a thousand it takes two seconds, and in a simulation each of them asks."""
    graph = _read_at_all(topology) if part is None else _read_at_all(topology).subgraph(part)
    root, parents = reading_tree(graph)
    return root, parents, telling_tree(graph, root)


def load_topology(
    graph: str,
    num_agents: int | None = None,
    mixing: str | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Topology:
    """The topology that a run uses, validated before anything starts.

    Args:
        graph: a name, a file or a function, as `dimat.topology.build` takes it.
        num_agents: n; None takes the size that a file fixes.
        mixing: a scheme of `dimat.topology.mixing_matrix`; None for the default of the graph.
        seed: of what is random in the graph.
        options: the graph's own options.

    Raises:
        TopologyError: the graph or the matrix of the first window cannot carry a run.
        PluginError: nothing answers to the name.

    Example:
        >>> topology = load_topology("ring", 5)
        >>> topology.neighbours(0), topology.diameter, topology.tree()
        ([1, 4], 2, (0, {1: 0, 4: 0, 2: 1, 3: 4}))
    """
    source = find_source(graph, seed=seed, options=dict(options or {}))
    n = agree_size(source, num_agents)
    graph_at = rounds_of(source, n)
    scheme = scheme_for(graph_at(0), mixing)

    @lru_cache(maxsize=256)
    def matrix_of(drawn: nx.Graph[int]) -> Matrix:
        # Keyed by the graph object, of which `graph_at` has one per round, and one for all rounds of a static name.
        matrix = mixing_matrix(drawn, scheme)
        check_mixing(matrix, drawn)
        matrix.flags.writeable = False
        return matrix

    topology = Topology(
        name=source.name,
        num_agents=n,
        mixing=scheme,
        period=source.period(n),
        static=is_static(source, graph_at),
        graph_at=graph_at,
        matrix_at=lambda round: matrix_of(graph_at(round)),
    )
    for round in topology.window():
        topology.matrix(round)
    return topology
