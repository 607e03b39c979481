"""TIES: trim small changes, elect a sign for every entry, average those who agree."""

from __future__ import annotations

from dataclasses import replace

import torch

from dimat.merge.api import Fold
from dimat.merge.election import election
from dimat.merge.options import choice, number
from dimat.merge.registry import merge_method
from dimat.merge.survey import Found
from dimat.merge.taskvector import keeping_l1, task_vector_fold
from dimat.merge.threshold import MAGNITUDES, magnitudes_of_rank


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
      (`trim="tensor"`). Magnitudes are compared in float32, and entries equal to the smallest one kept are all kept.
      The official code, for its part, keeps one entry more: it takes int((1 - density) * n) as the rank of a
      threshold that is itself kept.
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
    survey = magnitudes_of_rank("model" if whole_model else "tensor", lambda n: (max(1, int(density * n)),))
    fold = task_vector_fold(pool, scale=scale, prepare=keeping_l1(_trim) if rescaled else _trim)
    return replace(fold, survey=survey, elementwise=not rescaled)


def _trim(tau: torch.Tensor, survey: Found) -> tuple[torch.Tensor, float]:
    threshold = survey[MAGNITUDES][0]
    if threshold == 0:
        return tau, 1.0
    if tau.dtype != torch.float32:  # float64: compare what was ranked
        return tau.mul_(tau.to(torch.float32).abs_().ge_(float(threshold))), 1.0
    # Shrinking drops what is at most its threshold; below ours, that is what is less. One pass, no mask.
    return torch.hardshrink(tau, float(torch.nextafter(threshold, torch.zeros(())))), 1.0
