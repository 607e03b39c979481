"""Take out of a matrix what it shares with another one, in that one's singular basis: the linear algebra of OPCM.

With the singular value decomposition S = sum_i sigma_i u_i v_i^T and P = U^T T V, the projection of T off S sets

    P_ii = 0    for every direction i of S,
    P_ij = 0    for i, j < r, the directions that lead S,

and maps back. It needs no full U and V: what is taken away is U_k M V_k^T, where M holds those entries of P alone and k
is the number of directions that S really has. Since V_k^T = diag(1/sigma) U_k^T S, not even V_k is formed where U comes
from the Gram matrix S S^T of the smaller side: U_k M V_k^T = A S, with A = U_k M diag(1/sigma) U_k^T as small as that.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SIGMA = 1e-10
"""Directions with sigma_i at most this share of sigma_1 are rounding: an arbitrary basis of what S does not reach."""
MIN_EIGENVALUE = 1e-9
"""The Gram matrix serves while its smallest eigenvalue is above this share of its largest.

Forming it squares the condition kappa = sigma_1 / sigma_k: directions come out with errors that grow as eps kappa^2,
where a decomposition of S itself has eps kappa. Measured against known singular vectors, errors of the projection of a
unit T are 5e-12 at kappa = 1e3, 4e-10 at 1e4, 2e-8 at 1e5 and 1e-6 at 1e6 (by decomposition 2e-14 to 5e-12)."""
TIE = 1e-10
"""Shares of the nuclear norm that differ from alpha by less are alpha: rounding must not choose r."""
_BLOCK = 192
"""Rows of the Gram matrix that are computed at a time; those right of the diagonal are left out."""


def project_off(t: Tensor, s: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
    """`t` without its diagonal in the singular basis of `s`, and without its leading block there.

    The answer has the inner product 0 with `s`, and the same with every sigma_i u_i v_i^T of it. What lies outside of
    the row or column space of `s` is kept whole; with s = 0 that is all of `t`.

    Args:
        t: float64 (m, n).
        s: float64 (m, n).
        alpha: share of the nuclear norm of `s` that the r leading directions may hold together, 0 to 1; see
            `num_leading`.
        out: where the answer goes, float64 (m, n); `t` itself will do. By default memory of its own.

    Returns:
        float64 (m, n). No matrix of larger_side x larger_side is made.

    >>> s = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    >>> project_off(torch.ones(3, 3, dtype=torch.float64), s, alpha=0.5)
    tensor([[0., 1., 1.],
            [1., 0., 1.],
            [1., 1., 1.]], dtype=torch.float64)
    """
    out = torch.empty_like(t) if out is None else out
    if not s.any():
        return out.copy_(t)
    wide = s if s.shape[0] <= s.shape[1] else s.T
    basis = gram_basis(wide)
    if basis is None:
        return _by_svd(t, s, alpha, out)
    u, sigma = basis
    squares, r = sigma.square(), num_leading(sigma, alpha)
    wide_t = t if wide is s else t.T  # P^T in place of P, where s is tall
    if wide.shape[1] < 2 * wide.shape[0]:  # the fewest products of large matrices: for nearly square ones by rows,
        rows_s, rows_t = u.T @ wide, u.T @ wide_t
        m = u * ((rows_t * rows_s).sum(1) / squares)
        if r:
            m[:, :r] = u[:, :r] @ (rows_t[:r] @ rows_s[:r].T / squares[:r])
        return torch.addmm(t, *((m, rows_s) if wide is s else (rows_s.T, m.T)), alpha=-1, out=out)
    half = (wide_t @ wide.T) @ u  # for wide ones by P = U^T (T S^T) U diag(1/sigma), small but for T S^T and A S
    a = u * ((u * half).sum(0) / squares)
    if r:
        a[:, :r] = u[:, :r] @ (u[:, :r].T @ half[:, :r] / squares[:r])
    a = a @ u.T
    return torch.addmm(t, *((a, s) if wide is s else (s, a.T)), alpha=-1, out=out)


def num_leading(sigma: Tensor, alpha: float) -> int:
    """r, the 0-based index of the first share cumsum(sigma)_r / sum(sigma) above `alpha`: r directions lead.

    So they hold at most `alpha` of the nuclear norm, one less than the smallest number that holds more. No share is
    above alpha = 1: then r is 0 as in the published code, where the argmax of all False is 0.

    >>> num_leading(torch.tensor([4.0, 3.0, 2.0, 1.0]), 0.7), num_leading(torch.tensor([4.0, 3.0, 2.0, 1.0]), 0.71)
    (2, 2)
    >>> num_leading(torch.tensor([4.0, 3.0, 2.0, 1.0]), 1.0)
    0
    """
    if alpha >= 1:
        return 0
    shares = sigma.double().cumsum(0) / sigma.double().sum()
    shares[-1] = 2.0  # above any alpha, however the sum was rounded
    return int((shares > alpha + TIE).nonzero()[0])


def gram_basis(wide: Tensor, min_eigenvalue: float = MIN_EIGENVALUE) -> tuple[Tensor, Tensor] | None:
    """U (m, m) and sigma (m), largest first, of a float64 (m, n) with m <= n, from the eigenvectors of S S^T.

    None where that is too inaccurate: the smallest eigenvalue is below `min_eigenvalue` of the largest, which every
    rank below m is a case of.
    """
    minus_gram = wide.new_zeros(wide.shape[0], wide.shape[0])  # eigh sorts upwards: so the largest comes first
    for start in range(0, wide.shape[0], _BLOCK):  # eigh reads the lower triangle alone
        stop = min(start + _BLOCK, wide.shape[0])
        torch.addmm(
            minus_gram[start:stop, :stop],
            wide[start:stop],
            wide[:stop].T,
            beta=0,
            alpha=-1,
            out=minus_gram[start:stop, :stop],
        )
    trace = -float(minus_gram.diagonal().sum())
    if not 1e-200 < trace < 1e200:  # squares that leave the range of float64
        return None
    minus_eigenvalues, u = torch.linalg.eigh(minus_gram, UPLO="L")
    eigenvalues = -minus_eigenvalues
    if not eigenvalues[-1] > min_eigenvalue * eigenvalues[0]:
        return None
    return u, eigenvalues.sqrt()


def _by_svd(t: Tensor, s: Tensor, alpha: float, out: Tensor) -> Tensor:
    u, sigma, vh = torch.linalg.svd(s, full_matrices=False)
    k = int((sigma > MIN_SIGMA * sigma[0]).sum())
    u, sigma, vh = u[:, :k], sigma[:k], vh[:k]
    half = u.T @ t  # (k, n)
    r = num_leading(sigma, alpha)
    m = u * (half * vh).sum(1)
    if r:
        m[:, :r] = u[:, :r] @ (half[:r] @ vh[:r].T)
    return torch.addmm(t, m, vh, alpha=-1, out=out)
