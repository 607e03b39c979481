"""Which axes say what about a group: the summands of its similarity, found once from the spec.

With all groups but one held, ⟨A, π(B)⟩ is a sum over the axes that carry the group's units, and each of these *terms*
is linear in the group's permutation, provided that its tensor holds the group once. Segments of one dimension (the
gates of an LSTM, one under the other) count as once each; so does an axis of units inside of blocks together with that
of the blocks. A tensor with the group in two dimensions (a recurrent weight), or with two parts of one block (columns
of an output projection over kv head x query x d) is *crossed*: a product of the permutation with itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dimat.align.groups import PermutationSpec
from dimat.align.units import BLOCKS, Axis, Group, positions

Pair = tuple[str, Axis]
"""A group's name and one of its axes."""

Covered = tuple[tuple[int, Tensor], ...]
"""(dimension, entries) for which axes of parts speak, so that the axis of the blocks around them must not."""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """What one axis of one tensor says about the units it carries.

    Attributes:
        axis: the axis.
        beside: the (group, axis) pairs whose permutation changes what it says.
        covered: what is left to axes of parts.
        by_index: whether everything beside moves whole entries of a dimension; not so when units inside of blocks have
            an order of their own in every block of *another* dimension.
    """

    axis: Axis
    beside: tuple[Pair, ...]
    covered: Covered
    by_index: bool


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that speaks about one group: linear terms, and by crossed tensor the group's axes in it."""

    terms: tuple[Term, ...]
    crossed: dict[str, tuple[Axis, ...]]


def find_evidence(
    spec: PermutationSpec, members: Mapping[str, tuple[Pair, ...]], shapes: Mapping[str, tuple[int, ...]], name: str
) -> Evidence:
    """The terms of the group `name` among the tensors `members`, of shapes `shapes`."""
    group, terms, crossed = spec.by_name[name], list[Term](), dict[str, tuple[Axis, ...]]()
    for tensor in dict.fromkeys(axis.tensor for axis in group.axes if axis.tensor in members):
        shape, pairs = shapes[tensor], members[tensor]
        reach = {axis: _entries(axis, spec.by_name[owner], shape) for owner, axis in pairs}
        own = [axis for owner, axis in pairs if owner == name]
        if any(_meet(one, two, reach) for one in own for two in own if one != two and not _around(one, two, reach)):
            crossed[tensor] = tuple(own)
            continue
        for axis in own:
            covered = _covered(axis, own, reach, shape)
            if covered is None:
                continue
            beside = tuple((owner, other) for owner, other in pairs if owner != name and _meet(axis, other, reach))
            by_index = all(other.outer is None or other.outer[0] == other.dimension for _, other in beside)
            terms.append(Term(axis, beside, covered, by_index))
    return Evidence(tuple(terms), crossed)


def _entries(axis: Axis, group: Group, shape: tuple[int, ...]) -> frozenset[int]:
    """The entries of the axis's dimension that belong to the group's units."""
    if axis.part == BLOCKS:
        if axis.rest is None:
            return frozenset(range(shape[axis.dimension]))
        return frozenset(positions(axis.place, group.num_blocks).reshape(-1).tolist())
    assert axis.outer is not None
    found = positions(axis.place, group.parts[axis.part]).reshape(-1)
    where, stride = axis.outer
    if where == axis.dimension:
        found = (torch.arange(group.num_blocks)[:, None] * stride + found).reshape(-1)
    return frozenset(found.tolist())


def _meet(one: Axis, two: Axis, reach: Mapping[Axis, frozenset[int]]) -> bool:
    """Whether permuting one axis changes what stands in the rows of the other: not for segments of one dimension."""
    return one.dimension != two.dimension or not reach[one].isdisjoint(reach[two])


def _around(one: Axis, two: Axis, reach: Mapping[Axis, frozenset[int]]) -> bool:
    """Whether one of two axes of a group is of the blocks in which the other's units sit."""
    part, blocks = (two, one) if one.part == BLOCKS else (one, two)
    if part.part == BLOCKS or blocks.part != BLOCKS or part.outer is None or part.outer[0] != blocks.dimension:
        return False
    return part.dimension != blocks.dimension or reach[part] <= reach[blocks]


def _covered(
    axis: Axis, own: list[Axis], reach: Mapping[Axis, frozenset[int]], shape: tuple[int, ...]
) -> Covered | None:
    """What the axes of parts inside of an axis of blocks speak for; None when that leaves nothing to say."""
    if axis.part != BLOCKS:
        return ()
    inside = [other for other in own if other.part != BLOCKS and _around(axis, other, reach)]
    for dimension in {other.dimension for other in inside}:
        taken = frozenset[int]().union(*(reach[other] for other in inside if other.dimension == dimension))
        all_of_it = reach[axis] if dimension == axis.dimension else frozenset(range(shape[dimension]))
        if all_of_it <= taken:
            return None
    return tuple((other.dimension, torch.tensor(sorted(reach[other]))) for other in inside)
