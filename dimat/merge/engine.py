"""Run a fold over whole models, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dimat.errors import SchemaError, UsageError
from dimat.merge.api import Fold, make_fold
from dimat.statedict import StateDict


def fold(
    method: str,
    models: Sequence[StateDict],
    base: StateDict | None = None,
    weights: Sequence[float] | None = None,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Merge `models` by a registered method.

    Args:
        method: the method's name; `dimat methods` lists them.
        models: state dicts of one architecture. Order is the order of absorption.
        base: the models' common ancestor, for methods that need one.
        weights: one weight per model; equal when None.
        options: the method's keyword options.

    Returns:
        A new state dict with the names, shapes and dtypes of the first model.

    Raises:
        UsageError: no models, a number of weights other than the number of models, a missing base.
        SchemaError: tensors that differ in name or shape; the first one is named with both shapes.

    >>> import torch
    >>> fold("mean", [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}])
    {'w': tensor([2., 3.])}
    """
    if not models:
        raise UsageError("fold got no models, expected at least one")
    if weights is not None and len(weights) != len(models):
        raise UsageError(f"fold got {len(weights)} weights for {len(models)} models, expected one each")
    return fold_models(make_fold(method, options), models, weights or [1.0] * len(models), base)


def fold_models(
    method: Fold, models: Sequence[StateDict], weights: Sequence[float], base: StateDict | None = None
) -> dict[str, torch.Tensor]:
    """`fold` with the method made already; integer tensors are the first model's, since counters do not average."""
    if method.needs_base and base is None:
        raise UsageError("this merge method needs the models' common ancestor: give base=")
    first = models[0]
    for position, model in enumerate(models[1:], start=1):
        _check_alike(first, model, position)
    return {name: _fold_tensor(method, name, models, weights, base) for name in first}


def _fold_tensor(
    method: Fold, name: str, models: Sequence[StateDict], weights: Sequence[float], base: StateDict | None
) -> torch.Tensor:
    first = models[0][name]
    if not first.is_floating_point():
        return first.clone()
    anchor = None if base is None else base[name]
    state = method.init(anchor)
    for model, weight in zip(models, weights, strict=True):
        state = method.absorb(state, model[name], anchor, weight)
    return method.finish(state, anchor, {}).to(first.dtype)


def _check_alike(first: StateDict, other: StateDict, position: int) -> None:
    for name in first:
        if name not in other:
            raise SchemaError(f"model 0 has tensor {name!r} {list(first[name].shape)}, model {position} has not")
        if first[name].shape != other[name].shape:
            shapes = f"{list(first[name].shape)} in model 0 and {list(other[name].shape)} in model {position}"
            raise SchemaError(f"tensor {name!r} is {shapes}")
    extra: Iterable[str] = (name for name in other if name not in first)
    for name in extra:
        raise SchemaError(f"model {position} has tensor {name!r} {list(other[name].shape)}, model 0 has not")
