"""Coordinate median and trimmed mean: entry by entry, what lies outermost has no say."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dimat.merge.api import Fold, State
from dimat.merge.held import holding, shares_of, stacked
from dimat.merge.options import number
from dimat.merge.registry import merge_method

ROUNDING = 1e-12
"""Of the whole weight: sums of shares are rounded by less."""


@merge_method
def median() -> Fold:
    """The weighted median of every entry: half of the weight lies on either side.

    With the values of one entry in order and their weights w_(1), w_(2), ... of sum W, it is the value at which the
    running sum of the weights passes W / 2; where it meets W / 2 exactly, the mean of that value and the next. Equal
    weights give the usual median. Liars of less than half of the weight cannot move it beyond the honest values.

    All models are held until it is read out, so streams and ledgers refuse it. Weights are at least 0.

    Source: Yin, Chen, Ramchandran and Bartlett, Byzantine-robust distributed learning: towards optimal statistical
    rates, arXiv 1803.01498.

    >>> from dimat.merge import fold
    >>> fold("median", [{"w": torch.tensor([x, -x])} for x in (1.0, 2.0, 99.0)])
    {'w': tensor([ 2., -2.])}
    """

    def finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
        del base, scalars
        values, running = _in_order(state)
        half = running[-1] / 2
        lower = values.gather(0, (running < half - ROUNDING).sum(0, keepdim=True))
        upper = values.gather(0, (running <= half + ROUNDING).sum(0, keepdim=True).clamp_(max=len(values) - 1))
        return torch.where(lower == upper, lower, (lower + upper) / 2)[0]

    return holding(finish)


@merge_method
def trimmed_mean(*, trim: float = 0.25) -> Fold:
    """The weighted mean of every entry without the smallest and the largest values.

    Of the weight W of all models, `trim` * W is taken from the smallest values upwards and as much from the largest
    downwards; a value on the edge keeps the rest of its weight. With n equal weights and trim * n a whole number that
    is the mean of the n - 2 trim n values in the middle. Liars of at most `trim` of the weight cannot move it beyond
    the honest values.

    All models are held until it is read out, so streams and ledgers refuse it. Weights are at least 0.

    Args:
        trim: share of the weight that is dropped at either end, at least 0 (the mean) and below 0.5.

    Source: Yin, Chen, Ramchandran and Bartlett, Byzantine-robust distributed learning: towards optimal statistical
    rates, arXiv 1803.01498; among neighbours (BRIDGE): Yang and Bajwa, arXiv 1908.08098.

    >>> from dimat.merge import fold
    >>> fold("trimmed_mean", [{"w": torch.tensor([x])} for x in (1.0, 2.0, 4.0, 99.0)], trim=0.25)
    {'w': tensor([3.])}
    """
    trim = number("trim", trim, at_least=0)
    if trim >= 0.5:
        raise ValueError(f"trim is {trim}, expected a number below 0.5: both ends together would be everything")

    def finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
        del base, scalars
        values, running = _in_order(state)
        low, high = trim * running[-1], (1 - trim) * running[-1]
        weights = torch.diff(running.clamp(min=low, max=high), dim=0, prepend=low[None])
        weights.masked_fill_(weights < ROUNDING, 0)  # a trace of weight would be a say for a liar of 1e30
        return (values * weights.to(values.dtype)).sum(0) / weights.sum(0).to(values.dtype)

    return holding(finish)


def _in_order(state: State) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of each entry, smallest first, and the running sums of their shares, float64; both (n, *shape)."""
    values, order = stacked(state).sort(dim=0, stable=True)
    return values, shares_of(state).to(order.device)[order].cumsum(0)
