"""Krum: trust the models that have the most company."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dimat.merge.api import Fold, State
from dimat.merge.held import holding, num_models, stacked, weights_of
from dimat.merge.options import whole
from dimat.merge.registry import merge_method


@merge_method
def krum(*, num_liars: int = 1, num_kept: int = 1) -> Fold:
    """The weighted mean of the `num_kept` models that lie closest to their nearest others.

        score_i = sum of the n - num_liars - 2 smallest ||x_i - x_j||^2 over j other than i (at least one of them)

    Distances are over all floating-point tensors together, in float64. The models of the smallest scores are kept;
    num_kept=1 is Krum, more is Multi-Krum. Models of weight 0 are not there. Of models of equal scores (with few models
    the closest two share their one distance) those come first that are closer to all; where that is equal, too (copies,
    or two alone), they are kept together, so that the order of arrival does not matter.

    All models are held until it is read out, so streams and ledgers refuse it. Weights are at least 0.

    Args:
        num_liars: how many of the models may be anything; the theorem wants n > 2 num_liars + 2.
        num_kept: how many are averaged, at least 1.

    Source: Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries: Byzantine tolerant gradient
    descent, NeurIPS 2017, arXiv 1703.02757.

    >>> from dimat.merge import fold
    >>> fold("krum", [{"w": torch.tensor([x])} for x in (1.0, 2.0, 4.0, 4.5, 99.0)], num_liars=1)
    {'w': tensor([4.])}
    """
    num_liars, num_kept = whole("num_liars", num_liars), whole("num_kept", num_kept, at_least=1)

    def finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
        del base
        weights = weights_of(state)
        there = [i for i in range(num_models(state)) if weights[i] > 0] or list(range(num_models(state)))
        kept = best_company(there, scalars, num_liars, num_kept)
        shares = weights[kept] if float(weights[kept].sum()) > 0 else torch.ones(len(kept), dtype=torch.float64)
        tensors = stacked(state)[kept]
        shares = (shares / shares.sum()).to(tensors.device, tensors.dtype)
        mean: torch.Tensor = torch.tensordot(shares, tensors, dims=1)
        return mean

    return holding(finish, measure=squared_distances)


def squared_distances(state: State) -> Mapping[str, float]:
    """||x_i - x_j||^2 of one tensor, float64, by `i:j` with i < j."""
    n = num_models(state)
    return {
        f"{i}:{j}": float((state[f"x{i}"].double() - state[f"x{j}"].double()).square().sum())
        for i in range(n)
        for j in range(i + 1, n)
    }


def best_company(models: list[int], distances: Mapping[str, float], num_liars: int, num_kept: int) -> list[int]:
    """Those of `models` with the `num_kept` smallest Krum scores, and who has the same score as the last of them."""
    num_near = max(1, len(models) - num_liars - 2)

    def score(i: int) -> tuple[float, float]:
        apart = sorted(distances[f"{min(i, j)}:{max(i, j)}"] for j in models if j != i)
        return sum(apart[:num_near]), sum(apart)

    scores = {i: score(i) for i in models}
    last = sorted(scores.values())[min(num_kept, len(models)) - 1]
    return [i for i in models if scores[i] <= last]
