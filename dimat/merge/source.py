"""A model as the engine sees it: what it holds is known at once, and entries are read when they are asked for.

A state dict in memory and a model on disk answer alike, so that methods never know which one they merge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dimat.errors import SchemaError, UsageError
from dimat.modelfile import ModelFile
from dimat.statedict import StateDict


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Dtype and shape of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_entries(self) -> int:
        """Entries of the tensor."""
        return torch.Size(self.shape).numel()


class Source(Protocol):
    """A model whose tensors are read one by one, whole or in slices."""

    @property
    def label(self) -> str:
        """What messages call the model: its path, or `model 0`."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What it holds, in its own order."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The tensor `name`; with `start` or `stop`, those of its entries in row-major order, as a flat tensor."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """A state dict as a source."""

    label: str
    state: StateDict
    tensors: Mapping[str, TensorInfo] = field(init=False)
    _flat: dict[str, torch.Tensor] = field(init=False, default_factory=dict, repr=False, compare=False)
    """The tensor that is read in slices just now, where flattening it takes a copy."""

    def __post_init__(self) -> None:
        for name, tensor in self.state.items():
            if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
                what = tensor.layout if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise UsageError(f"tensor {name!r} of {self.label} is {what}, expected a dense tensor")
        known = {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in self.state.items()}
        object.__setattr__(self, "tensors", known)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """See `Source.read`; a view of the state dict where possible."""
        tensor = self.state[name].detach()
        if start == 0 and stop is None:
            return tensor
        if tensor.is_contiguous():
            return tensor.view(-1)[start:stop]
        if name not in self._flat:
            self._flat.clear()
            self._flat[name] = tensor.reshape(-1)
        return self._flat[name][start:stop]


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A model on disk as a source."""

    file: ModelFile
    tensors: Mapping[str, TensorInfo] = field(init=False)

    def __post_init__(self) -> None:
        known = {name: TensorInfo(one.dtype, one.shape) for name, one in self.file.tensors.items()}
        object.__setattr__(self, "tensors", known)

    @property
    def label(self) -> str:
        """Its path."""
        return str(self.file.path)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """See `Source.read`; memory of its own."""
        return self.file.read(name, start, stop)


def check_alike(sources: Iterable[Source]) -> None:
    """Raise SchemaError for the first tensor that the models do not have alike.

    Names and shapes are compared, in the first model's order; dtypes may differ, but not integers from floats.
    """
    first, *others = sources
    for other in others:
        for name, info in first.tensors.items():
            there = other.tensors.get(name)
            if there is None:
                raise SchemaError(f"{first.label} has tensor {name!r} {list(info.shape)}, {other.label} has not")
            if there.shape != info.shape:
                raise SchemaError(
                    f"tensor {name!r} is {list(info.shape)} in {first.label} and {list(there.shape)} in {other.label}"
                )
            if there.dtype.is_floating_point != info.dtype.is_floating_point:
                raise SchemaError(
                    f"tensor {name!r} is {info.dtype} in {first.label} and {there.dtype} in {other.label}"
                )
        for name, info in other.tensors.items():
            if name not in first.tensors:
                raise SchemaError(f"{other.label} has tensor {name!r} {list(info.shape)}, {first.label} has not")


def check_statistics(model: Source, stats: Source) -> None:
    """Raise SchemaError for the first floating-point tensor of `model` that `stats` does not cover.

    Counters and indices have no statistics, and need none.
    """
    for name, info in model.tensors.items():
        there = stats.tensors.get(name)
        if not info.dtype.is_floating_point:
            continue
        if there is None:
            raise SchemaError(f"{model.label} has tensor {name!r} {list(info.shape)}, {stats.label} has not")
        if there.shape != info.shape:
            raise SchemaError(
                f"tensor {name!r} is {list(info.shape)} in {model.label} and {list(there.shape)} in {stats.label}"
            )
        if not there.dtype.is_floating_point:
            raise SchemaError(f"tensor {name!r} is {info.dtype} in {model.label} and {there.dtype} in {stats.label}")


def widened(x: torch.Tensor) -> torch.Tensor:
    """`x`, but floats of 8 bits as float32, which holds them all: torch computes with few of them."""
    return x.float() if x.is_floating_point() and x.itemsize == 1 else x


def check_finite(x: torch.Tensor, name: str, label: str) -> None:
    """Raise UsageError when `x` holds NaN or Inf."""
    if x.numel() == 0:
        return
    low, high = torch.aminmax(widened(x))  # one pass without a mask; NaN spreads
    if not (math.isfinite(low) and math.isfinite(high)):
        what = "NaN" if math.isnan(low) or math.isnan(high) else "Inf"
        raise UsageError(
            f"tensor {name!r} of {label} holds {what}; expected finite numbers",
            hint="the training that wrote it has diverged: take an earlier checkpoint",
        )
