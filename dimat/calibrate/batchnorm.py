"""Batch-norm statistics of a merged model, taken anew.

A weighted sum of networks has activations of its own; the averaged running statistics are not theirs, and the output
collapses (Jordan et al. 2022, REPAIR, arXiv 2211.08403). One pass over a few hundred samples puts them right.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
    if max_samples < 1:
        raise ValueError(f"max_samples is {max_samples}; it must be positive")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    modes = [(module, module.training) for module in model.modules()]
    before = [_Before(norm) for norm in norms]
    used, done = 0, False
    weight, hooks = _Weight(), []
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.training = True
            hooks.append(norm.register_forward_pre_hook(weight))
        with torch.no_grad():
            for batch in _at_least_two(batches, max_samples):
                count = _num_samples(batch)
                used += count
                weight.count = count
                _call(model, batch)
        done = used > 0 and all(_finite(norm) for norm in norms)
        if used and not done:
            logger.warning("batch-norm statistics are left as they were: the activations on the probe are not finite")
    finally:
        for hook in hooks:
            hook.remove()
        for saved in before:
            saved.restore(statistics=not done)
        for module, training in modes:
            module.training = training
    return used if done else 0


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


def _at_least_two(batches: Iterable[Any], max_samples: int) -> Iterator[Any]:
    """The batches up to `max_samples` samples; one that would stand alone with a single sample joins a neighbour."""
    held: Any = None
    drawn = 0
    for batch in batches:
        left = max_samples - drawn
        part = _map(lambda tensor, left=left: tensor[:left], batch)
        count = _num_samples(part)
        drawn += count
        if count == 0:
            continue
        if held is not None and min(count, _num_samples(held)) == 1:
            held = _join(held, part)
        else:
            if held is not None:
                yield held
            held = part
        if drawn >= max_samples:
            break
    if held is not None and _num_samples(held) > 1:
        yield held


def _map(change: Any, *batches: Any) -> Any:
    """One batch made from the tensors at each place of `batches`, which are of one form."""
    first = batches[0]
    if isinstance(first, Tensor):
        return change(*batches)
    if isinstance(first, Mapping):
        return {key: _map(change, *(batch[key] for batch in batches)) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_map(change, *parts) for parts in zip(*batches, strict=True))
    return first


def _join(one: Any, other: Any) -> Any:
    return _map(lambda a, b: torch.cat([a, b]), one, other)


def _num_samples(batch: Any) -> int:
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return len(batch)


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, Tensor):
        model(batch)
    else:
        model(*batch)


def _finite(norm: _BatchNorm) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in (norm.running_mean, norm.running_var) if t is not None)
