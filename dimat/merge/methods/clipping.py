"""Self-centred clipping: nobody moves me further than the others typically are."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dimat.merge.api import Fold, State
from dimat.merge.held import holding, num_models, stacked, weights_of
from dimat.merge.options import number
from dimat.merge.registry import merge_method


@merge_method
def clipping(*, radius: float | None = None, quantile: float = 0.5) -> Fold:
    """The centre plus the weighted mean of the differences to it, each cut to a radius.

        d_i = x_i - centre        centre + sum_i w_i min(1, radius / ||d_i||) d_i / sum_i w_i

    An agent's centre is its own present model; in a batch it is the base. Norms are over all floating-point tensors
    together, in float64. So one neighbour of weight w moves an agent by at most w * radius, whatever it sends, and
    directions stay what they are.

    The radius is given, or it is the weighted quantile of the distances of the models that differ from the centre: the
    smallest distance that at least `quantile` of their weight keeps. With the median, liars of less than half of
    the neighbours' weight have no say in it beyond what honest ones have.

    All models are held until it is read out, so streams and ledgers refuse it. Weights are at least 0.

    Args:
        radius: largest distance that counts in full, above 0; None for the quantile.
        quantile: which one, above 0 and at most 1 (nothing is cut).

    Source: He, Karimireddy and Jaggi, Byzantine-robust decentralized learning via ClippedGossip, arXiv 2202.01545.

    >>> from dimat.merge import fold
    >>> models = [{"w": torch.tensor([x])} for x in (0.0, 1.0, 2.0, 90.0)]
    >>> fold("clipping", models, base={"w": torch.zeros(1)}, quantile=0.5)  # (0 + 1 + 2 + 2) / 4
    {'w': tensor([1.2500])}
    """
    radius = None if radius is None else number("radius", radius, above=0)
    quantile = number("quantile", quantile, above=0, at_most=1)

    def finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
        assert base is not None, "the engine gives the base to folds that need one"
        weights = weights_of(state)
        distances = torch.tensor([scalars[str(i)] for i in range(num_models(state))], dtype=torch.float64).sqrt()
        reach = weighted_quantile(distances, weights, quantile) if radius is None else radius
        factors = torch.where(distances > reach, reach / torch.where(distances > 0, distances, 1.0), 1.0)
        total = weights.sum()
        shares = (weights / total if total > 0 else torch.zeros_like(weights)) * factors
        differences = stacked(state)
        return torch.add(
            base.to(differences.dtype),
            torch.tensordot(shares.to(differences.device, differences.dtype), differences, dims=1),
        )

    return holding(finish, measure=_squared_norms, centred=True)


def weighted_quantile(distances: torch.Tensor, weights: torch.Tensor, quantile: float) -> float:
    """The smallest of the `distances` above 0 that at least `quantile` of their weight does not exceed; 0 without any.

    >>> weighted_quantile(torch.tensor([0.0, 3.0, 1.0]), torch.tensor([1.0, 1.0, 1.0]), 0.5)
    1.0
    """
    counted = (distances > 0) & (weights > 0)
    ordered, order = distances[counted].sort()
    if not len(ordered):
        return 0.0
    running = weights[counted][order].double().cumsum(0)
    reached = running >= quantile * running[-1] * (1 - 1e-12)
    return float(ordered[int(reached.nonzero()[0])])


def _squared_norms(state: State) -> Mapping[str, float]:
    return {str(i): float(state[f"x{i}"].double().square().sum()) for i in range(num_models(state))}
