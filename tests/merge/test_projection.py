"""The projection of OPCM against its definition by a full decomposition, and what it must never take away."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dimat.merge import projection
from dimat.merge.projection import gram_basis, num_leading, project_off

SHAPES = [(12, 7), (7, 12), (9, 9), (5, 20), (20, 5), (1, 5), (5, 1), (1, 1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(t: Tensor, s: Tensor, alpha: float) -> Tensor:
    u, sigma, vh = torch.linalg.svd(s, full_matrices=True)
    p = u.T @ t @ vh.T
    r = int((sigma.cumsum(0) / sigma.sum() > alpha).double().argmax())
    p.diagonal().zero_()
    p[:r, :r] = 0
    return u @ p @ vh


def with_condition(kappa: float, n: int, m: int = 20) -> Tensor:
    u, v = torch.linalg.qr(normal(m, m)).Q, torch.linalg.qr(normal(n, m, seed=1)).Q
    return (u * torch.logspace(0, -torch.tensor(kappa).log10().item(), m, dtype=torch.float64)) @ v.T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
def test_it_is_the_full_form(shape: tuple[int, int], alpha: float) -> None:
    t, s = normal(*shape), normal(*shape, seed=1)
    torch.testing.assert_close(project_off(t, s, alpha), by_definition(t, s, alpha), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    rank=st.integers(0, 9),
    alpha=st.floats(0, 1),
    scale=st.sampled_from([1e-120, 1e-5, 1.0, 1e120]),
    seed=st.integers(0, 1000),
)
def test_what_is_left_has_nothing_of_any_direction(
    m: int, n: int, rank: int, alpha: float, scale: float, seed: int
) -> None:
    t, s = normal(m, n, seed=seed), normal(m, rank, seed=seed + 1) @ normal(rank, n, seed=seed + 2)
    left = project_off(t, s * scale, alpha)
    u, sigma, vh = torch.linalg.svd(s, full_matrices=False)
    has = int((sigma > 1e-8 * sigma.max()).sum())
    torch.testing.assert_close(
        (u.T @ left @ vh.T).diagonal()[:has], torch.zeros(has, dtype=torch.float64), rtol=0, atol=1e-7
    )
    assert abs(float((left * s).sum())) <= 1e-9 * max(float(s.norm()), 1.0)
    # Outside of the row and column space of s nothing is lost.
    rows = torch.eye(m, dtype=torch.float64) - u[:, :has] @ u[:, :has].T
    columns = torch.eye(n, dtype=torch.float64) - vh[:has].T @ vh[:has]
    for kept in (lambda x: rows @ x, lambda x: x @ columns):
        torch.testing.assert_close(kept(left), kept(t), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kappa", [3.0, 1e2, 1e4])
@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("n", [20, 30, 70])
def test_the_gram_matrix_gives_what_the_decomposition_gives(
    kappa: float, tall: bool, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    s, t = with_condition(kappa, n), normal(20, n, seed=3)
    assert gram_basis(s) is not None
    s, t = (s.T, t.T) if tall else (s, t)
    found = project_off(t, s, 0.5)
    monkeypatch.setattr(projection, "gram_basis", lambda wide: None)
    torch.testing.assert_close(found, project_off(t, s, 0.5), rtol=0, atol=1e-16 * kappa**2 + 1e-12)


@pytest.mark.parametrize(("kappa", "tolerance"), [(1e6, 1e-14), (1e9, 1e-14), (1e14, 1e-10)])
def test_where_the_gram_matrix_is_too_inaccurate_it_is_not_used(kappa: float, tolerance: float) -> None:
    s, t = with_condition(kappa, 30), normal(20, 30, seed=3)
    assert gram_basis(s) is None
    assert abs(float((project_off(t, s, 0.5) * s).sum())) < tolerance * float(s.norm() * t.norm())


def test_blocks_of_the_gram_matrix_are_all_of_it() -> None:
    s = normal(projection._BLOCK + 30, projection._BLOCK + 130)
    basis = gram_basis(s)
    assert basis is not None
    u, sigma = basis
    torch.testing.assert_close(u * sigma.square() @ u.T, s @ s.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(s), rtol=1e-9, atol=0)


def test_no_square_matrix_of_the_larger_side_is_made() -> None:
    s = normal(2, 200_000)  # its square would take 320 GB
    assert project_off(normal(2, 200_000, seed=1), s, 0.5).shape == s.shape
    flat = torch.ones(2, 200_000, dtype=torch.float64)
    assert project_off(s.T, flat.T, 0.5).shape == (200_000, 2)  # of rank one: by decomposition


def test_nothing_shared_is_nothing_lost() -> None:
    t = normal(4, 5)
    for s in (torch.zeros(4, 5, dtype=torch.float64), torch.full((4, 5), 1e-320, dtype=torch.float64) * 1e-10):
        left = project_off(t, s, 0.5)
        assert torch.equal(left, t)
        assert left.data_ptr() != t.data_ptr()


def test_the_leading_block_is_chosen_by_the_index_from_zero() -> None:
    sigma = torch.tensor([4.0, 3.0, 2.0, 1.0])  # shares .4 .7 .9 1
    expected = {0.0: 0, 0.39: 0, 0.4: 1, 0.5: 1, 0.7: 2, 0.8: 2, 0.9: 3, 0.99: 3, 1 - 1e-14: 3, 1.0: 0}
    assert {alpha: num_leading(sigma, alpha) for alpha in expected} == expected
    assert num_leading(torch.tensor([1.0]), 0.5) == 0


def test_a_share_that_is_alpha_up_to_rounding_is_not_above_it() -> None:
    for num in (10, 30, 70):
        sigma = torch.full((num,), 0.1, dtype=torch.float64)
        for wobble in (0.0, 1e-14, -1e-14):
            assert num_leading(sigma, 0.5 + wobble) == num // 2
