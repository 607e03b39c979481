"""The best permutation of one group, when the similarity of every two units is known.

A plain group is one linear assignment. With blocks (attention heads) an outer assignment of blocks stands over inner
ones: block a of the reference and block b of the other model are worth what the best pairing of their units is worth,
part by part, and the blocks are paired so that the total is largest. That is exact, since the inner choices of
different pairs of blocks do not touch each other. It takes num_blocks² small assignments for each part.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dimat.align.assign import linear_assignment
from dimat.align.units import BLOCKS, Group

Similarities = Mapping[int, Tensor]
"""Part -> float64 matrix over (units of the reference, units of the other model); `BLOCKS` -> one over the blocks.

A plain group has `BLOCKS` alone. What is missing counts as zero.
"""


def best_permutation(group: Group, similarities: Similarities, stickiness: float = 0.0) -> Tensor:
    """The permutation p, among those that the group's structure allows, with the largest `total_similarity`.

    Args:
        group: tells sizes and structure.
        similarities: of the units, as `Similarities` says.
        stickiness: added to the similarity of every unit (in a plain group) or unit of a part with itself.

    Returns:
        int64 of shape (group.size,).

    >>> heads = Group("heads", 4, (), structure="heads", parts=(2,))
    >>> alike = torch.tensor([[0., 0, 0, 2], [0, 0, 3, 0], [1, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)
    >>> best_permutation(heads, {0: alike}).tolist()
    [3, 2, 0, 1]
    """
    num = group.num_blocks
    blocks = similarities.get(BLOCKS, torch.zeros(num, num, dtype=torch.float64)).clone()
    if not group.parts:
        blocks.diagonal().add_(stickiness)
        return _assign(blocks)
    inner: list[dict[tuple[int, int], Tensor]] = []
    pairs = [(a, b) for a in range(num) for b in range(num) if group.structure != "blocks" or a == b]
    for part, size in enumerate(group.parts):
        orders: dict[tuple[int, int], Tensor] = {}
        found = similarities.get(part)
        tiles = None if found is None else found.view(num, size, num, size).transpose(1, 2)
        for a, b in pairs:
            tile = torch.zeros(size, size, dtype=torch.float64) if tiles is None else tiles[a, b].clone()
            if a == b:
                tile.diagonal().add_(stickiness)
            orders[a, b] = order = _assign(tile)
            blocks[a, b] += tile[torch.arange(size), order].sum()
        inner.append(orders)
    order = torch.arange(num) if group.structure == "blocks" else _assign(blocks)
    chosen = list(enumerate(order.tolist()))
    return group.joined(order, [torch.stack([orders[pair] for pair in chosen]) for orders in inner])


def total_similarity(group: Group, similarities: Similarities, perm: Tensor) -> float:
    """What a permutation is worth: Σᵢ s[i, p(i)] over the units of every part, and over the blocks."""
    total = 0.0
    for part, matrix in sorted(similarities.items()):
        order = part_order(group, perm, part)
        total += float(matrix[torch.arange(len(order)), order].sum())
    return total


def part_order(group: Group, perm: Tensor, part: int) -> Tensor:
    """The permutation of what one part numbers: of the blocks, or of its units over all blocks."""
    blocks = group.order_of_blocks(perm)
    if part == BLOCKS:
        return blocks
    return (blocks[:, None] * group.parts[part] + group.order_within(perm, part)).reshape(-1)


def _assign(similarity: Tensor) -> Tensor:
    return torch.from_numpy(linear_assignment(similarity.numpy()))
