"""The gradient nearest to one's own that none of the others would call uphill: the quadratic programme of CGA.

With one's own gradient g and the rows g_j of G, the gradients that others found for the same model,

    z* = argmin_z 1/2 ||z - g||^2     subject to  <z, g_j> >= 0 for all j

Its dual has one variable for each of the others, however large the model is:

    u* = argmin_u 1/2 u' G G' u + u' G g     subject to  u >= margin        z* = g + G' u*

`margin` is 0 for the programme above; above 0 the others' gradients are always taken in, by at least that much. With
G G' = V S V' (n times n, in float64) and h = g + margin * sum_j g_j the dual is the non-negative least-squares problem

    min_{v >= 0} || S^(1/2) V' v + S^(-1/2) V' G h ||^2       u = v + margin

on the part where S is not zero, which scipy solves by active sets (Lawson and Hanson).

Sources: Esfandiari et al., arXiv 2103.02051; for the programme, Lopez-Paz and Ranzato, «Gradient episodic memory for
continual learning», NeurIPS 2017, arXiv 1706.08840.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Array = npt.NDArray[np.float64]

RANK = 1e-12
"""Eigenvalues of G G' below this share of the largest are rounding."""


def multipliers(gram: Array, with_own: Array, margin: float = 0.0) -> Array:
    """u*, one for each of the others.

    Args:
        gram: G G', (n, n).
        with_own: G g, (n,).
        margin: the least value of an entry of u.

    >>> multipliers(np.eye(2), np.array([-3.0, 3.0])).tolist()
    [3.0, 0.0]
    """
    if not len(gram):
        return np.zeros(0)
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    kept = values > RANK * max(values[-1], 0.0)
    if not kept.any():
        return np.full(len(gram), margin)
    roots = np.sqrt(values[kept])
    factor = roots[:, None] * vectors[:, kept].T  # (rank, n)
    target = -(vectors[:, kept].T @ (with_own + margin * gram.sum(axis=1))) / roots
    return np.asarray(nnls(factor, target)[0], dtype=np.float64) + margin
