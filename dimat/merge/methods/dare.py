"""DARE: drop most of each task vector at random, and make up for it by scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dimat.merge.api import Fold
from dimat.merge.election import election
from dimat.merge.options import choice, flag, number, whole
from dimat.merge.pool import weighted_sum
from dimat.merge.randomness import keep_mask
from dimat.merge.registry import merge_method
from dimat.merge.survey import Found
from dimat.merge.taskvector import Prepare, task_vector_fold


@merge_method
def dare(
    *,
    density: float = 0.5,
    seed: int = 0,
    signs: str = "none",
    scale: float = 1.0,
    normalize: bool | None = None,
    rescale: str = "expected",
) -> Fold:
    """Drop and rescale, then task arithmetic or a TIES election: theta_0 + scale * pool of (m_i * tau_i) / density.

    Each entry of the mask m_i is 1 with probability `density`, else 0, so that the expectation of every thinned task
    vector is the task vector. m_i follows from the seed, the model's digest, the tensor's name and the entry's
    position: the same model is thinned alike wherever and whenever it arrives, in slices or whole, and can be taken
    out again.

    Where sources differ:

    - Rescaling: the paper divides by density (`rescale="expected"`). mergekit scales each tensor so that its L1 norm
      is what it was (`rescale="l1"`; this reads tensors whole, as the norm must be known before the first entry).
    - Combination, `signs="none"`: the sum, as in the paper and mergekit's dare_linear.
      `signs="ties"`: the authors' code goes on with TIES, without trimming, and its disjoint mean; mergekit's
      dare_ties takes the disjoint sum (`normalize=False`). Entries whose sum is zero take the positive side.
    - Density: the paper drops .1 to .99, fusion_bench .5; mergekit keeps all by default.

    Args:
        density: share of entries that are kept in the mean, above 0 and at most 1.
        seed: of the masks.
        signs: `none`, or `ties` for an election of signs.
        scale: of the merged update.
        normalize: divide by the weights of those who took part in an entry (signs=ties) or of all (signs=none); by
            default as the papers do: with signs=ties only.
        rescale: `expected`, `l1` or `none`.

    Source: Yu et al., Language models are super Mario, arXiv 2311.03099.

    >>> from dimat.merge import fold
    >>> model, base = {"w": torch.arange(8.0)}, {"w": torch.zeros(8)}
    >>> thinned = fold("dare", [model], base=base, density=0.25)["w"]
    >>> bool(((thinned == 0) | (thinned == 4 * model["w"])).all())
    True
    """
    density = number("density", density, above=0, at_most=1)
    seed = whole("seed", seed)
    scale = number("scale", scale)
    elect = choice("signs", signs, ("none", "ties")) == "ties"
    divide = elect if normalize is None else flag("normalize", normalize)
    rescale = choice("rescale", rescale, ("expected", "l1", "none"))
    pool = election(normalize=divide) if elect else weighted_sum(normalize=divide)
    if density == 1:
        return task_vector_fold(pool, scale=scale)

    def tailor(name: str, shape: tuple[int, ...]) -> Fold:
        del shape
        fold = task_vector_fold(pool, scale=scale, prepare=_thin(name, density, seed, rescale))
        return replace(fold, digests=True, elementwise=rescale != "l1")

    return replace(tailor("", ()), tailor=tailor)


def _thin(name: str, density: float, seed: int, rescale: str) -> Prepare:
    def prepare(tau: torch.Tensor, survey: Found) -> tuple[torch.Tensor, float]:
        start = int(survey["offset"])
        digest = bytes(survey["digest"].tolist())
        mask = keep_mask(density, seed, digest, name, start, start + tau.numel())
        keep = torch.from_numpy(mask.view(np.uint8))  # torch widens bytes six times as fast as bools
        before = float(tau.abs().sum(dtype=torch.float64)) if rescale == "l1" else 0.0
        tau.mul_(keep.to(device=tau.device, dtype=tau.dtype).view(tau.shape))  # positions count in row-major order
        if rescale == "l1":
            after = float(tau.abs().sum(dtype=torch.float64))
            return tau, before / after if after else 1.0
        return tau, 1 / density if rescale == "expected" else 1.0

    return prepare
