"""Model Stock: the more the models agree in direction, the further the merge leaves their ancestor."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dimat.errors import UsageError
from dimat.merge.api import Fold, State
from dimat.merge.options import flag
from dimat.merge.registry import merge_method

SINGULAR = 1e-6
"""Where 1 + (N - 1) c is below this the task vectors cancel, no finite t exists, and the base is kept."""


@merge_method
def model_stock(*, filter_wise: bool = False) -> Fold:
    """Interpolate between base and mean by the angle between task vectors, tensor by tensor.

        c = mean of cos(tau_i, tau_j) over pairs i < j,   tau_i = theta_i - theta_0
        t = N c / (1 + (N - 1) c)
        theta_0 + t * (mean theta_i - theta_0)

    Fine-tuned models lie around a centre, at right angles to each other as seen from it; t leads to the point
    on the way from the base to their mean that is nearest to that centre. Models of one direction (c = 1) give
    their mean, orthogonal ones (c = 0) the base.

    All pairs follow from two sums, so that models stream: with u_i = tau_i / ||tau_i|| and S = sum u_i,
    c = (||S||^2 - N) / (N (N - 1)). Norms are taken in float64, sums kept in float32 at least.

    Read between the lines:

    - Weights: the papers have none. Here the mean is weighted, each pair counts w_i w_j, and N is the number of models
      that carry the mean, (sum w_i)^2 / sum w_i^2: the t of least expected distance to the centre. Equal
      weights are the paper; a model of weight 0 is not there.
    - More than two models: the paper speaks of one angle; mean pairwise cosine is mergekit's reading, and ours.
    - A model that did not move (tau = 0) has no direction: its cosines count as 0, as in mergekit, and t shrinks.
    - One model gives that model. mergekit refuses fewer than two.
    - Tiny task vectors: mergekit divides by ||tau_i|| ||tau_j|| or 1e-6, whichever is larger, so that tensors whose
      updates have norms below about 1e-3 stay nearer to the base; here angles do not depend on lengths, as published.
    - c < 0 gives t < 0, as published: the merge steps behind the base. Where 1 + (N - 1) c vanishes (task
      vectors that cancel) the base is kept, as in mergekit 0.1.5.
    - filter_wise: one t for each output unit, which is a row of the first axis with all that follows; vectors and
      scalars are one unit. mergekit takes rows of the last axis, the same for matrices and vectors.

    Args:
        filter_wise: one angle for each output unit, instead of one for each tensor.

    Source: Jang, Yun and Han, Model Stock: all we need is just a few fine-tuned models, arXiv 2403.19522.

    >>> from dimat.merge import fold
    >>> models = [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([1.0, 0.0])}]  # cos = .7071, t = .8284
    >>> fold("model_stock", models, base={"w": torch.zeros(2)})["w"]
    tensor([0.8284, 0.4142])
    """
    by_row = flag("filter_wise", filter_wise)

    def absorb(
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        del stats, survey  # angles are all that is asked of a model
        return _add(state, x, base, w, 1, by_row)

    def remove(
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        del stats, survey
        return _add(state, x, base, w, -1, by_row)

    return Fold(init=_init, absorb=absorb, combine=_combine, finish=_finish, remove=remove, needs_base=True)


def _init(base: torch.Tensor | None) -> State:
    del base  # sums begin with the first model, in its dtype
    return {key: torch.zeros((), dtype=torch.float64) for key in ("weight", "squared_weight")}


def _add(state: State, x: torch.Tensor, base: torch.Tensor | None, w: float, sign: int, by_row: bool) -> State:
    assert base is not None, "the engine gives the base to folds that need one"
    if w < 0:
        raise UsageError(f"model_stock got the weight {w}, expected one of at least 0")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rows = x.shape[0] if by_row and x.ndim > 1 and x.numel() else 1
    tau = (wide - base.to(wide.dtype)).reshape(rows, -1)
    norms = torch.linalg.vector_norm(tau, dim=1, dtype=torch.float64)
    moved = norms > 0
    units = (tau / torch.where(moved, norms, 1.0).to(tau.dtype)[:, None]).reshape(x.shape)
    new = {
        "weight": torch.tensor(sign * w, dtype=torch.float64),
        "squared_weight": torch.tensor(sign * w * w, dtype=torch.float64),
        "moved": moved.double() * (sign * w * w),
        "sum": wide * (sign * w),
        "units": units * (sign * w),
    }
    return _combine(state, new)


def _combine(a: State, b: State) -> State:
    if "sum" not in a or "sum" not in b:
        return dict(b if "sum" in b else a)
    return {key: a[key] + b[key] for key in a}


def _finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
    del scalars
    assert base is not None, "the engine gives the base to folds that need one"
    mean = state["sum"] / state["weight"].to(state["sum"].dtype)
    one, squares = state["weight"] ** 2, state["squared_weight"]
    num = one / squares  # N: of equal weights, their number
    if one - squares <= 1e-9 * one:  # a single model: no pair, no angle
        return mean
    moved = state["moved"]
    units = state["units"].reshape(len(moved), -1)
    lengths = torch.linalg.vector_norm(units, dim=1, dtype=torch.float64)
    cosine = (lengths**2 - moved) / (one - squares)
    denominator = 1 + (num - 1) * cosine
    singular = denominator.abs() < SINGULAR
    t = torch.where(singular, 0.0, num * cosine / torch.where(singular, 1.0, denominator)).to(mean.dtype)
    anchor = base.to(mean.dtype)
    return torch.lerp(anchor.reshape(units.shape), mean.reshape(units.shape), t[:, None]).reshape(mean.shape)
