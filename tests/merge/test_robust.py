"""The robust folds against plain implementations, and what a liar among the models can do to each."""

import math
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dimat.errors import ConfigError, UsageError
from dimat.merge import fold, make_fold
from dimat.merge.methods.clipping import weighted_quantile

Array = npt.NDArray[np.float64]
SHAPES = {"a": (5, 4), "b": (7,), "c": ()}


def models_of(seed: int, n: int) -> tuple[list[dict[str, torch.Tensor]], Array]:
    rng = np.random.default_rng(seed)
    models = [
        {name: torch.tensor(rng.normal(size=shape), dtype=torch.float64) for name, shape in SHAPES.items()}
        for _ in range(n)
    ]
    return models, np.stack([flat(model) for model in models])


def flat(model: dict[str, torch.Tensor]) -> Array:
    return np.concatenate([model[name].numpy().reshape(-1) for name in SHAPES])


ZEROS = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_the_median_is_that_of_numpy(n: int) -> None:
    models, rows = models_of(n, n)
    np.testing.assert_allclose(flat(fold("median", models)), np.median(rows, axis=0), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=6),
    weights=st.lists(st.integers(0, 5), min_size=6, max_size=6),
)
def test_a_weight_counts_as_so_many_copies(values: list[float], weights: list[int]) -> None:
    weights = weights[: len(values)]
    if not sum(weights):
        return
    copies = [x for x, w in zip(values, weights, strict=True) for _ in range(w)]
    models = [{"w": torch.tensor([x], dtype=torch.float64)} for x in values]
    merged = fold("median", models, weights=[float(w) for w in weights])["w"]
    assert float(merged) == pytest.approx(float(np.median(copies)), abs=1e-9)
    share = 1 / len(copies)  # of one copy at either end
    if len(copies) > 2:
        trimmed = fold("trimmed_mean", models, weights=[float(w) for w in weights], trim=share)["w"]
        assert float(trimmed) == pytest.approx(float(np.mean(sorted(copies)[1:-1])), abs=1e-9)


@pytest.mark.parametrize(("n", "trim"), [(4, 0.25), (10, 0.2), (10, 0.4), (5, 0.0)])
def test_the_trimmed_mean_is_that_of_scipy(n: int, trim: float) -> None:
    models, rows = models_of(n, n)
    merged = fold("trimmed_mean", models, trim=trim)
    np.testing.assert_allclose(flat(merged), stats.trim_mean(rows, trim, axis=0), atol=1e-12)


def test_a_value_on_the_edge_keeps_the_rest_of_its_weight() -> None:
    models = [{"w": torch.tensor([x])} for x in (0.0, 3.0, 9.0)]  # of 1/3 each, 1/4 goes at either end: 1/12, 1/3, 1/12
    assert float(fold("trimmed_mean", models, trim=0.25)["w"]) == pytest.approx((0 + 4 * 3 + 9) / 6)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=3, max_size=7), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_a_liar_of_just_the_trimmed_weight_has_no_say(weights: list[int], dtype: torch.dtype) -> None:
    trim = weights[-1] / sum(weights)
    if trim >= 0.5:
        return
    models = [{"w": torch.tensor([float(i)], dtype=dtype)} for i in range(len(weights) - 1)]
    models.append({"w": torch.tensor([1e30], dtype=dtype)})
    merged = float(fold("trimmed_mean", models, weights=[float(w) for w in weights], trim=trim)["w"])
    assert 0 <= merged <= len(weights)


def plain_krum(rows: Array, num_liars: int, num_kept: int) -> Array:
    n = len(rows)
    scores = []
    for i in range(n):
        apart = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append((sum(apart[: max(1, n - num_liars - 2)]), sum(apart)))
    answer: Array = rows[sorted(range(n), key=lambda i: scores[i])[:num_kept]].mean(0)
    return answer


@pytest.mark.parametrize(("n", "num_liars", "num_kept"), [(5, 1, 1), (7, 2, 1), (7, 1, 3), (3, 1, 2)])
def test_krum_is_the_plain_method(n: int, num_liars: int, num_kept: int) -> None:
    models, rows = models_of(n, n)
    merged = fold("krum", models, num_liars=num_liars, num_kept=num_kept)
    np.testing.assert_allclose(flat(merged), plain_krum(rows, num_liars, num_kept), atol=1e-12)


