"""What may be permuted: the groups of a model's hidden units, and what a permutation does to its tensors.

The hidden units of a layer have no order of their own. Permute the rows of W_1 and b_1 and, by the same permutation,
the columns of W_2, and y = W_2 f(W_1 x + b_1) is what it was. A *group* is a set of units that must move together
with every tensor axis that carries them; a `PermutationSpec` is all groups of one architecture. It holds no weights.

Some units may not go everywhere: those inside of an attention head stay together, and the heads change places as a
whole. Such groups have blocks and parts (`Group`); their permutations are still one tensor of unit numbers each.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dimat.align import words
from dimat.align.units import BLOCKS, Axis, Frozen, Group, Permutations, TensorInfo, misfit, permute_axis
from dimat.errors import AlignmentError, SchemaError
from dimat.plugins import unknown

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation groups of one architecture; made by `dimat.align.permutation_spec`, or by hand from JSON.

    Attributes:
        groups: the groups, in the order of the state dict.
        tensors: every entry of the state dict. Empty in a spec written by hand: shapes are then not compared.
        frozen: operators that kept axes from moving, with the number of parameters concerned.

    >>> spec = PermutationSpec((Group("a.weight:0", 3, (Axis("a.weight", 0), Axis("b.weight", 1))),))
    >>> state = {"a.weight": torch.eye(3), "b.weight": torch.eye(3)}
    >>> moved = spec.apply(state, {"a.weight:0": torch.tensor([2, 0, 1])})
    >>> moved["a.weight"].argmax(1).tolist()
    [2, 0, 1]
    >>> (moved["b.weight"] @ moved["a.weight"]).equal(torch.eye(3))
    True
    """

    groups: tuple[Group, ...]
    tensors: tuple[TensorInfo, ...] = ()
    frozen: tuple[Frozen, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every entry of the state dict."""
        return {info.name: info.shape for info in self.tensors}

    @cached_property
    def members(self) -> dict[str, tuple[tuple[str, Axis], ...]]:
        """Tensor name -> the (group name, axis) pairs that sit in it; of each group, axes of blocks before parts."""
        found: dict[str, list[tuple[str, Axis]]] = {}
        for group in self.groups:
            for axis in sorted(group.axes, key=lambda axis: axis.part != BLOCKS):
                found.setdefault(axis.tensor, []).append((group.name, axis))
        return {name: tuple(pairs) for name, pairs in found.items()}

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that are equal exactly when the groups are (taps aside), on every machine."""
        plain = [
            [group.name, group.size, group.structure, group.parts, [axis.to_list() for axis in group.axes]]
            for group in self.groups
        ]
        return hashlib.blake2b(json.dumps(plain, separators=(",", ":")).encode(), digest_size=16).hexdigest()

    def coverage(self) -> float:
        """Share of the trained parameters that have at least one movable axis, in [0, 1]."""
        total = sum(math.prod(info.shape) for info in self.tensors if info.trained)
        moved = sum(math.prod(info.shape) for info in self.tensors if info.trained and info.name in self.members)
        return moved / total if total else 0.0

    # ---- the permutations themselves

    def identity(self) -> dict[str, Tensor]:
        """The permutations that move nothing."""
        return {group.name: torch.arange(group.size) for group in self.groups}

    def random(self, seed: int) -> dict[str, Tensor]:
        """Uniformly random permutations of every group, among those that its structure allows."""
        generator = torch.Generator().manual_seed(seed)
        return {group.name: _random(group, generator) for group in self.groups}

    def compose(self, first: Permutations, then: Permutations) -> dict[str, Tensor]:
        """The permutations c with apply(x, c) = apply(apply(x, first), then): c[i] = first[then[i]]."""
        start, end = self._complete(first), self._complete(then)
        return {name: start[name][end[name]] for name in start}

    def invert(self, perms: Permutations) -> dict[str, Tensor]:
        """The permutations that undo `perms`."""
        return {name: torch.argsort(perm) for name, perm in self._complete(perms).items()}

    def moved(self, perms: Permutations) -> float:
        """Share of all units that `perms` moves."""
        complete = self._complete(perms)
        away = sum(int((perm != torch.arange(len(perm))).sum()) for perm in complete.values())
        return away / max(1, sum(group.size for group in self.groups))

    # ---- what they do to tensors

    def apply(self, state_dict: Mapping[str, Tensor], perms: Permutations) -> dict[str, Tensor]:
        """Permute a state dict: new = old.index_select(dimension, perms[g]) on every axis of every group g.

        In a structured group the blocks are put in their order first, then the units inside of each new block.

        Norm parameters and running statistics move with their units. Groups missing in `perms` stay. Tensors that no
        permutation touches are passed on, not copied.

        Raises:
            SchemaError: a tensor is missing, unexpected or of another shape; the message names the first.
            AlignmentError: `perms` names an unknown group or holds something that is not a permutation of its units.
        """
        self.check_state(state_dict)
        return self._permute(state_dict, perms)

    def apply_to_named(self, tensors: Mapping[str, Tensor], perms: Permutations) -> dict[str, Tensor]:
        """Permute what belongs to parameters and has their shapes: momentum, Adam's moments, gradients, masks.

        `tensors` may hold any part of the parameters; entries of one value (a step count) are passed on.

        Raises:
            SchemaError: an entry has neither its parameter's shape nor one value.
            AlignmentError: as in `apply`.
        """
        for name, tensor in tensors.items():
            shape = self.shapes.get(name)
            if shape is not None and tensor.numel() != 1 and tuple(tensor.shape) != shape:
                raise SchemaError(
                    f"what belongs to {name!r} has shape {tuple(tensor.shape)}, the parameter has {shape}"
                )
            if name in self.members and tensor.numel() != 1:
                self._check_places(name, tensor)
        return self._permute(tensors, perms)

    def verify(
        self, model: nn.Module, *example_inputs: Any, tolerance: float = 1e-4, seed: int = 0, **example_kwargs: Any
    ) -> float:
        """Permute every group at random and compare outputs: the relative error ‖Δy‖₂ / ‖y‖₂, which should be rounding.

        Raises:
            AlignmentError: it exceeds `tolerance`; the message names the guilty group. Such a spec must not be used.
        """
        from dimat.align.verify import verify

        return verify(self, model, example_inputs, example_kwargs, tolerance=tolerance, seed=seed)

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Raise SchemaError at the first tensor in which `state_dict` is not of this architecture."""
        shapes = self.shapes
        for name, shape in shapes.items():
            if name not in state_dict:
                raise SchemaError(f"the state dict lacks tensor {name!r} of shape {shape}")
            if tuple(state_dict[name].shape) != shape:
                found = tuple(state_dict[name].shape)
                raise SchemaError(f"tensor {name!r} has shape {found}; the groups were found on one of shape {shape}")
        for name in state_dict:
            if shapes and name not in shapes:
                raise SchemaError(unknown("tensor", name, shapes))
        for name in self.members:
            if name not in state_dict:
                raise SchemaError(f"the groups hold tensor {name!r}, which the state dict lacks")
            self._check_places(name, state_dict[name])

    def _check_places(self, name: str, tensor: Tensor) -> None:
        for group, axis in self.members[name]:
            wrong = misfit(axis.place, self.by_name[group], tensor.shape)
            if wrong is not None:
                raise SchemaError(
                    f"tensor {name!r} of shape {tuple(tensor.shape)} cannot hold group {group!r}: {wrong}"
                )

    def _permute(self, tensors: Mapping[str, Tensor], perms: Permutations) -> dict[str, Tensor]:
        moving = {name: perm for name, perm in self._complete(perms).items() if not _is_identity(perm)}
        out = dict(tensors)
        for name, pairs in self.members.items():
            for group, axis in pairs:
                if group in moving and name in out and out[name].numel() > 1:
                    out[name] = permute_axis(out[name], axis, self.by_name[group], moving[group])
        return out

    def _complete(self, perms: Permutations) -> dict[str, Tensor]:
        """`perms` checked, on the CPU, with the identity where a group is missing."""
        for name in perms:
            if name not in self.by_name:
                raise AlignmentError(unknown("group", name, self.by_name))
        complete = self.identity()
        for name, perm in perms.items():
            found = torch.as_tensor(perm).to("cpu", torch.int64)
            if found.shape != complete[name].shape or not torch.equal(found.sort().values, complete[name]):
                size = self.by_name[name].size
                raise AlignmentError(f"group {name!r} takes a permutation of {size} units, not {_brief(found)}")
            group = self.by_name[name]
            torn = group.torn(found)
            if torn is not None:
                raise AlignmentError(f"group {name!r} does not allow this permutation: {torn}")
            complete[name] = found
        return complete

    # ---- words

    def to_json(self) -> str:
        """The spec as JSON text, for `from_json`."""
        return words.to_json(self)

    @staticmethod
    def from_json(text: str) -> PermutationSpec:
        """The spec that `to_json` wrote; by hand, `{"groups": [{"name", "size", "axes": [[tensor, dimension], ...]}]}`.

        A structured group adds `"structure": "heads"` (or `"blocks"`) and `"parts"`. An axis is listed with the fields
        of `Axis` in their order, as far as they are needed: [tensor, dimension, block, start, rest, part, outer].

        Raises:
            AlignmentError: the text is not a spec, or a group contradicts itself.

        >>> axes = [["qkv", 0, 4, 0, [[4, 1]]], ["qkv", 0, 1, 0, [], 0, [0, 4]]]
        >>> group = {"name": "heads", "size": 8, "structure": "heads", "parts": [4], "axes": axes}
        >>> print(PermutationSpec.from_json(json.dumps({"groups": [group]})))
        1 groups, 8 units
          heads       8 units (2 movable blocks of 4) in 1 tensors, 0 taps
        """
        return PermutationSpec(*words.from_json(text))

    def __str__(self) -> str:
        return words.describe(self)


def _random(group: Group, generator: torch.Generator) -> Tensor:
    blocks = torch.arange(group.num_blocks)
    if group.structure != "blocks":
        blocks = torch.randperm(group.num_blocks, generator=generator)
    within = [
        torch.stack([torch.randperm(part, generator=generator) for _ in range(group.num_blocks)])
        for part in group.parts
    ]
    return group.joined(blocks, within)


def _is_identity(perm: Tensor) -> bool:
    return torch.equal(perm, torch.arange(len(perm)))


def _brief(perm: Tensor) -> str:
    return f"{perm.tolist()}" if perm.numel() <= 8 else f"a tensor of shape {tuple(perm.shape)}"
