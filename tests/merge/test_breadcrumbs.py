"""Breadcrumbs against plain implementations by sorting, and its edges."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dimat.merge import fold, make_fold

Array = npt.NDArray[np.float64]


def crumbs(row: Array, density: float, gamma: float) -> Array:
    """One row, or one flat tensor, without outliers and small entries; magnitudes differ."""
    keep = max(1, int(density * row.size))
    drop = min(int(gamma * row.size), row.size - keep)
    order = np.argsort(-np.abs(row))
    answer = np.zeros_like(row)
    answer[order[drop : drop + keep]] = row[order[drop : drop + keep]]
    return answer


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("trim", ["row", "tensor"])
@pytest.mark.parametrize("signs", ["none", "ties"])
@pytest.mark.parametrize(("density", "gamma"), [(0.15, 0.006), (0.3, 0.2), (0.9, 0.5), (0.01, 0.0), (1.0, 0.5)])
@pytest.mark.parametrize("normalize", [False, True])
def test_it_is_the_plain_method(
    seed: int, trim: str, signs: str, density: float, gamma: float, normalize: bool
) -> None:
    rng = np.random.default_rng(seed)
    weights = np.array([1.0, 0.5, 2.0])
    models = [{"w": rng.normal(size=(4, 3, 20)), "b": rng.normal(size=50), "s": rng.normal(size=())} for _ in weights]
    merged = fold(
        "breadcrumbs",
        [{name: torch.tensor(x, dtype=torch.float32) for name, x in model.items()} for model in models],
        base={name: torch.zeros(x.shape) for name, x in models[0].items()},
        weights=weights.tolist(),
        density=density, gamma=gamma, scale=0.5, trim=trim, signs=signs, normalize=normalize,
    )  # fmt: skip
    for name, first in models[0].items():
        rows = first.shape[-1] if trim == "row" and first.ndim else first.size
        if density == 1:
            kept = np.stack([m[name].reshape(-1) for m in models])
        else:
            kept = np.stack(
                [np.concatenate([crumbs(r, density, gamma) for r in m[name].reshape(-1, rows)]) for m in models]
            )
        pulls = weights[:, None] * kept
        spoke = np.broadcast_to(weights[:, None], pulls.shape)
        if signs == "ties":
            agree = np.where(pulls.sum(0) >= 0, pulls > 0, pulls < 0)
            pulls, spoke = pulls * agree, spoke * agree
        divisor = np.where(spoke.sum(0) == 0, 1, spoke.sum(0)) if normalize else 1
        expected = (0.5 * pulls.sum(0) / divisor).reshape(first.shape)
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trim", ["row", "tensor"])
def test_a_small_tensor_is_not_emptied(trim: str) -> None:
    """gamma * n < 1 drops no outlier, density * n < 1 keeps one entry."""
    merged = fold(
        "breadcrumbs", [{"w": torch.tensor([1.0, -3.0, 2.0])}], base={"w": torch.zeros(3)}, scale=1, trim=trim
    )
    assert merged["w"].tolist() == [0, -3, 0]


@pytest.mark.parametrize(
    ("trim", "kept", "same"),
    [("row", [0, 2, -2, 2, 0], [1, 1, 1, 1, 1]), ("tensor", [0, 2, 0, 0, 0], [0, 0, 1, 0, 0])],
)
def test_equal_magnitudes(trim: str, kept: list[float], same: list[float]) -> None:
    """Alike in rows; as many as were asked for in tensors, in their order."""
    x, base = torch.tensor([5.0, 2.0, -2.0, 2.0, 1.0]), {"w": torch.zeros(5)}
    merged = fold("breadcrumbs", [{"w": x}], base=base, scale=1, density=0.2, gamma=0.2, trim=trim)
    assert merged["w"].tolist() == kept
    merged = fold("breadcrumbs", [{"w": torch.ones(5)}], base=base, scale=1, gamma=0.4, trim=trim)
    assert merged["w"].tolist() == same


def test_tensors_are_sliced_where_rows_are_not_needed() -> None:
    assert not make_fold("breadcrumbs").elementwise
    assert make_fold("breadcrumbs", {"trim": "tensor"}).elementwise
    assert make_fold("breadcrumbs", {"density": 1}).elementwise
