"""The best permutation of one group, when the similarity of every two units is known.

A plain group is one linear assignment. With blocks (attention heads) an outer assignment of blocks stands over inner
ones: block a of the reference and block b of the other model are worth what the best pairing of their units is worth,
part by part, and the blocks are paired so that the total is largest. That is exact, since the inner choices of
different pairs of blocks do not touch each other. It takes num_blocks² small assignments for each part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dimat.align.assign import linear_assignment
from dimat.align.units import BLOCKS, Group
from dimat.errors import AlignmentError, UsageError

Similarities = Mapping[int, Tensor]
"""Part -> floating matrix over (units of the reference, units of the other model); `BLOCKS` -> one over the blocks.

A plain group has `BLOCKS` alone. What is missing counts as zero.
"""


def best_permutation(
    group: Group, similarities: Similarities, stickiness: float = 0.0, *, margin: float = 0.0
) -> Tensor:
    """The permutation p, among those that the group's structure allows, with the largest `total_similarity`.

    Args:
        group: tells sizes and structure.
        similarities: of the units, as `Similarities` says.
        stickiness: added to the similarity of every unit (in a plain group) or unit of a part with itself.
        margin: what a move must be worth, as a share of what it reaches: with t = `total_similarity` without the
            bonus, the answer is the identity unless t(p) - t(identity) > margin · |t(p)|. Such a share needs no scale:
            near 1 between models that have nothing in common yet (where t(identity) is about 0), small between
            models in one basis, where what is gained by swapping units that are nearly equal is noise.

    Returns:
        int64 of shape (group.size,).

    Raises:
        AlignmentError: a matrix has another shape than the group's units, or is not finite.

    >>> heads = Group("heads", 4, (), structure="heads", parts=(2,))
    >>> alike = torch.tensor([[0., 0, 0, 2], [0, 0, 3, 0], [1, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)
    >>> best_permutation(heads, {0: alike}).tolist()
    [3, 2, 0, 1]
    >>> near = torch.tensor([[0.80, 0.81], [0.82, 0.80]], dtype=torch.float64)
    >>> [best_permutation(Group("g", 2, ()), {BLOCKS: near}, margin=m).tolist() for m in (0.0, 0.1)]
    [[1, 0], [0, 1]]
    """
    _check(group, similarities)
    perm = _structured(group, similarities, stickiness) if group.parts else _plain(group, similarities, stickiness)
    here = torch.arange(group.size)
    before, after = (total_similarity(group, similarities, some) for some in (here, perm))
    return perm if after - before > margin * abs(after) else here


def total_similarity(group: Group, similarities: Similarities, perm: Tensor) -> float:
    """What a permutation is worth: Σᵢ s[i, p(i)] over the units of every part, and over the blocks."""
    total = 0.0
    for part, matrix in sorted(similarities.items()):
        order = part_order(group, perm, part).to(matrix.device)
        total += float(matrix.gather(1, order[:, None]).sum(dtype=torch.float64))
    return total


def unit_similarity(group: Group, similarities: Similarities, perm: Tensor) -> Tensor:
    """Of every unit i of the reference the similarity with its partner p(i): float64 of shape (group.size,).

    A unit of a part that has no similarities gets that of its block; where there is none either, NaN: nobody knows.
    """
    unknown = torch.full((group.num_blocks,), torch.nan, dtype=torch.float64)
    found = {}
    for part, matrix in similarities.items():
        order = part_order(group, perm, part)
        found[part] = matrix[torch.arange(len(order)), order].to(torch.float64)
    of_blocks = found.get(BLOCKS, unknown)
    if not group.parts:
        return of_blocks
    columns = [
        found[part].view(-1, size) if part in found else of_blocks[:, None].expand(-1, size)
        for part, size in enumerate(group.parts)
    ]
    return torch.cat(columns, dim=1).reshape(-1)


def part_order(group: Group, perm: Tensor, part: int) -> Tensor:
    """The permutation of what one part numbers: of the blocks, or of its units over all blocks."""
    blocks = group.order_of_blocks(perm)
    if part == BLOCKS:
        return blocks
    return (blocks[:, None] * group.parts[part] + group.order_within(perm, part)).reshape(-1)


def check_bonus(stickiness: float, margin: float) -> None:
    """Raise UsageError when the bonus or the margin of the identity is negative or not a number."""
    for name, value in (("stickiness", stickiness), ("margin", margin)):
        if not (value >= 0 and math.isfinite(value)):
            raise UsageError(f"{name} is {value}, expected a finite number that is not negative")


def _plain(group: Group, similarities: Similarities, stickiness: float) -> Tensor:
    found = similarities.get(BLOCKS)
    if found is None:
        return torch.arange(group.size)
    alike = found.to(torch.float64, copy=True)  # in float32 a small bonus would be rounded away
    alike.diagonal().add_(stickiness)
    return torch.from_numpy(linear_assignment(alike.numpy(), overwrite=True))


def _structured(group: Group, similarities: Similarities, stickiness: float) -> Tensor:
    num = group.num_blocks
    fixed = group.structure == "blocks"
    blocks = torch.zeros(num, num, dtype=torch.float64)
    if BLOCKS in similarities:
        blocks += similarities[BLOCKS]
    inner: list[Tensor] = []
    for part, size in enumerate(group.parts):
        orders = torch.arange(size).repeat(num, num, 1)  # of the units, for every pair of blocks
        tiles = torch.zeros(num, num, size, size, dtype=torch.float64)
        if part in similarities:
            tiles += similarities[part].view(num, size, num, size).transpose(1, 2)
        for a in range(num):
            tiles[a, a].diagonal().add_(stickiness)
        if part in similarities and size > 1:
            for a in range(num):
                for b in (a,) if fixed else range(num):
                    orders[a, b] = _assign(tiles[a, b])
        blocks += torch.gather(tiles, 3, orders[..., None])[..., 0].sum(dim=2)
        inner.append(orders)
    order = torch.arange(num) if fixed else _assign(blocks)
    return group.joined(order, [orders[torch.arange(num), order] for orders in inner])


def _check(group: Group, similarities: Similarities) -> None:
    for part, matrix in similarities.items():
        if not BLOCKS <= part < len(group.parts):
            raise AlignmentError(f"group {group.name!r} has parts {list(group.parts)}, similarities speak of {part}")
        size = group.num_units(part)
        if tuple(matrix.shape) != (size, size):
            found = f"similarities of part {part} have shape {tuple(matrix.shape)}"
            raise AlignmentError(f"group {group.name!r}: {found}, expected ({size}, {size})")


def _assign(similarity: Tensor) -> Tensor:
    return torch.from_numpy(linear_assignment(similarity.numpy()))
