"""From a graph to the weights with which its agents merge.

A mixing matrix W is (n, n) float64; W[i, j] is the weight that agent i gives to agent j's model. Every row sums to 1
and nothing is negative, so that a merge is a weighted mean; W[i, j] > 0 only where i reads j or i = j. When the columns
sum to 1 too (W is doubly stochastic) the mean over all agents stays where it is, and they agree on the plain average.
Otherwise they agree on an average weighted by the left Perron vector π, πW = π: the *influence* of each agent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from dimat import plugins
from dimat.errors import TopologyError

Matrix: TypeAlias = NDArray[np.float64]

SCHEMES = ("metropolis", "uniform", "max_degree", "lazy", "edge_weights")
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class MixingReport:
    """What `check_mixing` found in a matrix that may be used.

    Attributes:
        symmetric: W = Wᵀ.
        doubly_stochastic: columns sum to 1 as rows do: the consensus is the plain average.
        influence: each agent's share in the consensus, summing to 1; 1/n for all when doubly stochastic.
        bias: a sentence that says who counts more and who less; empty when doubly stochastic.
    """

    symmetric: bool
    doubly_stochastic: bool
    influence: tuple[float, ...]
    bias: str


def default_scheme(graph: nx.Graph[int]) -> str:
    """`uniform` for a directed graph, `metropolis` for an undirected one."""
    return "uniform" if graph.is_directed() else "metropolis"


def scheme_for(graph: nx.Graph[int], scheme: str | None) -> str:
    """The scheme to use for a graph: the one named (`-` and `_` alike), or the default for None.

    Raises:
        TopologyError: an unknown scheme, or metropolis on a directed graph.
    """
    if scheme is None:
        return default_scheme(graph)
    name = str(scheme).lower().replace("-", "_")
    if name not in SCHEMES:
        raise TopologyError(plugins.unknown("mixing", str(scheme), SCHEMES))
    if name == "metropolis" and graph.is_directed():
        raise TopologyError(
            "metropolis weights need an undirected graph: both ends of an edge must give each other the same weight",
            hint="for a directed graph take mixing uniform, max_degree, lazy or edge_weights",
        )
    return name


def mixing_matrix(graph: nx.Graph[int], scheme: str | None = None) -> Matrix:
    """The mixing matrix of a graph on the agents 0..n-1; d_i is the number of models agent i reads.

    | scheme         | W[i, j] for j read by i  | doubly stochastic                       |
    |----------------|--------------------------|-----------------------------------------|
    | metropolis     | 1 / (1 + max(d_i, d_j))  | always (undirected graphs only)         |
    | uniform        | 1 / (1 + d_i)            | when all degrees are equal              |
    | max_degree     | 1 / (1 + max d)          | undirected, or as many readers as reads |
    | lazy           | half of the default      | as the default; no negative eigenvalues |
    | edge_weights   | attribute `weight`       | as the weights make it                  |

    The diagonal is what the row leaves to 1. The default (None) is metropolis, on directed graphs uniform.

    Raises:
        TopologyError: an unknown scheme, metropolis on a directed graph, or edge weights that are missing, not
            positive, or above 1 in sum.

    Source: Xiao and Boyd, «Fast linear iterations for distributed averaging», Systems & Control Letters 53 (2004).

    >>> mixing_matrix(nx.path_graph(3)).round(3).tolist()
    [[0.667, 0.333, 0.0], [0.333, 0.333, 0.333], [0.0, 0.333, 0.667]]
    """
    weights = np.zeros((len(graph), len(graph)))
    for agent in graph:
        for source, weight in mixing_weights(graph, agent, scheme).items():
            weights[agent, source] = weight
    return weights


def mixing_weights(graph: nx.Graph[int], agent: int, scheme: str | None = None) -> dict[int, float]:
    """One agent's row of the mixing matrix: weight by agent read, itself included, in ascending order.

    >>> mixing_weights(nx.star_graph(3), 1)
    {0: 0.25, 1: 0.75}

    Raises:
        TopologyError: as `mixing_matrix`, or an agent that is not in the graph.
    """
    scheme = scheme_for(graph, scheme)
    if agent not in graph:
        raise TopologyError(f"agent {agent!r} is not in the graph; its agents are 0 to {len(graph) - 1}")
    reads = sources(graph, agent)
    if scheme == "edge_weights":
        row = _edge_weights(graph, agent, reads)
    elif scheme == "uniform":
        row = {j: 1 / (1 + len(reads)) for j in reads}
    elif scheme == "max_degree":
        most = max(num_reads(graph, node) for node in graph)
        row = dict.fromkeys(reads, 1 / (1 + most))
    elif scheme == "metropolis":
        row = {j: 1 / (1 + max(len(reads), num_reads(graph, j))) for j in reads}
    else:
        full = mixing_weights(graph, agent, default_scheme(graph))
        row = {j: full[j] / 2 for j in reads}
    row[agent] = max(0.0, 1 - math.fsum(row.values()))
    return dict(sorted(row.items()))


def sources(graph: nx.Graph[int], agent: int) -> list[int]:
    """The agents whose models `agent` reads, ascending: in-neighbours when directed."""
    return sorted(graph.predecessors(agent) if isinstance(graph, nx.DiGraph) else graph.neighbors(agent))


def readers(graph: nx.Graph[int], agent: int) -> list[int]:
    """The agents that read `agent`'s model, ascending: out-neighbours when directed."""
    return sorted(graph.successors(agent) if isinstance(graph, nx.DiGraph) else graph.neighbors(agent))


