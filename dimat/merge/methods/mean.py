"""The weighted mean, `sum_i w_i x_i / sum_i w_i`: what a mixing matrix means by merging."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from dimat.merge.api import Fold, State, with_owned
from dimat.merge.options import flag
from dimat.merge.pool import plus, plus_weight
from dimat.merge.registry import merge_method


@merge_method
def mean(*, normalize: bool = True) -> Fold:
    """Weighted mean of the models, tensor by tensor.

    With the weights of one row of a doubly stochastic mixing matrix W this is one step of gossip averaging,
    `x_i <- sum_j W_ij x_j`: the mean over all agents is kept, and disagreement shrinks by at most |lambda_2(W)|.

    Sums are kept in float32 at least; float64 tensors in float64. A weight sum of exactly one divides by one, so
    that merging a single model returns its bits.

    Args:
        normalize: divide by the sum of the weights; false leaves the weighted sum.

    Source: Xiao and Boyd, Fast linear iterations for distributed averaging, Systems & Control Letters 53, 2004; of
    models, Wortsman et al., Model soups, arXiv 2203.05482.

    >>> from dimat.merge import fold
    >>> fold("mean", [{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}], weights=[3, 1])["w"]
    tensor([1.])
    """
    divide = flag("normalize", normalize)

    def finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
        del base, scalars  # a mean asks for the tensors alone
        return state["sum"] / state["weight"].to(state["sum"].dtype) if divide else state["sum"]

    return Fold(init=_init, absorb=_absorb, combine=_combine, finish=finish, remove=_remove, elementwise=True)


def _init(base: torch.Tensor | None) -> State:
    del base  # a mean needs no common ancestor
    return {"weight": torch.zeros((), dtype=torch.float64)}


def _absorb(
    state: State,
    x: torch.Tensor,
    base: torch.Tensor | None,
    w: float,
    stats: Mapping[str, torch.Tensor] | None = None,
    survey: Mapping[str, torch.Tensor] | None = None,
    own: bool = False,
) -> State:
    del base, stats, survey
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return {"weight": plus_weight(state["weight"], w), "sum": plus(state.get("sum"), wide, w, own)}


with_owned(_absorb, partial(_absorb, own=True))


def _remove(
    state: State,
    x: torch.Tensor,
    base: torch.Tensor | None,
    w: float,
    stats: Mapping[str, torch.Tensor] | None = None,
    survey: Mapping[str, torch.Tensor] | None = None,
) -> State:
    return _absorb(state, x, base, -w, stats, survey)


def _combine(a: State, b: State) -> State:
    if "sum" not in a or "sum" not in b:
        return b if "sum" in b else a
    return {"weight": plus_weight(a["weight"], b["weight"]), "sum": a["sum"] + b["sum"]}
