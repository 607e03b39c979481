"""Where hidden units sit: places in tensors and in activations, and the ways to handle a tensor by its units.

A plain group is a row of units in any order. A structured one is a row of *blocks* (attention heads, the groups of a
grouped convolution), each made up of *parts* (the inside of q and k, the inside of v) whose units have an order of
their own in every block. A `Place` says for one dimension of a tensor which entries carry which block or unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Permutations = Mapping[str, Tensor]
"""Group name -> int64 tensor of shape (size,): unit perms[g][i] goes to position i."""

Loops = tuple[tuple[int, int], ...]
"""(count, stride) pairs: the other entries of a dimension that belong to one unit."""

BLOCKS = -1
"""The `part` of a place that carries whole blocks (in a plain group: the units themselves)."""


class Place(NamedTuple):
    """Which entries of a dimension belong to which unit: u has start + u · block + (every sum of loops of `rest`).

    Attributes:
        dimension: of the tensor.
        block: distance between consecutive units.
        start: where the first unit begins, as in the rows of k in a packed q, k, v. Needs `rest`, be it empty.
        rest: (count, stride) of each loop over the entries of one unit. None, which only a place of blocks (or of a
            plain group) may say, reads the whole dimension as (repeat, size, block): `block` consecutive entries
            belong to one unit (the pixels of a channel that was flattened before a linear layer), and `repeat`
            follows from the length.
        part: `BLOCKS` when the place carries whole blocks, else the number of the part whose units it carries.
        outer: (dimension, stride) of the blocks around the units of a part. In the same dimension, unit (b, u) has
            start + b · stride + u · block + rest; another dimension is read as (repeat, num_blocks, stride).

    The columns of an output projection over (kv head, query, d) carry three things in one dimension. With 2 kv heads,
    3 queries for each and d = 4, for a group with parts (3, 4):

    >>> heads, queries = Place(1, 12), Place(1, block=4, rest=((4, 1),), part=0, outer=(1, 12))
    >>> inside = Place(1, block=1, rest=((3, 4),), part=1, outer=(1, 12))
    >>> positions(queries, 3).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    >>> positions(inside, 4).tolist()
    [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    """

    dimension: int
    block: int = 1
    start: int = 0
    rest: Loops | None = None
    part: int = BLOCKS
    outer: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """One place where a group's units sit in an entry of the state dict; the fields after `tensor` are a `Place`.

    It unpacks as `tensor, dimension = axis`, which is all there is to most axes.
    """

    tensor: str
    dimension: int
    block: int = 1
    start: int = 0
    rest: Loops | None = None
    part: int = BLOCKS
    outer: tuple[int, int] | None = None

    @property
    def place(self) -> Place:
        """The axis without its tensor."""
        return Place(self.dimension, self.block, self.start, self.rest, self.part, self.outer)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.tensor, self.dimension))

    def to_list(self) -> list[Any]:
        """What `Axis(*list)` takes, for JSON."""
        return [self.tensor, *self.place]


class Tap(NamedTuple):
    """Where a group's activations are read: the `argument`-th tensor that enters the `call`-th operator of a pass."""

    call: int
    operator: str
    argument: int
    place: Place


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


STRUCTURES = ("plain", "heads", "blocks")


@dataclass(frozen=True, slots=True)
class Group:
    """Units that move together.

    Units of a structured group come in `num_blocks` blocks of `width` units. A block consists of `parts`; a unit never
    leaves its part, and units of one block stay together. Unit (b, j), the j-th of block b, has number b · width + j.

    Attributes:
        name: the first axis in the order of the state dict, as `tensor:dimension` (with `/block` when it has one).
        size: number of units.
        axes: every axis that carries the units.
        taps: where to read the units' activations.
        structure: `plain` when any permutation of the units is allowed; `heads` when blocks change places, and units
            within each (attention heads, the groups of a grouped convolution or norm); `blocks` when blocks stay.
        parts: sizes of the parts of a block: with attention heads (d_qk, d_v). Empty in a plain group.

    >>> heads = Group("q.weight:0", 8, (), structure="heads", parts=(1, 3))
    >>> perm = heads.joined(torch.tensor([1, 0]), [torch.zeros(2, 1).long(), torch.tensor([[0, 1, 2], [2, 0, 1]])])
    >>> perm.tolist()  # the second head first; the v-units of the first head, now at place 1, in the order 2, 0, 1
    [4, 5, 6, 7, 0, 3, 1, 2]
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    taps: tuple[Tap, ...] = ()
    structure: str = "plain"
    parts: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Units in a block; 1 in a plain group."""
        return sum(self.parts) or 1

    @property
    def num_blocks(self) -> int:
        """Number of blocks; in a plain group every unit is its own."""
        return self.size // self.width

    def num_units(self, part: int) -> int:
        """How many things a place carries: blocks, or the units of one part over all blocks."""
        return self.num_blocks if part == BLOCKS else self.num_blocks * self.parts[part]

    def order_of_blocks(self, perm: Tensor) -> Tensor:
        """The permutation of the blocks, shape (num_blocks,), inside a permutation of the units."""
        return perm if not self.parts else perm.view(self.num_blocks, self.width)[:, 0] // self.width

    def order_within(self, perm: Tensor, part: int) -> Tensor:
        """Shape (num_blocks, parts[part]): for each *new* block, which unit of the old one goes to each position."""
        start = sum(self.parts[:part])
        columns = perm.view(self.num_blocks, self.width)[:, start : start + self.parts[part]]
        return columns % self.width - start

    def joined(self, blocks: Tensor, within: list[Tensor]) -> Tensor:
        """The permutation of the units from `order_of_blocks` and one `order_within` for each part."""
        if not self.parts:
            return blocks
        starts = [sum(self.parts[:part]) for part in range(len(self.parts))]
        inside = torch.cat([order + start for order, start in zip(within, starts, strict=True)], dim=1)
        return (blocks[:, None] * self.width + inside).reshape(-1)

    def torn(self, perm: Tensor) -> str | None:
        """How a permutation of the units breaks the structure, in words; None when the group allows it."""
        if not self.parts:
            return None
        table = perm.view(self.num_blocks, self.width)
        blocks, inside = table // self.width, table % self.width
        part_of = torch.repeat_interleave(torch.arange(len(self.parts)), torch.tensor(self.parts))
        allowed = f"it has {self.num_blocks} blocks with parts of {' + '.join(map(str, self.parts))} units"
        for row, own in enumerate(blocks.tolist()):
            if len(set(own)) > 1:
                several = " and ".join(str(block) for block in sorted(set(own)))
                return f"{allowed}, which stay together, and place {row} would get units of blocks {several}"
            if self.structure == "blocks" and own[0] != row:
                return f"{allowed}, which stay where they are, and place {row} would get block {own[0]}"
        for row, misplaced in enumerate((part_of[inside] != part_of).any(dim=1).tolist()):
            if misplaced:
                return f"{allowed}, and in place {row} units would leave their part"
        return None


def permute_axis(tensor: Tensor, axis: Axis, group: Group, perm: Tensor) -> Tensor:
    """`tensor` with the units along `axis` in the order `perm` of its group; a copy.

    Of a group with parts, an axis of blocks moves blocks as a whole and an axis of a part moves the units inside of
    each. A permutation says which units go inside of each *new* block, so the axes of blocks come first
    (`PermutationSpec.members` lists them so). Axes of parts commute.
    """
    dimension, length = axis.dimension, tensor.shape[axis.dimension]
    if axis.part == BLOCKS:
        order = group.order_of_blocks(perm)
        if length == len(order) and not axis.rest:
            index = order
        elif axis.rest is None:
            index = torch.arange(length).view(-1, len(order), axis.block)[:, order].reshape(-1)
        else:
            places, index = positions(axis.place, len(order)), torch.arange(length)
            index[places] = places[order]
        return tensor.index_select(dimension, index.to(tensor.device))
    within = group.order_within(perm, axis.part)
    assert axis.outer is not None
    where, stride = axis.outer
    places = positions(axis.place, within.shape[1])
    if where == dimension:
        all_places = torch.arange(len(within))[:, None, None] * stride + places  # (blocks, units, rest)
        index = torch.arange(length)
        index[all_places] = torch.gather(all_places, 1, within[:, :, None].expand_as(all_places))
        return tensor.index_select(dimension, index.to(tensor.device))
    out = tensor.clone(memory_format=torch.contiguous_format)  # so that the slabs are views
    slabs = _unflatten(out, where, (-1, len(within), stride)).unbind(where + 1)
    shifted = dimension + (dimension > where)  # `unbind` took one of the three dimensions that `where` became
    for slab, order in zip(slabs, within, strict=True):
        index = torch.arange(length)
        index[places] = places[order]
        slab.copy_(slab.index_select(shifted, index.to(tensor.device)))
    return out


def unit_rows(tensor: Tensor, place: Place, group: Group) -> Tensor:
    """`tensor` as a matrix (group.num_units(place.part), rest), one row for each unit; copies where it must.

    Unit (b, u) of a part has row b · group.parts[part] + u. Entries stand in the same order in every row, one that
    depends on shapes and place alone, so rows of two tensors of one shape can be compared.
    """
    dimension, num = place.dimension, group.num_blocks
    if place.part == BLOCKS:
        if place.rest is None:
            parted = _unflatten(tensor, dimension, (-1, num, place.block))
            return parted.movedim(dimension + 1, 0).reshape(num, -1)
        places = positions(place, num)
        picked = tensor.index_select(dimension, places.reshape(-1).to(tensor.device))
        return _unflatten(picked, dimension, places.shape).movedim(dimension, 0).reshape(num, -1)
    assert place.outer is not None
    where, stride = place.outer
    places = positions(place, group.parts[place.part])
    if where == dimension:
        places = (torch.arange(num)[:, None, None] * stride + places).flatten(0, 1)
        picked = tensor.index_select(dimension, places.reshape(-1).to(tensor.device))
        return _unflatten(picked, dimension, places.shape).movedim(dimension, 0).reshape(len(places), -1)
    picked = _unflatten(tensor.index_select(dimension, places.reshape(-1).to(tensor.device)), dimension, places.shape)
    outer_at = where if where < dimension else where + 1  # `dimension` became two
    parted = _unflatten(picked, outer_at, (-1, num, stride))
    inner_at = dimension if dimension < where else dimension + 2
    return parted.movedim((outer_at + 1, inner_at), (0, 1)).reshape(num * len(places), -1)


def misfit(place: Place, group: Group, shape: Sequence[int]) -> str | None:
    """Why a tensor of this shape cannot carry the units of `group` at `place`, in words; None when it can."""
    part, dimension, num = place.part, place.dimension, group.num_blocks
    if not 0 <= dimension < len(shape):
        return f"there is no dimension {dimension}"
    if not BLOCKS <= part < len(group.parts):
        return f"there is no part {part}: the parts of a block are {list(group.parts)}"
    length = shape[dimension]
    if place.rest is None and part == BLOCKS:
        if place.start:
            return f"a start of {place.start} needs `rest`, be it empty"
        if length % (num * place.block):
            return f"dimension {dimension} has {length} entries, no multiple of {num} x {place.block}"
        return None
    units, end = (num if part == BLOCKS else group.parts[part]), place.start
    if part != BLOCKS:
        if place.outer is None:
            return f"part {part} needs `outer`: where the blocks are"
        where, stride = place.outer
        if where == dimension:
            end += (num - 1) * stride
        elif not 0 <= where < len(shape):
            return f"there is no dimension {where}"
        elif shape[where] % (num * stride):
            return f"dimension {where} has {shape[where]} entries, no multiple of {num} x {stride}"
    end += (units - 1) * place.block + sum((count - 1) * step for count, step in place.rest or ())
    return None if end < length else f"dimension {dimension} has {length} entries, the units go up to entry {end}"


def positions(place: Place, num: int) -> Tensor:
    """Which entries belong to each of `num` units, without the loop over blocks: int64 of shape (num, entries)."""
    found = place.start + torch.arange(num)[:, None] * place.block
    for count, stride in place.rest or ():
        found = (found[:, :, None] + torch.arange(count) * stride).flatten(1)
    return found


def _unflatten(tensor: Tensor, dimension: int, sizes: Sequence[int]) -> Tensor:
    """As `reshape` with one -1 in `sizes`, which an empty batch would leave open."""
    parted: Tensor = tensor.unflatten(dimension, sizes)  # type: ignore[no-untyped-call]
    return parted
