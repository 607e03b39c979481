"""How fast agents agree under a mixing matrix, and what a round costs.

With J = 11ᵀ/n the disagreement after a merge of x is (W - J)x, so that ‖W - J‖₂ bounds the factor by which it shrinks,
for every doubly stochastic W. For any other W the agents approach a weighted average, at the rate |λ₂| in the long run.
The *spectral gap* is 1 minus that factor ρ, and ⌈ln 10 / -ln ρ⌉ rounds shrink the disagreement tenfold.

Aligning before averaging is no fixed linear map: for runs that align every round these numbers are a guide only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import networkx as nx
import numpy as np

from dimat.topology.mixing import Matrix, check_rows, is_doubly_stochastic

_ROUNDING = 1e-12  # eigenvalues of stochastic matrices carry about this much noise; below it ρ is 0, and 1 - ρ too


def contraction_bound(matrix: Matrix) -> float:
    """‖W - J‖₂, the largest factor by which one merge may change the disagreement; J = 11ᵀ/n.

    Raises:
        TopologyError: the matrix is not square and row-stochastic.
    """
    check_rows(matrix)
    return _snap(float(np.linalg.norm(matrix - 1 / len(matrix), 2)))


def contraction(matrix: Matrix) -> float:
    """ρ: ‖W - J‖₂ when W is doubly stochastic, else |λ₂|, the second largest modulus of an eigenvalue.

    Raises:
        TopologyError: the matrix is not square and row-stochastic.
    """
    check_rows(matrix)
    if is_doubly_stochastic(matrix):
        return min(1.0, contraction_bound(matrix))
    moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))
    return min(1.0, _snap(float(moduli[-2])))


def spectral_gap(matrix: Matrix) -> float:
    """1 - ρ in [0, 1]: 1 when one round averages exactly, 0 when agents never agree.

    The ring of 16 under metropolis has (2/3)(1 - cos(2π/16)), the star of n has 1/n.

    >>> from dimat.topology.mixing import mixing_matrix
    >>> round(spectral_gap(mixing_matrix(nx.cycle_graph(16))), 4)
    0.0507

    Raises:
        TopologyError: the matrix is not square and row-stochastic.
    """
    return 1 - contraction(matrix)


def rounds_per_tenfold(matrix: Matrix) -> int | None:
    """⌈ln 10 / -ln ρ⌉: rounds until the disagreement is a tenth; 1 at least, None when it never is (ρ = 1).

    >>> from dimat.topology.mixing import mixing_matrix
    >>> rounds_per_tenfold(mixing_matrix(nx.cycle_graph(16)))
    45
    """
    rho = contraction(matrix)
    if rho >= 1:
        return None
    return 1 if rho == 0 else max(1, math.ceil(math.log(10) / -math.log(rho)))


def joint_matrix(matrices: Sequence[Matrix]) -> Matrix:
    """W_T … W_1, what the rounds 1 to T do together; row-stochastic as each of them is.

    >>> from dimat.topology import build
    >>> rounds = [build("one-peer-exponential", 8, round=r) for r in range(3)]
    >>> from dimat.topology.mixing import mixing_matrix
    >>> spectral_gap(joint_matrix([mixing_matrix(graph) for graph in rounds]))
    1.0
    """
    return reduce(lambda done, matrix: matrix @ done, matrices)


def bytes_per_round(graph: nx.Graph[int], model_bytes: int) -> int:
    """What all agents together fetch in one round: the number of reads (two per undirected edge) × bytes of a model."""
    return graph.number_of_edges() * (1 if graph.is_directed() else 2) * model_bytes


def _snap(rho: float) -> float:
    return 0.0 if rho < _ROUNDING else 1.0 if rho > 1 - _ROUNDING and rho < 1 + _ROUNDING else rho
