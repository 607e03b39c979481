"""Task arithmetic: add what each model has learnt to what all of them knew."""

from __future__ import annotations

from dimat.merge.api import Fold
from dimat.merge.options import flag, number
from dimat.merge.pool import weighted_sum
from dimat.merge.registry import merge_method
from dimat.merge.taskvector import task_vector_fold


@merge_method
def task_arithmetic(*, scale: float = 1.0, normalize: bool = False) -> Fold:
    """Sum of task vectors on the base: theta_0 + scale * sum_i w_i tau_i, with tau_i = theta_i - theta_0.

    Negative weights forget a task. A model can be taken out again: sums are additive.

    Defaults differ between sources: mergekit has lambda 1 and normalize false, as here; the paper tunes one scale for
    all tasks on validation data, and found .3 to .5 good for eight tasks; fusion_bench takes .3.

    Args:
        scale: of the summed update.
        normalize: divide by the sum of the weights, which gives the base plus scale times the mean update.

    Source: Ilharco et al., Editing models with task arithmetic, arXiv 2212.04089.

    >>> import torch
    >>> from dimat.merge import fold
    >>> models = [{"w": torch.tensor([2.0, 1.0])}, {"w": torch.tensor([1.0, 4.0])}]
    >>> fold("task_arithmetic", models, base={"w": torch.tensor([1.0, 1.0])}, scale=0.5)["w"]
    tensor([1.5000, 2.5000])
    """
    scale = number("scale", scale)
    return task_vector_fold(weighted_sum(normalize=flag("normalize", normalize)), scale=scale)
