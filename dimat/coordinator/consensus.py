"""How far apart the models are, from sketches alone, and how much closer a merge should bring them.

With the models as rows of X (n x d), W the mixing matrix that was really used and J = 11^T / n:

    distance(X)  = sqrt( (1/n) sum_i ||x_i - mean x||^2 ) = ||(I - J) X||_F / sqrt(n)
    observed     = distance(X after) / distance(X before)
    predicted    = distance(W X before) / distance(X before)
    bound        = ||W - J||_2, the worst that predicted can be when W is doubly stochastic

A sketch S is linear, so the sketch of W X is W applied to the sketches: the prediction needs no model. It holds for
merges that are plain weighted sums in one basis; permutations found anew in every round are outside of it.

Source: Kong et al., «Consensus control for decentralized deep learning», arXiv 2102.04828.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dimat.messages import Report

MOST_FOR_GAP = 256
"""Agents up to which the gap of every round is computed: a decomposition of 256 x 256 takes some 50 ms."""

Array = npt.NDArray[np.float64]


def read_sketches(sketches: Sequence[bytes]) -> Array:
    """The sketches as rows, (n, k) float64.

    Raises:
        ValueError: their sizes differ.
    """
    rows = [np.frombuffer(data, dtype="<f4").astype(np.float64) for data in sketches]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"sketches of different sizes cannot be compared: {sorted({len(row) for row in rows})}")
    return np.stack(rows)


def consensus_distance(rows: Array) -> float:
    """sqrt(mean_i ||x_i - mean x||^2) over the rows of `rows`, (n, k).

    >>> consensus_distance(np.array([[0.0, 3.0], [8.0, -3.0]]))
    5.0
    """
    return float(np.sqrt(np.mean(np.sum((rows - rows.mean(axis=0)) ** 2, axis=1))))


def contraction_bound(matrix: Array) -> float:
    """||W - J||_2: no disagreement shrinks by less under a doubly stochastic W.

    >>> contraction_bound(np.full((4, 4), 0.25))
    0.0
    """
    return float(np.linalg.norm(matrix - 1.0 / len(matrix), 2)) if len(matrix) else float("nan")


def realised_matrix(weights: Mapping[int, Mapping[int, float]]) -> Array:
    """The mixing matrix over the agents that reported, in the order of their ids.

    Args:
        weights: row by agent, each a weight by agent read. What an agent gave to one that did not report is put on the
            agent itself, as it would have been had the other not answered: its model is not known here.

    >>> realised_matrix({0: {0: 0.5, 1: 0.25, 2: 0.25}, 2: {2: 1.0}})
    array([[0.75, 0.25],
           [0.  , 1.  ]])
    """
    agents = sorted(weights)
    matrix = np.zeros((len(agents), len(agents)))
    for i, agent in enumerate(agents):
        for j, weight in weights[agent].items():
            matrix[i, agents.index(j) if j in weights else i] += weight
    return matrix


def realised_gap(reports: Iterable[Report]) -> float:
    """The spectral gap of the matrix that was really used; NaN when nothing was merged, or for very many agents."""
    rows = {report.agent: report.weights for report in reports if report.weights}
    if not 2 <= len(rows) <= MOST_FOR_GAP:
        return float("nan")
    from dimat.topology.spectral import spectral_gap  # networkx comes with it, and onlookers load this file, too

    return spectral_gap(realised_matrix(rows))


def predicted_contraction(reports: Iterable[Report]) -> float:
    """distance(W S) / distance(S) for the sketches S before the merge; NaN when nothing was merged or differed."""
    merged = {report.agent: report for report in reports if report.sketch_before and report.weights}
    if len(merged) < 2 or len({len(report.sketch_before) for report in merged.values()}) > 1:
        return float("nan")
    before = read_sketches([merged[agent].sketch_before for agent in sorted(merged)])
    matrix = realised_matrix({agent: report.weights for agent, report in merged.items()})
    return ratio(consensus_distance(matrix @ before), consensus_distance(before))


def ratio(after: float, before: float) -> float:
    """How far `after` is of `before`; NaN when there was nothing to shrink."""
    return after / before if before > 0 else float("nan")
