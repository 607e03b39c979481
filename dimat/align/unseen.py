"""What one pass does not show, and how it is kept from giving a wrong group.

Four things go by unseen. Memory that two tensors share, so that what moves one moves the other. Tensors that appear
from nowhere: made before the pass they are constants, made in it by something that torch does not show they may hold
anything. And units that the example does not reach, such as the rows of a table of positions behind the example's
last one: a longer example would read them in order. And branches on how many entries a mask has picked: an expert that
got no tokens of the example was not seen.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dimat.align.atoms import Cause, Dim
from dimat.align.axes import AxisTable
from dimat.align.calls import tensors_in
from dimat.align.taps import Record

_PICKS_BY_VALUE = frozenset(["nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"])
_UNREACHED = Cause("absence from the pass", "")
_PICKING = frozenset(
    ["getitem", "narrow", "select", "chunk", "split", "tensor_split", "split_with_sizes", "unbind", "index_select"]
)
"""Operators that hand on a part of their input and tell nothing of the rest."""


class Weights:
    """A set of tensors by identity, in order."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._by_id = {id(tensor): tensor for tensor in tensors}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._by_id

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._by_id.values())


def living_tensors() -> dict[int, tuple[Tensor, int]]:
    """All tensors that Python holds now, by id, with the number of writes to them so far.

    A tensor that is met later and is among these, unwritten, was made before: it holds nothing of what came since.
    """
    kinds: set[type] = {Tensor}
    news = [Tensor]
    while news:
        news = [kind for known in news for kind in type.__subclasses__(known) if kind not in kinds]
        kinds.update(news)
    with torch._C.DisableTorchFunction():  # what a subclass says about being asked is no concern of this pass
        return {id(value): (value, num_writes(value)) for value in gc.get_objects() if type(value) in kinds}


def num_writes(tensor: Tensor) -> int:
    """How often a tensor was written to in place, through any of its views; inference tensors do not count it."""
    return -1 if tensor.is_inference() else int(tensor._version)


def memory_of(tensor: Tensor) -> int:
    """A name of the memory that a tensor and all its views share."""
    return 0 if tensor.layout != torch.strided else int(tensor.untyped_storage()._cdata)


def overlaps(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of distinct tensors that hold some of their entries in the same memory (neighbours in it, if several)."""
    held = [(*span, i, tensor) for i, tensor in enumerate(tensors) if (span := _span(tensor)) is not None]
    pairs: list[tuple[Tensor, Tensor]] = []
    end, last = ("", 0), None
    for device, start, stop, _, tensor in sorted(held, key=lambda row: row[:4]):
        if last is not None and (device, start) < end:
            pairs.append((last, tensor))
        if last is None or (device, stop) > end:
            end, last = (device, stop), tensor
    return pairs


def _span(tensor: Tensor) -> tuple[str, int, int] | None:
    """Device, first and last byte (exclusive) that a tensor may read; None when it has no memory of its own."""
    if tensor.layout != torch.strided or not tensor.numel() or tensor.is_meta:
        return None
    try:
        start = tensor.data_ptr()
    except RuntimeError:  # a tensor without data
        return None
    reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.device), start, start + (reach + 1) * tensor.element_size()


def sizing(name: str, args: Sequence[Any]) -> list[Tensor]:
    """The tensors whose values decide how many entries an operator's output has."""
    if name == "getitem":
        return [tensor for tensor in tensors_in(args[1:]) if tensor.dtype in (torch.bool, torch.uint8)]
    return tensors_in(args) if name in _PICKS_BY_VALUE or (name == "where" and len(args) == 1) else []


def freeze_unreached(table: AxisTable, members: Mapping[str, tuple[Dim, ...]], records: Sequence[Record]) -> None:
    """Freeze the units of parameters of which the pass only shows that others were picked and they were not.

    Units that stand in tensors made from parameters alone must join two places and be summed over (the inside of a
    product of two); a tensor that depends on the input shows how all its units are used.
    """
    places = Counter(leaf for own in set(members.values()) for dim in own for leaf in set(table.leaves(dim)))
    shown, summed, met = set[int](), set[int](), set[int]()
    symbols = {symbol.dims: symbol.from_input for record in records for symbol in (*record.inputs, *record.outputs)}
    for record in records:
        for symbol in (*record.inputs, *record.outputs):
            symbols[symbol.dims] |= symbol.from_input
    for dims, from_input in symbols.items():
        (shown if from_input else met).update(leaf for dim in dims for leaf in table.leaves(dim))
    for record in records:
        if record.operator not in _PICKING and not any(symbol.from_input for symbol in record.inputs):
            before, after = (
                {leaf for symbol in several for dim in symbol.dims for leaf in table.leaves(dim)}
                for several in (record.inputs, record.outputs)
            )
            summed |= before - after
    for leaf, num in places.items():
        if leaf in met and leaf not in shown and not (num > 1 and leaf in summed):
            table.freeze((leaf,), _UNREACHED)
