"""Where hidden units sit: tensor axes, activations, and the two ways to handle a tensor by its units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Permutations = Mapping[str, Tensor]
"""Group name -> int64 tensor of shape (size,): unit perms[g][i] goes to position i."""


class Axis(NamedTuple):
    """One place where a group's units sit: a dimension of a tensor, read as (repeat, size, block).

    `block` consecutive entries belong to one unit (the pixels of a channel that was flattened before a linear layer);
    `repeat` follows from the length of the dimension.
    """

    tensor: str
    dimension: int
    block: int = 1


class Tap(NamedTuple):
    """Where a group's activations are read: the `argument`-th tensor that enters the `call`-th operator of a pass."""

    call: int
    operator: str
    argument: int
    dimension: int
    block: int = 1


class TensorInfo(NamedTuple):
    """One entry of the state dict: its name and shape, and whether it is trained (else it is a buffer)."""

    name: str
    shape: tuple[int, ...]
    trained: bool = True


class Frozen(NamedTuple):
    """An operator that pinned axes because nobody knows what it does to their order, and what that costs."""

    operator: str
    module: str
    num_parameters: int


@dataclass(frozen=True, slots=True)
class Group:
    """Units that move together.

    Attributes:
        name: the first axis in the order of the state dict, as `tensor:dimension` (with `/block` when it has one).
        size: number of units.
        axes: every axis that carries the units.
        taps: where to read the units' activations.
        structure: `plain` when any permutation of the units is allowed.
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    taps: tuple[Tap, ...] = ()
    structure: str = "plain"


def permute_axis(tensor: Tensor, axis: Axis, perm: Tensor) -> Tensor:
    """`tensor` with the units along `axis` in the order `perm`, each unit keeping its block together."""
    index = perm
    length = tensor.shape[axis.dimension]
    if length != len(perm):
        index = torch.arange(length).view(-1, len(perm), axis.block)[:, perm].reshape(-1)
    return tensor.index_select(axis.dimension, index.to(tensor.device))


def unit_rows(tensor: Tensor, dimension: int, size: int, block: int) -> Tensor:
    """`tensor` as a matrix of shape (size, rest): one row for each unit along `dimension`; copies where it must."""
    shape = tensor.shape
    parted = tensor.reshape(*shape[:dimension], -1, size, block, *shape[dimension + 1 :])
    return parted.movedim(dimension + 1, 0).reshape(size, -1)
