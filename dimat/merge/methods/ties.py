"""TIES: trim small changes, elect a sign for every entry, average those who agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dimat.merge.api import Fold
from dimat.merge.election import election
from dimat.merge.options import choice, number
from dimat.merge.registry import merge_method
from dimat.merge.survey import OFFSET, Found
from dimat.merge.taskvector import keeping_l1, task_vector_fold
from dimat.merge.threshold import MAGNITUDES, PLACES, magnitudes_of_rank


@merge_method
def ties(
    *, density: float = 0.2, scale: float = 1.0, trim: str = "global", combine: str = "mean", rescale: str = "none"
) -> Fold:
    """Trim, elect sign, merge: theta_0 + scale * disjoint mean of the trimmed task vectors.

        1. trim     keep the int(density * n) entries (at least one) of largest |tau_i|, zero the others
        2. elect    s = sign(sum_i w_i tau_i), entry by entry
        3. merge    sum_i w_i tau_i over the i with sign(w_i tau_i) = s, divided by sum_i w_i over the same i

    Where sources differ:

    - What is ranked: the paper and its code rank the flattened model (`trim="global"`), mergekit each tensor by itself
      (`trim="tensor"`). Magnitudes are compared in float32. Entries equal to the smallest one kept are all kept in the
      flattened model, as by the official code, which for its part keeps one entry more: it takes
      int((1 - density) * n) as the rank of a threshold that is itself kept. Of a tensor exactly as many are kept as
      were asked for, as by mergekit; of equal ones the first, where mergekit keeps any. In bfloat16 many are equal:
      small updates are a few units in the last place.
    - Weights: the paper has none. As in mergekit they multiply before signs are elected, so that a heavy model
      has more votes; equal weights are the paper.
    - Entries whose sum is exactly zero: the paper's code gives them the sign that most entries of the whole
      merged model elected, and the negative side when that is a draw too (`trim="global"`, which is why the merge can
      be read out only when all tensors have been seen); mergekit takes the positive side (`trim="tensor"`).
    - Mean or sum: the paper and mergekit take the disjoint mean; fusion_bench, and mergekit with `normalize: false`,
      the disjoint sum (fusion_bench with scale .3).
    - Density: .2 is the paper's; mergekit has 1, which trims nothing.
    - Rescaling: none, but for mergekit with `rescale: true`, which scales each trimmed tensor so that its L1 norm is
      what it was (`rescale="l1"`; this reads tensors whole).

    Args:
        density: share of entries that are kept, above 0 and at most 1.
        scale: of the merged update.
        trim: `global` or `tensor`.
        combine: `mean` or `sum`.
        rescale: `none` or `l1`.

    Source: Yadav et al., TIES-Merging: resolving interference when merging models, arXiv 2306.01708.

    >>> from dimat.merge import fold
    >>> models = [{"w": torch.tensor([3.0, 0.1, 1.0])}, {"w": torch.tensor([1.0, -4.0, -2.0])}]
    >>> fold("ties", models, base={"w": torch.zeros(3)}, density=0.7)["w"]
    tensor([ 3., -4., -2.])
    """
    density = number("density", density, above=0, at_most=1)
    scale = number("scale", scale)
    whole_model = choice("trim", trim, ("global", "tensor")) == "global"
    pool = election(normalize=choice("combine", combine, ("mean", "sum")) == "mean", majority=whole_model)
    rescaled = choice("rescale", rescale, ("none", "l1")) == "l1"
    if density == 1:
        return task_vector_fold(pool, scale=scale)
    survey = magnitudes_of_rank(
        "model" if whole_model else "tensor", lambda n: (max(1, int(density * n)),), places=not whole_model
    )
    fold = task_vector_fold(pool, scale=scale, prepare=keeping_l1(_trim) if rescaled else _trim)
    return replace(fold, survey=survey, elementwise=not rescaled)


def _trim(tau: torch.Tensor, survey: Found) -> tuple[torch.Tensor, float]:
    threshold = survey[MAGNITUDES][0]
    if threshold == 0:
        return tau, 1.0
    if PLACES not in survey:
        return _at_least(tau, float(threshold)), 1.0
    up_to = int(survey[PLACES][0]) - int(survey[OFFSET]) + 1  # so many of these entries may be equal to the smallest
    if up_to >= tau.numel():
        return _at_least(tau, float(threshold)), 1.0
    above = float(torch.nextafter(threshold, torch.tensor(torch.inf)))
    if up_to <= 0:
        return _at_least(tau, above), 1.0
    flat = tau.reshape(-1)
    return torch.cat([_at_least(flat[:up_to], float(threshold)), _at_least(flat[up_to:], above)]).reshape(
        tau.shape
    ), 1.0


def _at_least(tau: torch.Tensor, threshold: float) -> torch.Tensor:
    """The entries of that magnitude and more; zero for the others. `tau` may be changed."""
    if tau.dtype != torch.float32:  # float64: compare what was ranked
        return tau.mul_(tau.to(torch.float32).abs_().ge_(threshold))
    # Shrinking drops what is at most its threshold; below ours, that is what is less. One pass, no mask.
    return torch.hardshrink(tau, float(np.nextafter(np.float32(threshold), np.float32(0))))
