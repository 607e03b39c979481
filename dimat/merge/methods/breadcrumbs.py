"""Model breadcrumbs: neither the largest changes nor the small ones, but a path between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dimat.merge.api import Fold
from dimat.merge.election import election
from dimat.merge.options import choice, flag, number
from dimat.merge.pool import weighted_sum
from dimat.merge.registry import merge_method
from dimat.merge.survey import OFFSET, Found
from dimat.merge.taskvector import keeping_l1, task_vector_fold
from dimat.merge.threshold import MAGNITUDES, PLACES, magnitudes_of_rank


@merge_method
def breadcrumbs(
    *,
    density: float = 0.15,
    gamma: float = 0.006,
    scale: float = 0.2,
    trim: str = "row",
    signs: str = "none",
    normalize: bool = False,
    rescale: str = "none",
) -> Fold:
    """Mask outliers and small changes, then sum: theta_0 + scale * sum_i w_i (m_i * tau_i).

    In every row of n entries (the last axis), m_i drops the int(gamma * n) entries of largest |tau_i| and keeps the
    int(density * n) that come next, at least one. Outliers give way where both do not fit in. Magnitudes are compared
    in float32. In rows, entries that are equal to the largest or to the smallest one kept are all kept, so that the
    answer does not hang on their order.

    Where sources differ:

    - What is ranked: the paper's code takes rows (`trim="row"`, which reads tensors whole); mergekit takes each tensor
      (`trim="tensor"`). Of a tensor exactly as many are kept as by mergekit; earlier entries count as larger than equal
      ones, where mergekit takes any. In mergekit before 0.1.5 a tensor with gamma * n < 1 lost every entry; here it
      loses no outlier.
    - The paper's code and mergekit keep nothing where density * n < 1; here one entry stays.
    - Signs: the paper sums (`signs="none"`); mergekit's breadcrumbs_ties elects signs first (`signs="ties"`), entries
      whose sum is zero taking the positive side.
    - Defaults: scale .2, density .15 and gamma .006 are the paper's best for many tasks; mergekit has
      scale 1, density 1 (which masks nothing) and gamma .01.

    Args:
        density: share of the entries that are kept, above 0 and at most 1.
        gamma: share of the entries that are dropped as outliers, at least 0 and at most 1.
        scale: of the merged update.
        trim: `row` or `tensor`.
        signs: `none`, or `ties` for an election of signs.
        normalize: divide by the sum of the weights; of those heard in an entry with signs=ties.
        rescale: `none`, or `l1` as mergekit with `rescale: true`: each masked tensor gets the L1 norm that it had (this
            reads tensors whole).

    Source: Davari and Belilovsky, Model breadcrumbs: scaling multi-task model merging with sparse masks,
    arXiv 2312.06795.

    >>> from dimat.merge import fold
    >>> model, base = {"w": torch.tensor([[9.0, 2.0, 3.0, 1.0]])}, {"w": torch.zeros(1, 4)}
    >>> fold("breadcrumbs", [model], base=base, density=0.5, gamma=0.25, scale=1)["w"]
    tensor([[0., 2., 3., 0.]])
    """
    density = number("density", density, above=0, at_most=1)
    gamma = number("gamma", gamma, at_least=0, at_most=1)
    scale = number("scale", scale)
    rows = choice("trim", trim, ("row", "tensor")) == "row"
    elect = choice("signs", signs, ("none", "ties")) == "ties"
    divide = flag("normalize", normalize)
    pool = election(normalize=divide) if elect else weighted_sum(normalize=divide)
    rescaled = choice("rescale", rescale, ("none", "l1")) == "l1"
    if density == 1:
        return task_vector_fold(pool, scale=scale)

    def ranks(n: int) -> tuple[int, int]:
        kept = max(1, int(density * n))
        dropped = min(int(gamma * n), n - kept)
        return dropped + 1, dropped + kept

    def by_row(tau: torch.Tensor, survey: Found) -> tuple[torch.Tensor, float]:
        del survey
        if tau.numel() == 0:
            return tau, 1.0
        magnitudes = tau.to(torch.float32).abs().reshape(-1, tau.shape[-1] if tau.ndim else 1)
        places = [magnitudes.shape[1] - rank for rank in ranks(magnitudes.shape[1])]
        ordered = torch.from_numpy(np.partition(magnitudes.cpu().numpy(), places, axis=1)[:, places]).to(tau.device)
        return _keep_between(tau, magnitudes, ordered[:, 1:], ordered[:, :1])

    def by_tensor(tau: torch.Tensor, survey: Found) -> tuple[torch.Tensor, float]:
        (highest, lowest), (first, last) = survey[MAGNITUDES], (survey[PLACES] - survey[OFFSET]).tolist()
        magnitudes = tau.to(torch.float32).abs().reshape(-1)
        kept = magnitudes.ge(lowest).logical_and_(magnitudes.le(highest))
        # Outliers equal to the largest one kept stand before it; what is equal to the smallest and dropped, behind it.
        before, behind = slice(0, max(first, 0)), slice(max(last + 1, 0), None)
        kept[before].logical_and_(magnitudes[before] != highest)
        kept[behind].logical_and_(magnitudes[behind] != lowest)
        return tau.mul_(kept.reshape(tau.shape)), 1.0

    mask = by_row if rows else by_tensor
    fold = task_vector_fold(pool, scale=scale, prepare=keeping_l1(mask) if rescaled else mask)
    survey = None if rows else magnitudes_of_rank("tensor", ranks, places=True)
    return replace(fold, survey=survey, elementwise=not (rows or rescaled))


def _keep_between(
    tau: torch.Tensor, magnitudes: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor
) -> tuple[torch.Tensor, float]:
    small_enough = magnitudes.le(highest)
    return tau.mul_(magnitudes.ge_(lowest).mul_(small_enough).reshape(tau.shape)), 1.0
