"""A permutation spec that was written by hand, for models that cannot be traced: read, and held against the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dimat.align.groups import PermutationSpec
from dimat.align.units import TensorInfo, permute_axis
from dimat.errors import AlignmentError, UsageError
from dimat.plugins import closest, unknown


def read_spec(path: Path, model: nn.Module) -> PermutationSpec:
    """The spec of the file `path`, which must fit the model's tensors; whether it is right, `verify` tells.

    Raises:
        UsageError: the file cannot be read, is no spec, or names what the model does not have.
    """
    try:
        spec = PermutationSpec.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(one.name for one in path.parent.glob("*.json"))
        near = closest(path.name, there)
        beside = f"Did you mean {near!r}?" if near else f"Beside it: {', '.join(there) or 'no .json file'}."
        raise UsageError(f"spec {path} does not exist. {beside}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"spec {path} cannot be read: {error}") from error
    except AlignmentError as error:
        raise UsageError(f"spec {path}: {error}", hint=error.hint) from error
    state = {name: one for name, one in model.state_dict().items() if isinstance(one, Tensor)}
    _check(path, spec, state)
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    # A spec by hand need not list the tensors; coverage, and who votes in weight matching, hang on them.
    tensors = tuple(TensorInfo(name, tuple(one.shape), name in trained) for name, one in state.items())
    return replace(spec, tensors=tensors)


def _check(path: Path, spec: PermutationSpec, state: dict[str, Tensor]) -> None:
    twice = [name for name, count in Counter(group.name for group in spec.groups).items() if count > 1]
    if twice:
        raise UsageError(f"spec {path} has two groups of the name {twice[0]!r}")
    for info in spec.tensors:
        found = tuple(state[info.name].shape) if info.name in state else None
        if found != tuple(info.shape):
            raise UsageError(f"spec {path} is of a model with {info.name!r} of shape {info.shape}; here it is {found}")
    for group in spec.groups:
        for axis in group.axes:
            if axis.tensor not in state:
                raise UsageError(f"spec {path}, group {group.name!r}: {unknown('tensor', axis.tensor, state)}")
            shape = tuple(state[axis.tensor].shape)
            if not 0 <= axis.dimension < len(shape):
                raise UsageError(
                    f"spec {path}, group {group.name!r}: {axis.tensor!r} of shape {shape} has no dimension "
                    f"{axis.dimension}"
                )
            try:
                permute_axis(torch.empty(shape), axis, group, torch.arange(group.size))
            except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise UsageError(
                    f"spec {path}, group {group.name!r}: dimension {axis.dimension} of {axis.tensor!r} with shape "
                    f"{shape} does not carry {group.size} units in blocks of {axis.block}"
                ) from error
