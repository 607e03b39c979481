"""Groups that meet themselves in a tensor: ⟨A, π(B)⟩ is quadratic in their permutation, so candidates are weighed.

A recurrent weight holds its hidden units in both dimensions; the output projection of grouped-query attention holds kv
heads, the queries of each and the inside of a head in one. The best permutation is a quadratic assignment, for which
nobody has a fast exact solver. So every candidate below is weighed by the true objective, and the best one is taken if
that rises.

Plain groups climb from the current permutation, and from the assignment by the linear terms alone (the weights that
hold the group once), which finds a permuted copy at once. A step is the assignment by the derivative; when that does
not raise the objective, one with a bonus for staying, which makes the step shorter, as a trust region does.

Structured groups: blocks are paired by what each pair is worth. With blocks and all parts but one held, the objective
is linear, one small assignment for every block; going round the parts until nothing rises gives the worth of a pair of
blocks, and n shifts of n blocks meet all n² pairs. When blocks themselves meet in a tensor, no pair is worth anything
alone; such groups climb like plain ones, refined part by part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dimat.align.assign import linear_assignment
from dimat.align.grams import Grams
from dimat.align.solve import best_permutation, part_order, total_similarity
from dimat.align.units import BLOCKS, Group, unit_rows

_MAX_REFINEMENTS = 20
"""Rounds over the parts; two or three are the rule."""

_STEPS = (0.5, 0.8, 0.95)
"""Bonuses for staying, as quantiles of what units would gain by the best of all moves: from long steps to short."""

_SWAPS = 16
"""How many single swaps are weighed before a climb ends."""


def improve_crossed(grams: Grams, name: str, perms: Mapping[str, Tensor], tie: float) -> tuple[Tensor, float]:
    """The best permutation of one group that was found with the others held, and what the objective gains by it.

    Args:
        grams: the two models.
        name: a group with crossed tensors.
        perms: of all groups.
        tie: bonus for the identity, as a share of a typical similarity.
    """
    search = _Search(grams, grams.spec.by_name[name], perms, tie)
    best, here = perms[name], search.value(perms[name])
    value = here
    for perm in search.candidates():
        found = search.value(perm)
        if found > value:
            best, value = perm, found
    return best, value - here


def solve(group: Group, similarity: Mapping[int, Tensor], tie: float, bonus: float = 0.0) -> Tensor:
    """The best permutation by linear similarities; the identity where they say nothing, or less than `bonus`."""
    scale = sum(float(matrix.norm()) / len(matrix) for matrix in similarity.values())
    here = {part: matrix.cpu() for part, matrix in similarity.items()}
    return best_permutation(group, here, stickiness=(tie * scale or tie) + bonus)


class _Search:
    """One group, all others held."""

    def __init__(self, grams: Grams, group: Group, perms: Mapping[str, Tensor], tie: float) -> None:
        self.grams, self.group, self.perms, self.tie = grams, group, perms, tie
        self.linear = {part: s.cpu().double() for part, s in grams.linear(group.name, perms).items()}
        self.tensors = grams.evidence[group.name].crossed
        self.rounding = grams.rounding(self.tensors)

    def value(self, perm: Tensor) -> float:
        """The share of the objective that depends on this group."""
        crossed = self.grams.inner({**self.perms, self.group.name: perm}, self.tensors)
        return total_similarity(self.group, self.linear, perm) + sum(crossed.values())

    def candidates(self) -> Iterator[Tensor]:
        """Permutations to try."""
        group, current = self.group, self.perms[self.group.name]
        if group.parts and all(sum(axis.part == BLOCKS for axis in axes) == 1 for axes in self.tensors.values()):
            yield self.refined(current)
            yield self.paired()
            return
        starts = [current, *([solve(group, self.linear, self.tie)] if self.linear else [])]
        for start in starts:
            yield self.climbed(start)

    def climbed(self, perm: Tensor) -> Tensor:
        """Assignments by the derivative, shorter steps when long ones fail, for as long as the objective rises."""
        group, value, rises = self.group, self.value(perm), True
        while rises:
            slope = self.grams.crossed(group.name, {**self.perms, group.name: perm})
            for part, similarity in self.linear.items():
                slope[part] = slope[part].cpu() + similarity if part in slope else similarity
            rises = False
            for trial in self.steps(slope, perm):
                reached = self.value(trial)
                if reached > value + self.rounding:
                    perm, value, rises = trial, reached, True
                    break
        return perm

    def steps(self, slope: Mapping[int, Tensor], perm: Tensor) -> Iterator[Tensor]:
        """Where to go from `perm`, from long steps to short ones: assignments, then swaps of units."""
        for near in _nearer(slope, self.group, perm):
            trial = solve(self.group, near, self.tie)
            yield self.refined(trial) if self.group.parts else trial
        if not self.group.parts:
            yield from _swaps(slope[BLOCKS].cpu(), perm)

    def paired(self) -> Tensor:
        """Blocks assigned to blocks by what each pair is worth once its units are in their best order."""
        group, num = self.group, self.group.num_blocks
        worth = torch.full((num, num), -torch.inf, dtype=torch.float64)
        orders = [torch.zeros(num, num, size, dtype=torch.int64) for size in group.parts]
        here = torch.arange(num)
        for shift in range(1 if group.structure == "blocks" else num):
            blocks = (here + shift) % num
            for start in self.starts(blocks):
                perm = self.refined(start)
                reached = self.by_block(perm)
                better = reached > worth[here, blocks]
                worth[here[better], blocks[better]] = reached[better]
                for part, order in enumerate(orders):
                    order[here[better], blocks[better]] = group.order_within(perm, part)[better]
        fixed = group.structure == "blocks"
        best = here if fixed else torch.from_numpy(linear_assignment(worth.numpy()))
        return group.joined(best, [order[here, best] for order in orders])

    def starts(self, blocks: Tensor) -> Iterator[Tensor]:
        """With blocks in a given order: units as the linear terms have them, as they are, and the other way round."""
        group, num = self.group, self.group.num_blocks
        as_is = [torch.arange(size).expand(num, size) for size in group.parts]
        perm = group.joined(blocks, as_is)
        yield perm
        yield group.joined(blocks, [order.flip(1) for order in as_is])
        for part in sorted(self.linear.keys() - {BLOCKS}):
            perm = self.reordered(perm, part, crossed=False)
        yield perm

    def refined(self, perm: Tensor) -> Tensor:
        """The units of each block reordered, one part at a time, for as long as the objective rises."""
        value = self.value(perm)
        for _ in range(_MAX_REFINEMENTS):
            before = value
            for part, size in enumerate(self.group.parts):
                trial = self.reordered(perm, part) if size > 1 else perm
                reached = self.value(trial)
                if reached > value + self.rounding:
                    perm, value = trial, reached
            if not value > before:
                break
        return perm

    def reordered(self, perm: Tensor, part: int, crossed: bool = True) -> Tensor:
        """The best order of the units of one part, inside of every block; all else stays."""
        group, num, size = self.group, self.group.num_blocks, self.group.parts[part]
        tiles = torch.zeros(num, size, size, dtype=torch.float64)
        if part in self.linear:
            columns = part_order(group, perm, part).view(num, 1, size).expand(num, size, size)
            tiles += self.linear[part].view(num, size, -1).gather(2, columns)
        held = {**self.perms, group.name: perm}
        for tensor, axes in self.tensors.items() if crossed else ():
            b = self.grams.permuted(tensor, self.grams.members[tensor], held)
            for axis in axes:
                if axis.part == part:
                    one, two = (unit_rows(some, axis.place, group) for some in (self.grams.a[tensor], b))
                    tiles += (one.view(num, size, -1) @ two.view(num, size, -1).mT).cpu()
        within = [group.order_within(perm, other) for other in range(len(group.parts))]
        best = torch.stack([torch.from_numpy(linear_assignment(tile.numpy())) for tile in tiles])
        within[part] = within[part].gather(1, best)
        return group.joined(group.order_of_blocks(perm), within)

    def by_block(self, perm: Tensor) -> Tensor:
        """What `value` sums up, block by block: float64 of shape (num_blocks,)."""
        group, found = self.group, torch.zeros(self.group.num_blocks, dtype=torch.float64)
        for part, matrix in self.linear.items():
            found += matrix.gather(1, part_order(group, perm, part)[:, None]).view(group.num_blocks, -1).sum(dim=1)
        held = {**self.perms, group.name: perm}
        for tensor, axes in self.tensors.items():
            product = self.grams.a[tensor] * self.grams.permuted(tensor, self.grams.members[tensor], held)
            [place] = (axis.place for axis in axes if axis.part == BLOCKS)
            found += unit_rows(product, place, group).sum(dim=1, dtype=torch.float64).cpu()
        return found


def _nearer(similarities: Mapping[int, Tensor], group: Group, perm: Tensor) -> Iterator[dict[int, Tensor]]:
    """The similarities, then with more and more of a bonus for the partners at `perm`, by `_STEPS`."""
    yield dict(similarities)
    for step in _STEPS:
        near = {}
        for part, matrix in similarities.items():
            here = part_order(group, perm, part)[:, None].to(matrix.device)
            gaps = (matrix.max(dim=1).values - matrix.gather(1, here)[:, 0]).double()
            bonus = torch.quantile(gaps, step).to(matrix.dtype)
            near[part] = matrix.scatter_add(1, here, bonus.expand(here.shape))
        yield near


def _swaps(similarity: Tensor, perm: Tensor) -> Iterator[Tensor]:
    """`perm` with units swapped, by what the derivative says of each swap: many disjoint ones at once, then the best.

    A swap changes 4 of the about 4n products of two units, so that the derivative is nearly right about one swap.
    """
    here = similarity[:, perm]
    gains = here + here.T - here.diagonal()[:, None] - here.diagonal()
    rows, columns = torch.triu_indices(len(perm), len(perm), offset=1)
    values, best = gains[rows, columns].topk(min(len(rows), 4 * len(perm)))
    pairs = list(zip(rows[best].tolist(), columns[best].tolist(), strict=True))
    taken, disjoint = set[int](), []
    for pair, value in zip(pairs, values.tolist(), strict=True):
        if value > 0 and taken.isdisjoint(pair):
            taken |= set(pair)
            disjoint.append(pair)
    num = len(disjoint)
    while num > 1:
        yield _swapped(perm, disjoint[:num])
        num //= 4
    for pair in pairs[:_SWAPS]:
        yield _swapped(perm, [pair])


def _swapped(perm: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    new = perm.clone()
    for i, j in pairs:
        new[i], new[j] = perm[j], perm[i]
    return new
