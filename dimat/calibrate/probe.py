"""What a probe is made of, and how a model is run on it: batches in any form, and every mode put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode without gradients; the train/eval mode of every module is put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def at_least_two(batches: Iterable[Any], max_samples: int) -> Iterator[Any]:
    """The batches up to `max_samples` samples; one that would stand alone with a single sample joins a neighbour.

    Not more is drawn than needed; the last batch is cut. Fewer than two samples altogether are none.

    Raises:
        ValueError: `max_samples` is not positive.
    """
    if max_samples < 1:
        raise ValueError(f"max_samples is {max_samples}; it must be positive")
    return _joined(batches, max_samples)


def _joined(batches: Iterable[Any], max_samples: int) -> Iterator[Any]:
    held: Any = None
    drawn = 0
    for batch in batches:
        part = cut(batch, max_samples - drawn)
        count = num_samples(part)
        drawn += count
        if count == 0:
            continue
        if held is not None and min(count, num_samples(held)) == 1:
            held = _map(lambda a, b: torch.cat([a, b]), held, part)
        else:
            if held is not None:
                yield held
            held = part
        if drawn >= max_samples:
            break
    if held is not None and num_samples(held) > 1:
        yield held


def cut(batch: Any, most: int) -> Any:
    """The first `most` samples of a batch.

    >>> cut((torch.arange(3), torch.arange(3)), 1)
    (tensor([0]), tensor([0]))
    """
    return _map(lambda tensor: tensor[:most], batch)


def regrouped(batches: Sequence[Any], most: int) -> list[Any]:
    """The same samples in as few, equally large batches as there can be with at most `most` samples in each.

    >>> [batch.tolist() for batch in regrouped([torch.arange(3), torch.arange(3, 5)], 3)]
    [[0, 1, 2], [3, 4]]
    """
    total = sum(num_samples(batch) for batch in batches)
    size = -(-total // max(1, -(-total // most)))
    whole = _map(lambda *tensors: torch.cat(tensors), *batches)
    return [_map(lambda tensor, start=start: tensor[start : start + size], whole) for start in range(0, total, size)]


def num_samples(batch: Any) -> int:
    """The length of the batch's first tensor.

    >>> num_samples({"x": torch.zeros(3, 2)})
    3
    """
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return len(batch)


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on one batch: a tensor, a tuple or list of arguments, or a mapping of keyword arguments."""
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


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
