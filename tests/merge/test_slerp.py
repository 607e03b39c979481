"""Slerp against the formula on paper, its limits, and its shares by weight."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.errors import ConfigError, UsageError
from dimat.merge import fold, make_fold


def pair(seed: int, shape: tuple[int, ...] = (6, 4)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), 3 * torch.randn(shape, generator=generator)


def oracle(v: torch.Tensor, x: torch.Tensor, t: float) -> torch.Tensor:
    v, x = v.double(), x.double()
    angle = math.acos(float((v / v.norm() * (x / x.norm())).sum()))
    return (math.sin((1 - t) * angle) * v + math.sin(t * angle) * x) / math.sin(angle)


def merged(tensors: list[torch.Tensor], weights: list[float] | None = None, **options: float | str) -> torch.Tensor:
    return fold("slerp", [{"w": tensor} for tensor in tensors], weights=weights, **options)["w"]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), t=st.floats(0, 1))
def test_it_is_the_formula(seed: int, t: float) -> None:
    a, b = pair(seed)
    torch.testing.assert_close(merged([a, b], t=t).double(), oracle(a, b, t), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), t=st.floats(0, 1))
def test_unit_vectors_stay_on_the_sphere_and_turn_by_t(seed: int, t: float) -> None:
    a, b = (x.double() / x.double().norm() for x in pair(seed))
    between = merged([a, b], t=t)
    assert float(between.norm()) == pytest.approx(1, abs=1e-12)
    whole, part = math.acos(float((a * b).sum())), math.acos(min(1.0, float((a * between).sum())))
    assert part == pytest.approx(t * whole, abs=1e-6)


def test_three_models_turn_one_after_another() -> None:
    (a, b), (c, _) = pair(1), pair(2)
    half = oracle(a, b, 0.5)
    torch.testing.assert_close(merged([a, b, c]).double(), oracle(half, c, 1 / 3), rtol=1e-5, atol=1e-6)
    unequal = oracle(oracle(a, b, 3 / 4), c, 4 / 8)
    torch.testing.assert_close(merged([a, b, c], [1, 3, 4]).double(), unequal, rtol=1e-5, atol=1e-6)
    fixed = oracle(oracle(a, b, 0.2), c, 0.2)
    torch.testing.assert_close(merged([a, b, c], [1, 3, 4], t=0.2).double(), fixed, rtol=1e-5, atol=1e-6)


def test_a_weight_of_zero_moves_nothing() -> None:
    a, b = pair(3)
    assert torch.equal(merged([a, b], [1, 0]), a)
    torch.testing.assert_close(merged([a, b], [0, 1]), b)
    assert torch.equal(merged([a, b], [0, 0]), a)


def test_parallel_vectors_and_zeros_are_interpolated_linearly() -> None:
    a, b = pair(4)
    for other in (a * 5, -a, a + 1e-3 * b, torch.zeros_like(a)):
        torch.testing.assert_close(merged([a, other], t=0.25), 0.75 * a + 0.25 * other)
    torch.testing.assert_close(merged([torch.zeros_like(a), a], t=0.25), 0.25 * a)
    near = a / a.norm() + 0.04 * (b - (a * b).sum() / (a * a).sum() * a) / b.norm()  # cos = .9992: still turned
    assert not torch.equal(merged([a, near], t=0.5), 0.5 * a + 0.5 * near)
    torch.testing.assert_close(merged([a, near], t=0.5).double(), oracle(a, near, 0.5), rtol=1e-4, atol=1e-6)


def test_large_and_small_numbers_keep_their_angle() -> None:
    a, b = pair(5)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(merged([a * scale, b]).double(), oracle(a * scale, b, 0.5), rtol=1e-5, atol=1e-6)


def test_what_it_refuses() -> None:
    a, b = pair(6)
    with pytest.raises(ConfigError, match=r"t is 1\.5, expected a number at least 0 and at most 1"):
        make_fold("slerp", {"t": 1.5})
    with pytest.raises(UsageError, match="weight -1"):
        merged([a, b], [1, -1])
    method = make_fold("slerp")
    states = [method.absorb(method.init(None), x, None, 1.0) for x in (a, b)]
    with pytest.raises(UsageError, match="order"):
        method.combine(*states)
    assert method.combine(method.init(None), states[1]) is states[1]


def test_zeros_stand_at_a_right_angle_where_that_is_asked_for() -> None:
    a, _ = pair(0)
    nothing = torch.zeros_like(a)
    torch.testing.assert_close(merged([nothing, a], t=0.3), 0.3 * a)
    turned = merged([nothing, a], t=0.3, zeros="orthogonal")
    torch.testing.assert_close(turned, math.sin(0.3 * math.pi / 2) * a)
    torch.testing.assert_close(merged([a, nothing], t=0.3, zeros="orthogonal"), math.cos(0.3 * math.pi / 2) * a)