def test_krum_keeps_copies_together_and_leaves_out_weight_zero() -> None:
    models = [{"w": torch.tensor([x])} for x in (1.0, 3.0)]
    assert {float(fold("krum", [models[i] for i in order])["w"]) for order in permutations(range(2))} == {2.0}
    three = [*models, {"w": torch.tensor([3.0])}]
    assert float(fold("krum", three, weights=[1, 1, 1])["w"]) == 3.0
    assert float(fold("krum", three, weights=[1, 1, 0])["w"]) == 2.0


@pytest.mark.parametrize("radius", [0.5, 4.0, None])
def test_clipping_is_the_plain_method(radius: float | None) -> None:
    models, rows = models_of(3, 5)
    centre, weights = models[0], np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    merged = fold("clipping", models, base=centre, weights=weights.tolist(), radius=radius)
    apart = rows - rows[0]
    norms = np.linalg.norm(apart, axis=1)
    if radius is None:  # the smallest distance that holds half of the others' weight
        order = np.argsort(norms[1:])
        reached = np.cumsum(weights[1:][order]) >= 0.5 * weights[1:].sum() - 1e-12
        radius = float(norms[1:][order][np.argmax(reached)])
    factors = np.array([min(1.0, radius / norm) if norm else 1.0 for norm in norms])
    expected = rows[0] + ((weights / weights.sum() * factors)[:, None] * apart).sum(0)
    np.testing.assert_allclose(flat(merged), expected, atol=1e-12)


def test_the_radius_is_a_quantile_of_those_that_differ() -> None:
    distances, weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), torch.ones(5)
    assert [weighted_quantile(distances, weights, q) for q in (0.1, 0.25, 0.5, 0.51, 1.0)] == [1, 1, 2, 3, 4]
    assert weighted_quantile(distances, torch.tensor([1.0, 0, 0, 0, 1]), 0.5) == 4
    assert weighted_quantile(torch.zeros(3), torch.ones(3), 0.5) == 0


@pytest.mark.parametrize(
    ("method", "options"), [("median", {}), ("trimmed_mean", {"trim": 0.3}), ("krum", {}), ("clipping", {})]
)
@pytest.mark.parametrize("lie", [1e6, -1e6, 1e30])
def test_one_liar_of_five_moves_nobody_beyond_the_honest(method: str, options: dict[str, Any], lie: float) -> None:
    """The mean goes anywhere."""
    models, rows = models_of(11, 4)
    liar = {name: torch.full_like(tensor, lie) for name, tensor in models[0].items()}
    base = models[0] if make_fold(method, options).needs_base else None
    merged = flat(fold(method, [*models, liar], base=base, **options))
    if method == "clipping":  # its part is one share of the radius
        assert np.linalg.norm(merged - rows[0]) <= np.linalg.norm(rows - rows[0], axis=1).max() * (1 + 1e-9)
    else:
        assert (merged >= rows.min(0) - 1e-9).all() and (merged <= rows.max(0) + 1e-9).all()
    assert np.abs(flat(fold("mean", [*models, liar]))).max() > 1e5


def test_lists_of_weights_that_cannot_be_are_refused() -> None:
    models = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}]
    for method in ("median", "trimmed_mean", "krum"):
        with pytest.raises(UsageError, match="at least 0"):
            fold(method, models, weights=[1, -1])
    with pytest.raises(ConfigError, match=r"below 0\.5"):
        make_fold("trimmed_mean", {"trim": 0.5})


def test_all_weights_zero_count_alike() -> None:
    models = [{"w": torch.tensor([x])} for x in (1.0, 2.0, 6.0)]
    for method, expected in (("median", 2.0), ("trimmed_mean", None), ("krum", 2.0)):
        merged = float(fold(method, models, weights=[0, 0, 0])["w"])
        assert math.isfinite(merged) and (expected is None or merged == expected)
