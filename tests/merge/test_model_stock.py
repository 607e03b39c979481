"""Model Stock from two running sums against all pairs of angles, and what weights and odd task vectors do."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.errors import ConfigError, UsageError
from dimat.merge import fold, make_fold


def tensors(seed: int, num_models: int, shape: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    common = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [
        base + common + torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(num_models)
    ], base


def merged(
    models: list[torch.Tensor], base: torch.Tensor, weights: list[float] | None = None, **options: bool
) -> torch.Tensor:
    return fold("model_stock", [{"w": x} for x in models], base={"w": base}, weights=weights, **options)["w"]


def oracle(models: list[torch.Tensor], base: torch.Tensor) -> torch.Tensor:
    taus = [(x - base).flatten() for x in models]
    cosines = [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in combinations(taus, 2)]
    c, n = sum(cosines) / len(cosines), len(models)
    return base + n * c / (1 + (n - 1) * c) * (sum(models) / n - base)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), num_models=st.integers(2, 6))
def test_it_is_the_paper_with_all_pairs(seed: int, num_models: int) -> None:
    models, base = tensors(seed, num_models, (5, 4))
    torch.testing.assert_close(merged(models, base), oracle(models, base), rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_filters_have_angles_of_their_own(seed: int) -> None:
    models, base = tensors(seed, 3, (3, 2, 2, 2))
    rows = [oracle([x[i] for x in models], base[i]) for i in range(3)]
    torch.testing.assert_close(merged(models, base, filter_wise=True), torch.stack(rows), rtol=1e-6, atol=1e-6)
    vector, start = [x[0].flatten() for x in models], base[0].flatten()
    torch.testing.assert_close(merged(vector, start, filter_wise=True), oracle(vector, start), rtol=1e-6, atol=1e-6)


def test_agreement_decides() -> None:
    base = torch.ones(4)
    x = base + torch.eye(4)
    torch.testing.assert_close(merged([x[0], x[0]], base), x[0])  # c = 1: their mean
    torch.testing.assert_close(merged([x[0], x[1]], base), base)  # c = 0: the base
    # c = .5 by hand: t = 2/3, mean update (1, .5) / sqrt(1, 1).
    sixty = torch.tensor([0.5, 3**0.5 / 2, 0.0, 0.0])
    expected = base + 2 / 3 * (torch.tensor([1.0, 0, 0, 0]) + sixty) / 2
    torch.testing.assert_close(merged([x[0], base + sixty], base), expected)


def test_equal_weights_of_any_size_are_the_paper() -> None:
    models, base = tensors(3, 4, (5,))
    torch.testing.assert_close(merged(models, base, [0.25] * 4), oracle(models, base))
    torch.testing.assert_close(merged(models, base, [0.25, 0.25, 0.25, 0.0]), merged(models[:3], base))


def test_weights_shrink_as_least_expected_distance_asks() -> None:
    """Models = centre + noise: t of the weighted mean is |mu|^2 / (|mu|^2 + var of the weighted mean)."""
    generator = torch.Generator().manual_seed(0)
    n, weights = 200_000, [3.0, 1.0, 1.0, 1.0]
    models = [1.0 + 2.0 * torch.randn(n, generator=generator, dtype=torch.float64) for _ in weights]
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    mean = sum(s * x for s, x in zip(shares, models, strict=True))
    expected = 1 / (1 + 4 * float((shares**2).sum())) * mean
    torch.testing.assert_close(
        merged(models, torch.zeros(n, dtype=torch.float64), weights), expected, rtol=0.02, atol=0
    )


def test_a_model_that_did_not_move_counts_as_orthogonal() -> None:
    base = torch.zeros(3)
    moved = torch.tensor([3.0, 0.0, 0.0])
    # Cosines 1, 0, 0: c = 1/3, t = 3c / (1 + 2c) = .6, mean update 2/3 of it.
    torch.testing.assert_close(merged([moved, base, moved], base), 0.4 * moved)
    torch.testing.assert_close(merged([base, base], base), base)
    assert torch.equal(merged([moved], base), moved)
    torch.testing.assert_close(merged([base], base), base)


def test_updates_that_cancel_keep_the_base() -> None:
    base = torch.tensor([1.0, 2.0])
    tau = torch.tensor([0.5, -0.25])
    torch.testing.assert_close(merged([base + tau, base - tau], base), base)
    assert torch.isfinite(merged([base + tau, base - tau, base], base)).all()


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError, match="ancestor"):
        fold("model_stock", [{"w": torch.ones(1)}])
    with pytest.raises(UsageError, match="weight -1"):
        merged([torch.ones(1)] * 2, torch.zeros(1), [1, -1])
    with pytest.raises(ConfigError, match="filter_wise is 'yes', expected true or false"):
        make_fold("model_stock", {"filter_wise": "yes"})
