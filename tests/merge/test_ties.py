"""TIES against plain implementations over the flattened model, and where its sources differ."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dimat.merge import fold, fold_models, make_fold
from dimat.merge.trial import Models, try_out

Array = npt.NDArray[np.float64]
SHAPES = {"a": (6, 11), "b": (40,), "c": (3,), "d": (2, 3, 5)}
ENDS = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])


def plain_ties(taus: Array, weights: Sequence[float], density: float, trim: str, combine: str) -> Array:
    """The merged update of flattened task vectors, one row per model."""

    def top(row: Array) -> Array:
        k = max(1, int(density * row.size))
        if trim == "tensor":  # exactly k, of equal ones the first
            kept = np.zeros_like(row)
            order = np.argsort(-np.abs(row), kind="stable")[:k]
            kept[order] = row[order]
            return kept
        return np.where(np.abs(row) >= np.sort(np.abs(row))[-k], row, 0)

    if trim == "global":
        trimmed = np.stack([top(tau) for tau in taus])
    else:
        trimmed = np.stack([np.concatenate([top(part) for part in np.split(tau, ENDS[:-1])]) for tau in taus])
    w = np.array(weights)[:, None]
    pulls = w * trimmed
    signs = np.sign(pulls.sum(0))
    signs[signs == 0] = np.sign(signs.sum()) if trim == "global" else 1
    agree = np.where(signs > 0, pulls > 0, pulls < 0)
    heard = (w * agree).sum(0)
    summed: Array = (pulls * agree).sum(0)
    return summed / np.where(heard == 0, 1, heard) if combine == "mean" else summed


def models_of(taus: Array, base: Array) -> list[dict[str, torch.Tensor]]:
    flat = [torch.tensor(base + tau, dtype=torch.float32).split([*np.diff(ENDS, prepend=0).tolist()]) for tau in taus]
    return [{n: x.reshape(SHAPES[n]) for n, x in zip(SHAPES, parts, strict=True)} for parts in flat]


def flattened(model: dict[str, torch.Tensor]) -> Array:
    return np.concatenate([model[name].double().numpy().reshape(-1) for name in SHAPES])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("trim", ["global", "tensor"])
@pytest.mark.parametrize(("density", "combine"), [(0.2, "mean"), (0.5, "sum"), (1.0, "mean"), (0.001, "mean")])
def test_it_is_the_plain_method(seed: int, trim: str, density: float, combine: str) -> None:
    rng = np.random.default_rng(seed)
    taus = rng.normal(size=(4, ENDS[-1])) * 2
    # On a grid magnitudes are equal, and sums vanish; every number and every sum is exact in float32 either way.
    taus = taus.round() if seed % 2 else np.float64((taus * 2**12).round() / 2**12)
    base = rng.integers(-3, 3, size=ENDS[-1]).astype(float)
    weights = [1.0, 1.0, 1.0, 1.0] if seed < 2 else [1.0, 0.5, 2.0, -0.25]
    merged = fold(
        "ties", models_of(taus, base), base=models_of(np.zeros((1, ENDS[-1])), base)[0], weights=weights,
        density=density, scale=0.7, trim=trim, combine=combine,
    )  # fmt: skip
    expected = base + 0.7 * plain_ties(taus, weights, density, trim, combine)
    np.testing.assert_allclose(flattened(merged), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "options"),
    [("ties", {"density": 0.4}), ("breadcrumbs", {"density": 0.3, "gamma": 0.25}), ("ties", {"rescale": "l1"})],
)
@pytest.mark.parametrize("slice_entries", [1, 3, 7])
def test_as_many_are_kept_as_were_asked_for(method: str, options: dict[str, Any], slice_entries: int) -> None:
    """However many are equal, and however the tensor is cut into slices."""
    generator = torch.Generator().manual_seed(slice_entries)
    taus = torch.randint(-2, 3, (3, 40), generator=generator).float()
    zeros = {"w": torch.zeros(40)}
    models = Models(zeros, tuple({"w": tau} for tau in taus), ({},) * 3, (1.0,) * 3)
    trial = try_out(make_fold(method, {"trim": "tensor", **options}), models)
    whole = trial.whole()["w"]
    assert torch.equal(trial.sliced(slice_entries)["w"], whole)
    one = fold(method, [{"w": taus[0]}], base=zeros, trim="tensor", **options)["w"]
    share, outliers = options.get("density", 0.2), int(options.get("gamma", 0) * 40)
    order = np.argsort(-taus[0].abs().numpy(), kind="stable")[outliers : outliers + int(share * 40)]
    assert set(torch.nonzero(one)[:, 0].tolist()) == {place for place in order.tolist() if taus[0, place]}


def test_small_updates_in_bfloat16_are_trimmed_to_their_share() -> None:
    """Most of them are one or two units in the last place: equal."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(10_000, generator=generator).bfloat16()
    model = (base.float() + 1e-3 * torch.randn(10_000, generator=generator)).bfloat16()
    merged = fold("ties", [{"w": model}], base={"w": base}, density=0.2, trim="tensor")["w"]
    changed = int((model != base).sum())
    assert changed > 2000, "the test needs more changes than are kept"
    assert int((merged != base).sum()) == 2000


