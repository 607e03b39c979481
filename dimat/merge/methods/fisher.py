"""Fisher merging: each weight is averaged by how sure each model is of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dimat.errors import UsageError
from dimat.merge.api import Fold, State
from dimat.merge.options import number
from dimat.merge.registry import merge_method

KIND = "fisher"


@merge_method
def fisher(*, floor: float = 1e-6) -> Fold:
    """Mean weighted by diagonal Fisher information: sum_i w_i F_i theta_i / sum_i w_i F_i, entry by entry.

        F_i = mean over data x of  sum_y p(y | x) (d log p(y | x) / d theta_i)^2

    The posterior of each model is taken for a Gaussian of mean theta_i and precision F_i; the result is where their
    product, to the powers w_i, is highest. Each model brings F_i as statistics of the kind `fisher`, shaped as its own
    tensors: entries of at least 0.

    Where sources differ:

    - Floor: every F_i is taken for at least `floor`, so where no model knows anything the result is the plain
      weighted mean. The official code does so with favor_target_model=False; by default it raises the F of the first
      model alone, whose value then wins where nobody knows anything, which would make the order matter. MergeLM
      and fusion_bench add 1e-6 instead.
    - Norm: the official code also divides each w_i by the L2 norm of F_i over the whole model. That is a weight per
      model, and so given as one: weights=[w_i / ||F_i||]. The floor is compared with F_i as it is, there as here.

    Sums are kept in float32 at least. A model can be taken out again.

    Args:
        floor: smallest Fisher information of an entry, above 0.

    Source: Matena and Raffel, Merging models with Fisher-weighted averaging, arXiv 2111.09832.

    >>> from dimat.merge import fold
    >>> models = [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([4.0, 4.0])}]
    >>> sure = [{"fisher": {"w": torch.tensor([3.0, 0.0])}}, {"fisher": {"w": torch.tensor([1.0, 0.0])}}]
    >>> fold("fisher", models, stats=sure)["w"]
    tensor([1., 2.])
    """
    least = number("floor", floor, above=0)

    def absorb(
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        del base, survey
        assert stats is not None, "the engine gives statistics to folds that ask for them"
        information = stats[KIND]
        if information.numel() and bool(information.min() < 0):
            raise UsageError(
                f"fisher statistics hold {float(information.min()):.3g}, expected entries of at least 0",
                hint="they are means of squared gradients, not gradients",
            )
        wide = torch.promote_types(torch.promote_types(x.dtype, information.dtype), torch.float32)
        precision = information.to(wide).clamp_min(least) * w
        return _combine(state, {"precision": precision, "sum": precision * x})

    def remove(
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        return absorb(state, x, base, -w, stats, survey)

    return Fold(
        init=_init, absorb=absorb, combine=_combine, finish=_finish, remove=remove, stats=(KIND,), elementwise=True
    )


def _init(base: torch.Tensor | None) -> State:
    del base  # precisions are the models' own
    return {}


def _combine(a: State, b: State) -> State:
    if not a or not b:
        return b or a
    return {key: a[key] + b[key] for key in a}


def _finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
    del base, scalars
    return state["sum"] / state["precision"]
