"""DARE: what its masks depend on and what they do not, and what is made of the thinned task vectors."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from dimat.merge import fold, make_fold
from dimat.merge.digest import digest_of
from dimat.merge.randomness import BLOCK_ENTRIES, keep_mask
from dimat.merge.source import InMemory

DIGEST = bytes(range(32))


@pytest.mark.parametrize("density", [0.5, 0.37, 0.001, 0.999])
def test_the_share_that_is_kept(density: float) -> None:
    n = 20 * BLOCK_ENTRIES
    kept = keep_mask(density, 0, DIGEST, "w", 0, n)
    assert abs(kept.mean() - density) < 5 * math.sqrt(density * (1 - density) / n)
    pairs = (kept[:-1] & kept[1:]).mean()  # neighbours are independent
    assert abs(pairs - density**2) < 5 * math.sqrt(density**2 / n)


def test_a_share_finer_than_a_byte_is_kept_to_its_last_digit() -> None:
    """Of the entries that eight bits leave open, .37 * 256 - 94 = 72 % are kept: none or all would be seen here."""
    n = 100 * BLOCK_ENTRIES
    kept = keep_mask(0.37, 1, DIGEST, "w", 0, n)
    assert abs(kept.mean() - 0.37) < 5 * math.sqrt(0.37 * 0.63 / n) < 0.0011
    assert min(0.37 - 94 / 256, 95 / 256 - 0.37) > 0.001


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 70), (BLOCK_ENTRIES - 3, BLOCK_ENTRIES + 1), (0, 0), (9, 9)])
def test_a_slice_is_a_slice_of_the_whole(start: int, stop: int) -> None:
    whole = keep_mask(0.3, 7, DIGEST, "w", 0, 2 * BLOCK_ENTRIES)
    assert np.array_equal(keep_mask(0.3, 7, DIGEST, "w", start, stop), whole[start:stop])


def test_each_model_tensor_seed_and_block_has_its_own_mask() -> None:
    masks = [
        keep_mask(0.5, 0, DIGEST, "w", 0, 2 * BLOCK_ENTRIES)[:BLOCK_ENTRIES],
        keep_mask(0.5, 0, DIGEST, "w", 0, 2 * BLOCK_ENTRIES)[BLOCK_ENTRIES:],
        keep_mask(0.5, 1, DIGEST, "w"),
        keep_mask(0.5, 0, DIGEST[::-1], "w"),
        keep_mask(0.5, 0, DIGEST, "v"),
    ]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs((one == other).mean() - 0.5) < 0.02


def test_masks_are_the_same_for_ever() -> None:
    """What was merged must be found again by later versions: these bits were written down once."""
    assert np.packbits(keep_mask(0.3, 7, DIGEST, "layer.weight", 0, 48)).tobytes().hex() == "ee9a0597d346"


def mask_of(model: dict[str, torch.Tensor], name: str, density: float, seed: int = 0) -> torch.Tensor:
    digest = bytes.fromhex(digest_of(InMemory("", model)))
    x = model[name]
    return torch.from_numpy(keep_mask(density, seed, digest, name, 0, x.numel())).reshape(x.shape)


def random_models(seed: int, num: int) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    drawn = [{n: torch.randn(6, 9, generator=g) for n in ("w", "v")} for _ in range(num + 1)]
    return drawn[1:], drawn[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("signs", ["none", "ties"])
@pytest.mark.parametrize("rescale", ["expected", "l1", "none"])
@pytest.mark.parametrize("normalize", [None, False, True])
def test_it_is_the_plain_method(seed: int, signs: str, rescale: str, normalize: bool | None) -> None:
    models, base = random_models(seed, 3)
    weights = [1.0, 0.5, 1.5]
    merged = fold(
        "dare", models, base=base, weights=weights,
        density=0.4, seed=seed, signs=signs, scale=0.6, rescale=rescale, normalize=normalize,
    )  # fmt: skip
    for name in base:
        taus = [model[name].double() - base[name].double() for model in models]
        thin = [tau * mask_of(model, name, 0.4, seed) for tau, model in zip(taus, models, strict=True)]
        factors = {"expected": [2.5] * 3, "none": [1.0] * 3}.get(
            rescale, [float(tau.abs().sum() / t.abs().sum()) for tau, t in zip(taus, thin, strict=True)]
        )
        pulls = torch.stack([w * f * t for w, f, t in zip(weights, factors, thin, strict=True)])
        spoke = torch.tensor(weights, dtype=torch.float64)[:, None, None].expand(pulls.shape)
        divide = signs == "ties" if normalize is None else normalize
        if signs == "ties":
            agree = torch.where(pulls.sum(0) >= 0, pulls > 0, pulls < 0)
            pulls, spoke = pulls * agree, spoke * agree
        divisor = spoke.sum(0).where(spoke.sum(0) > 0, 1.0) if divide else 1.0
        expected = base[name] + 0.6 * pulls.sum(0) / divisor
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-6)


def test_on_average_nothing_is_lost() -> None:
    base = {"w": torch.zeros(200)}
    model = {"w": torch.linspace(-1, 1, 200)}
    runs = torch.stack([fold("dare", [model], base=base, density=0.25, seed=seed)["w"] for seed in range(400)])
    spread = model["w"].abs() * math.sqrt((1 - 0.25) / 0.25 / 400)
    assert bool(((runs.mean(0) - model["w"]).abs() <= 5 * spread).all())
    assert not torch.equal(runs[0], runs[1])


def test_l1_keeps_the_norm_of_each_tensor() -> None:
    models, _ = random_models(0, 1)
    merged = fold("dare", models, base={n: torch.zeros(6, 9) for n in ("w", "v")}, density=0.3, rescale="l1")
    for name in ("w", "v"):
        torch.testing.assert_close(merged[name].abs().sum(), models[0][name].abs().sum())
        assert 0 < int((merged[name] == 0).sum()) < 54


def test_a_transposed_tensor_is_thinned_like_its_copy() -> None:
    w = torch.arange(1.0, 13).reshape(3, 4)
    base = {"w": torch.zeros(4, 3)}
    assert torch.equal(
        fold("dare", [{"w": w.T}], base=base)["w"], fold("dare", [{"w": w.T.contiguous()}], base=base)["w"]
    )


@pytest.mark.parametrize(
    ("options", "digests", "elementwise"),
    [
        ({}, True, True),
        ({"signs": "ties"}, True, True),
        ({"rescale": "l1"}, True, False),
        ({"density": 1}, False, True),
    ],
)
def test_what_it_asks_for(options: dict[str, Any], digests: bool, elementwise: bool) -> None:
    made = make_fold("dare", options)
    assert made.digests is digests
    assert made.of("w", (2,)).elementwise is elementwise
    assert not made.needs_scalars
