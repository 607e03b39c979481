"""Fisher merging against the weighted mean it is, entry by entry, and against the official code's rules."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.errors import ConfigError, SchemaError, UsageError
from dimat.merge import fold, make_fold


def merged(
    models: list[torch.Tensor], information: list[torch.Tensor], weights: list[float] | None = None, **options: float
) -> torch.Tensor:
    stats = [{"fisher": {"w": f}} for f in information]
    return fold("fisher", [{"w": x} for x in models], weights=weights, stats=stats, **options)["w"]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), num_models=st.integers(1, 5))
def test_it_is_a_mean_weighted_by_information(seed: int, num_models: int) -> None:
    rng = np.random.default_rng(seed)
    x, f = rng.normal(size=(num_models, 3, 4)), rng.exponential(size=(num_models, 3, 4)) ** 4
    weights = rng.uniform(0.1, 2, size=num_models)
    expected = np.average(x, axis=0, weights=weights[:, None, None] * np.maximum(f, 1e-6))
    got = merged(list(map(torch.tensor, x)), list(map(torch.tensor, f)), weights.tolist())
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10)


def test_where_nobody_knows_anything_it_is_the_weighted_mean() -> None:
    models = [torch.tensor([0.0, 0.0, 0.0]), torch.tensor([4.0, 4.0, 4.0])]
    information = [torch.tensor([0.0, 1.0, 1e-9]), torch.tensor([0.0, 0.0, 1e-8])]
    got = merged(models, information, [3, 1])
    torch.testing.assert_close(got, torch.tensor([1.0, 4 * 1e-6 / 3, 1.0]), rtol=1e-5, atol=0)
    higher = merged(models, information, [3, 1], floor=0.1)
    torch.testing.assert_close(higher, torch.tensor([1.0, 0.4 / 3.1, 1.0]))


def test_weights_by_norm_are_the_official_normalisation() -> None:
    generator = torch.Generator().manual_seed(0)
    names = ("a", "b")
    models = [{n: torch.randn(5, generator=generator, dtype=torch.float64) for n in names} for _ in range(3)]
    f = [{n: torch.rand(5, generator=generator, dtype=torch.float64) * 10**i for n in names} for i in range(3)]
    norms = [sum(float((state[n] ** 2).sum()) for n in names) ** 0.5 for state in f]
    got = fold("fisher", models, weights=[1 / norm for norm in norms], stats=[{"fisher": state} for state in f])
    for n in names:
        # The official code: coefficients over norms, then sum c F theta / sum c F, F floored as it is.
        diagonals = [(1 / norm) * state[n].clamp_min(1e-6) for norm, state in zip(norms, f, strict=True)]
        expected = sum(d * m[n] for d, m in zip(diagonals, models, strict=True)) / sum(diagonals)
        torch.testing.assert_close(got[n], expected)


def test_statistics_need_not_cover_counters() -> None:
    models = [{"w": torch.tensor([float(i)]), "n": torch.tensor(i)} for i in range(2)]
    stats = [{"fisher": {"w": torch.ones(1)}}] * 2
    got = fold("fisher", models, stats=stats)
    assert (got["w"].item(), got["n"].item()) == (0.5, 1)


def test_half_precision_information_is_widened() -> None:
    information = [torch.tensor([300.0], dtype=torch.float16)] * 2
    models = [torch.tensor([300.0], dtype=torch.float16), torch.tensor([100.0], dtype=torch.float16)]
    assert merged(models, information).item() == 200  # 300 * 300 is beyond float16


def test_what_it_refuses() -> None:
    one = [{"w": torch.ones(2)}]
    with pytest.raises(UsageError, match="model 0 comes without fisher statistics"):
        fold("fisher", one)
    with pytest.raises(SchemaError, match=r"'w' .* fisher of model 0 has not"):
        fold("fisher", one, stats=[{"fisher": {}}])
    with pytest.raises(SchemaError, match=r"'w' is \[2\] in model 0 and \[3\] in fisher of model 0"):
        fold("fisher", one, stats=[{"fisher": {"w": torch.ones(3)}}])
    with pytest.raises(SchemaError, match=r"'w' is torch.float32 in model 0 and torch.int64 in fisher of model 0"):
        fold("fisher", one, stats=[{"fisher": {"w": torch.ones(2, dtype=torch.int64)}}])
    with pytest.raises(UsageError, match=r"hold -1, expected entries of at least 0") as error:
        merged([torch.ones(2)], [torch.tensor([1.0, -1.0])])
    assert "squared gradients" in str(error.value.hint)
    with pytest.raises(ConfigError, match="floor is 0, expected a number above 0"):
        make_fold("fisher", {"floor": 0})