def test_the_share_is_of_the_whole_model() -> None:
    base = {"large": torch.zeros(10), "small": torch.zeros(10)}
    model = {"large": torch.arange(1.0, 11) * 100, "small": torch.arange(1.0, 11)}
    whole = fold("ties", [model], base=base, density=0.2)
    assert [int((whole[name] != 0).sum()) for name in base] == [4, 0]
    each = fold("ties", [model], base=base, density=0.2, trim="tensor")
    assert [int((each[name] != 0).sum()) for name in base] == [2, 2]


@pytest.mark.parametrize(("third", "sign"), [(1.0, 1.0), (-1.0, -1.0), (0.0, -1.0)])
def test_a_draw_takes_the_side_of_the_majority(third: float, sign: float) -> None:
    """The first entry is a draw; the others elect 1, -1 and `third`, so the model's majority is that of `third`."""
    base = {"w": torch.zeros(2), "v": torch.zeros(2)}
    models = [
        {"w": torch.tensor([5.0, 1.0]), "v": torch.tensor([-1.0, third])},
        {"w": torch.tensor([-5.0, 1.0]), "v": torch.tensor([-1.0, third])},
    ]
    assert fold("ties", models, base=base, density=1)["w"].tolist() == [5 * sign, 1]
    assert fold("ties", models, base=base, density=1, trim="tensor")["w"].tolist() == [5, 1]  # as mergekit


def test_weights_vote() -> None:
    models = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([-1.0])}]
    base = {"w": torch.zeros(1)}
    assert fold("ties", models, base=base, density=1)["w"].item() == 3
    assert fold("ties", models, base=base, density=1, weights=[1, 4])["w"].item() == -1


def test_weights_that_cancel_leave_the_sum() -> None:
    models = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([-1.0])}]
    merged = fold("ties", models, base={"w": torch.zeros(1)}, density=1, weights=[1, -1])
    assert merged["w"].item() == 4


def test_what_rounding_leaves_of_a_removed_model_is_not_divided() -> None:
    made = make_fold("ties", {"density": 1, "trim": "tensor"})
    assert made.remove is not None
    base, x, other = torch.zeros(1), torch.tensor([0.1]), torch.tensor([0.0])
    state = made.init(base)
    for w in (0.1, 0.2, 0.7):
        state = made.absorb(state, x, base, w)
    state = made.absorb(state, other, base, 1.0)
    for w in (0.7, 0.1, 0.2):
        state = made.remove(state, x, base, w)
    assert made.finish(state, base, {}).abs().item() < 1e-6


def test_what_it_asks_for() -> None:
    survey = make_fold("ties").survey
    assert survey is not None
    assert survey.scope == "model"
    assert make_fold("ties").needs_scalars
    each = make_fold("ties", {"trim": "tensor"})
    assert each.survey is not None
    assert each.survey.scope == "tensor"
    assert not each.needs_scalars
    assert make_fold("ties", {"density": 1}).survey is None
    assert each.elementwise


@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
def test_rescaling_keeps_the_l1_norm_of_each_tensor(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    options = {"density": 0.4, "scale": 1.0, "trim": "tensor"}
    plain = fold(method, [model], base=base, **options)
    merged = fold(method, [model], base=base, rescale="l1", **options)
    for name, x in model.items():
        assert float(plain[name].abs().sum()) < float(x.abs().sum())
        torch.testing.assert_close(merged[name].abs().sum(), x.abs().sum())
        torch.testing.assert_close(merged[name], plain[name] * (x.abs().sum() / plain[name].abs().sum()))


def test_a_fold_whose_tensors_differ_may_trim_some_only() -> None:
    """As a recipe with a gradient of densities does: the first tensor is kept whole, and needs no survey."""
    whole, trimmed = (make_fold("ties", {"trim": "tensor", "density": density}) for density in (1.0, 0.5))
    mixed = replace(whole, tailor=lambda name, shape: whole if name == "a" else trimmed)
    model = {"a": torch.arange(4.0), "b": torch.arange(4.0)}
    merged = fold_models(mixed, [model], base={name: torch.zeros(4) for name in model})
    assert merged["a"].tolist() == [0, 1, 2, 3] and merged["b"].tolist() == [0, 0, 2, 3]
