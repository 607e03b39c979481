"""Batch-norm statistics of a merged model, taken anew.

A weighted sum of networks has activations of its own; the averaged running statistics are not theirs, and the output
collapses (Jordan et al. 2022, REPAIR, arXiv 2211.08403). One pass over a few hundred samples puts them right.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dimat.calibrate.probe import at_least_two, call, evaluating, num_samples

logger = logging.getLogger(__name__)


def recalibrate(model: nn.Module, batches: Iterable[Any], max_samples: int = 512) -> int:
    """Replace every running mean and variance by its average over batches, weighted by their numbers of samples.

        running ← Σ_b (n_b / n) · statistic of batch b.

    Only batch norms are in train mode meanwhile (dropout is off). Momentum, `num_batches_tracked` and the train/eval
    mode of every module are put back exactly; a model without running statistics is left alone.

    Args:
        model: changed in its running statistics only.
        batches: a batch is a tensor, a tuple of arguments or a mapping of keyword arguments, samples along dimension 0
            of each. Not more is drawn than needed.
        max_samples: where to stop; the last batch is cut.

    Returns:
        Number of samples used. A batch of one sample, which has no variance, is joined to its neighbour. 0 when there
        was nothing to do, fewer than two samples, or activations that are not finite (logged): the statistics are then
        what they were.

    Raises:
        ValueError: `max_samples` is not positive. What the model raises passes through, with everything put back.

    >>> model = nn.Sequential(nn.BatchNorm1d(1)).eval()
    >>> recalibrate(model, [torch.tensor([[1.0], [3.0]])])
    2
    >>> model[0].running_mean.item(), model[0].running_var.item(), model[0].momentum, model.training
    (2.0, 2.0, 0.1, False)
    """
    probe = at_least_two(batches, max_samples)
    norms = running_norms(model)
    if not norms:
        return 0
    before = [_Before(norm) for norm in norms]
    used, done = 0, False
    weight, hooks = _Weight(), []
    with evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.training = True
                hooks.append(norm.register_forward_pre_hook(weight))
            for batch in probe:
                weight.count = num_samples(batch)
                used += weight.count
                call(model, batch)
            done = used > 0 and all(_finite(norm) for norm in norms)
            if used and not done:
                logger.warning(
                    "batch-norm statistics are left as they were: the activations on the probe are not finite"
                )
        finally:
            for hook in hooks:
                hook.remove()
            for saved in before:
                saved.restore(statistics=not done)
    return used if done else 0


def running_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


class _Weight:
    """Sets a norm's momentum before each of its calls, so that its statistics are the average over all of them.

    running ← (1 − n_b/n) · running + n_b/n · batch, with n_b samples in this call and n in all calls so far: a norm
    that is called twice in a forward pass has seen every sample twice.
    """

    def __init__(self) -> None:
        self.count = 0
        self._seen: dict[int, int] = {}

    def __call__(self, norm: nn.Module, inputs: object) -> None:
        assert isinstance(norm, _BatchNorm)
        self._seen[id(norm)] = self._seen.get(id(norm), 0) + self.count
        norm.momentum = self.count / self._seen[id(norm)]


class _Before:
    """What one batch norm held before."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.momentum = norm.momentum
        self.tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        self.statistics = [None if t is None else t.clone() for t in (norm.running_mean, norm.running_var)]

    def restore(self, *, statistics: bool) -> None:
        self.norm.momentum = self.momentum
        if self.tracked is not None and self.norm.num_batches_tracked is not None:
            self.norm.num_batches_tracked.copy_(self.tracked)
        if statistics:
            for now, then in zip((self.norm.running_mean, self.norm.running_var), self.statistics, strict=True):
                if now is not None and then is not None:
                    now.copy_(then)


def _finite(norm: _BatchNorm) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in (norm.running_mean, norm.running_var) if t is not None)