def num_reads(graph: nx.Graph[int], agent: int) -> int:
    """The number of models that `agent` reads in a round."""
    return len(graph.pred[agent]) if isinstance(graph, nx.DiGraph) else len(graph.adj[agent])


def check_mixing(matrix: Matrix, graph: nx.Graph[int]) -> MixingReport:
    """Check that a matrix may be used on a graph, and say what it does to the average.

    Args:
        matrix: (n, n).
        graph: on the agents 0..n-1.

    Raises:
        TopologyError: wrong shape, NaN or Inf, a negative entry, a row that does not sum to 1 (within 1e-9), or a
            weight where there is no edge.
    """
    check_rows(matrix)
    if len(matrix) != len(graph):
        raise TopologyError(f"the mixing matrix is for {len(matrix)} agents, and the graph has {len(graph)}")
    for i, j in zip(*np.nonzero(matrix), strict=True):
        if i != j and int(j) not in sources(graph, int(i)):
            raise TopologyError(
                f"the mixing matrix lets agent {i} read agent {j} (weight {matrix[i, j]:.3g}), which no edge allows"
            )
    symmetric = bool(np.allclose(matrix, matrix.T, rtol=0, atol=TOLERANCE))
    influence = perron(matrix)
    if is_doubly_stochastic(matrix):
        return MixingReport(symmetric, True, influence, "")
    return MixingReport(symmetric, False, influence, _bias(influence))


def check_rows(matrix: Matrix) -> None:
    """Check that a matrix is square, finite, non-negative, and that its rows sum to 1 within 1e-9.

    Raises:
        TopologyError: it is not; the message names the first row.
    """
    shape = np.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise TopologyError(f"a mixing matrix is square, (n, n); this one has the shape {shape}")
    for agent, row in enumerate(matrix):
        if not np.isfinite(row).all() or row.min() < 0:
            raise TopologyError(f"row {agent} of the mixing matrix has a negative weight, NaN or Inf: {row.tolist()}")
        if abs(math.fsum(row) - 1) > TOLERANCE:
            raise TopologyError(f"row {agent} of the mixing matrix sums to {math.fsum(row):.12g}, and must sum to 1")


def is_doubly_stochastic(matrix: Matrix) -> bool:
    """Whether the columns of a row-stochastic matrix sum to 1 as well."""
    return bool(np.allclose(matrix.sum(axis=0), 1, rtol=0, atol=TOLERANCE))


def perron(matrix: Matrix) -> tuple[float, ...]:
    """The left Perron vector π = πW, Σπ = 1: each agent's share in the model that all of them approach.

    >>> perron(mixing_matrix(nx.star_graph(2), "uniform"))
    (0.428..., 0.285..., 0.285...)
    """
    n = len(matrix)
    if is_doubly_stochastic(matrix):
        return (1 / n,) * n
    system = np.vstack([matrix.T - np.eye(n), np.ones(n)])
    solution = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)[0]
    return tuple(float(share) for share in solution)


def without_edges(matrix: Matrix, missing: Iterable[tuple[int, int]]) -> Matrix:
    """The matrix really used when some reads did not happen: each weight goes to the reader itself.

    Args:
        matrix: (n, n), of the round as planned.
        missing: pairs (reader, source). A symmetric matrix stays doubly stochastic when both ends drop an edge.

    >>> without_edges(np.full((2, 2), 0.5), [(0, 1)]).tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    used = matrix.copy()
    for reader, source in missing:
        if reader != source:
            used[reader, reader] += used[reader, source]
            used[reader, source] = 0.0
    return used


def _edge_weights(graph: nx.Graph[int], agent: int, reads: list[int]) -> dict[int, float]:
    row: dict[int, float] = {}
    for source in reads:
        weight = graph.edges[source, agent].get("weight")
        if weight is None:
            raise TopologyError(
                f"mixing edge_weights: the edge {source} - {agent} has no attribute `weight`",
                hint="give every edge one, or take another mixing",
            )
        if isinstance(weight, bool | str) or not math.isfinite(weight) or weight <= 0:
            raise TopologyError(
                f"mixing edge_weights: the edge {source} - {agent} has the weight {weight!r}; a weight must be above 0",
                hint="an edge that is to carry nothing is left out of the graph",
            )
        row[source] = float(weight)
    if (total := math.fsum(row.values())) > 1 + TOLERANCE:
        raise TopologyError(
            f"mixing edge_weights: the weights that agent {agent} gives to {reads} sum to {total:.6g}, above 1; "
            "what they leave to 1 is its own"
        )
    return row


def _bias(influence: tuple[float, ...]) -> str:
    fair = 1 / len(influence)
    most, least = int(np.argmax(influence)), int(np.argmin(influence))
    return (
        "not doubly stochastic: the agents agree on a weighted average, in which "
        f"agent {most} counts {influence[most] / fair:.2f} times its share of 1/{len(influence)} "
        f"and agent {least} {influence[least] / fair:.2f} times"
    )
