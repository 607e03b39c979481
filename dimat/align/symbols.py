"""What is known of every tensor that a pass meets: its dimensions, and what its use or its memory says of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dimat.align.atoms import Cause, Dim
from dimat.align.context import NOBODY, RuleContext
from dimat.align.operators import Symbolic
from dimat.align.unseen import Weights, living_tensors, memory_of, num_writes, overlaps


class Symbols:
    """The axes of all tensors of one pass, by identity; a tensor is held as long as its identity stands for it.

    Args:
        model: its saved parameters and buffers can move.
        where: the module that runs now, for the report.
    """

    def __init__(self, model: nn.Module, where: Callable[[], str]) -> None:
        self.context = RuleContext(self.of)
        self.weights = Weights((*model.parameters(), *model.buffers()))
        self._where = where
        self._symbols: dict[int, Symbolic] = {}
        self._alive: list[Tensor] = []
        self._num_frozen = 0  # of these, from the first on, everything is frozen
        self._revealing: dict[int, Cause] = {}
        self._used: set[int] = set()
        self._before = living_tensors()
        self._written: set[int] = set()  # memory that was written to with what depends on the input
        self._held = {memory_of(tensor) for tensor in self.weights}
        saved = Weights(value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor))
        for tensor in self.weights:
            new = self.context.table.free if tensor in saved else self.context.table.fixed
            self.place(tensor, tuple(new(length) for length in tensor.shape), from_input=False)
        for tensor in self.weights:
            if not tensor.is_floating_point() and tensor.numel() > 1 and tensor in saved:
                # Were they permuted, neighbours' constants would differ and could not be averaged.
                self.context.cause = Cause("complex numbers" if tensor.is_complex() else "a buffer of integers", "")
                self.context.unsupported(*self[tensor].dims)
        self.context.cause = Cause("memory that tensors share", "")
        for one, other in overlaps(self.weights):
            self.same(one, other)
        self.context.cause = NOBODY

    def __getitem__(self, tensor: Tensor) -> Symbolic:
        """What is known of a tensor, without using it."""
        return self._symbols[id(tensor)]

    def of(self, tensor: Tensor, operator: str = "") -> Symbolic:
        """What is known of a tensor that an operator (or who gets the output) uses."""
        symbol = self._symbols.get(id(tensor))
        if symbol is None:
            symbol = self._stranger(tensor, operator)
        elif symbol.reveals:
            for dim in symbol.reveals:
                self.context.table.freeze(dim, self._revealing[id(tensor)])
            symbol = self.place(tensor, symbol.dims, from_input=symbol.from_input)
        if self._written and not symbol.from_input and memory_of(tensor) in self._written:
            symbol = self.place(tensor, symbol.dims, from_input=True)
        if tensor in self.weights:
            self._used.add(id(tensor))
        return symbol

    def _stranger(self, tensor: Tensor, operator: str) -> Symbolic:
        """A tensor that no operator has made: a constant from before, or else it may hold whatever came so far."""
        known, writes = self._before.get(id(tensor), (None, 0))
        constant = known is not None and num_writes(tensor) == writes
        if not constant:
            # Made by something that torch does not show (a compiled extension, a scripted module): every axis
            # that it may have read so far could be inside, in any order.
            where = operator or "the output"
            self.context.cause = Cause(f"something unseen before {where}", self._where())
            for seen in self._alive[self._num_frozen :]:
                self.context.unsupported(*self._symbols[id(seen)].dims, *self._symbols[id(seen)].reveals)
            self._num_frozen = len(self._alive)
        elif memory_of(tensor) in self._held:
            self.context.cause = Cause("memory that tensors share", self._where())
            for weight in self.weights:
                if memory_of(weight) == memory_of(tensor):
                    self.context.unsupported(*self[weight].dims)
        return self.place(tensor, self._fixed(tensor), from_input=not constant)

    def _fixed(self, tensor: Tensor) -> tuple[Dim, ...]:
        return tuple(self.context.table.fixed(length) for length in tensor.shape)

    def place(
        self, tensor: Tensor, dims: tuple[Dim, ...], *, from_input: bool, reveals: tuple[Dim, ...] = ()
    ) -> Symbolic:
        """Note the dimensions of a tensor that an operator made or wrote to."""
        symbol = Symbolic(dims, tuple(tensor.shape), from_input, reveals)
        self._symbols[id(tensor)] = symbol
        self._alive.append(tensor)
        if reveals:
            self._revealing[id(tensor)] = self.context.cause
        return symbol

    def place_input(self, tensor: Tensor) -> None:
        """An example input: its order is given from outside."""
        self.place(tensor, self._fixed(tensor), from_input=True)

    def written(self, tensor: Tensor, before: Symbolic, dims: tuple[Dim, ...] | None, *, from_input: bool) -> None:
        """An operator wrote to a tensor. Its views keep their dimensions: the new ones must agree with the old."""
        if from_input:
            self._written.add(memory_of(tensor))
        if dims is not None and dims != before.dims and len(dims) == len(before.dims):
            for old, new in zip(before.dims, dims, strict=True):
                if self.context.table.length(old) == self.context.table.length(new):
                    self.context.tie(old, new)

    def freeze_unused(self) -> list[Tensor]:
        """Weights that the pass did not meet: a head that only training uses would still read its units in order."""
        self.context.cause = Cause("absence from the pass", "")
        unused = [tensor for tensor in self.weights if id(tensor) not in self._used]
        for tensor in unused:
            self.context.unsupported(*self[tensor].dims)
        return unused

    def same(self, one: Tensor, other: Tensor) -> None:
        """Two tensors that share memory, or one that takes the place of another: whoever moves one moves both."""
        first, second = self[one].dims, self[other].dims
        if one.shape == other.shape and (one.stride() == other.stride() or other not in self.weights):
            for own, new in zip(first, second, strict=True):
                self.context.tie(own, new)
        else:
            self.context.unsupported(*first, *second)

    def inside(self, value: Any) -> Any:
        """An operator's arguments with a `Symbolic` in place of every tensor."""
        if isinstance(value, Tensor):
            return self.of(value)
        if isinstance(value, slice):
            return slice(*(self.inside(item) for item in (value.start, value.stop, value.step)))
        if isinstance(value, (tuple, list)) and not isinstance(value, (torch.Size, PackedSequence)):
            return (list if isinstance(value, list) else tuple)(self.inside(item) for item in value)
        return {key: self.inside(item) for key, item in value.items()} if isinstance(value, dict) else value
