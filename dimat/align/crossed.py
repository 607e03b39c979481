"""Groups that meet themselves in a tensor: ⟨A, π(B)⟩ is quadratic in their permutation, so candidates are tried.

A recurrent weight holds its hidden units in both dimensions; the output projection of grouped-query attention holds kv
heads, the queries of each and the inside of a head in one. The best permutation is then a quadratic assignment, for
which nobody has a fast exact solver. Instead every candidate below is weighed by the true objective, and the best is
taken if it rises:

- the assignment by the linear terms alone (the weights that hold the group once), which finds a permuted copy at once;
- the assignment by the derivative at the current permutation;
- for plain groups the same with a bonus for staying, which makes the step shorter, as a trust region does.

In structured groups each candidate, and the current permutation, is refined: with blocks and all parts but one held,
the objective is linear (unless the group sits in two dimensions as well), one small assignment for every block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dimat.align.assign import linear_assignment
from dimat.align.grams import Grams
from dimat.align.solve import best_permutation, total_similarity
from dimat.align.units import Group

_MAX_REFINEMENTS = 20
"""Passes over the parts; two or three are the rule."""

_STEPS = (0.5, 0.9)
"""Quantiles of what units gain by moving: bonuses for staying, from long steps to short ones."""


def improve_crossed(grams: Grams, name: str, perms: Mapping[str, Tensor], tie: float) -> tuple[Tensor, float]:
    """The best permutation of one group that was found with the others held, and what the objective gains by it.

    Args:
        grams: the two models.
        name: a group with crossed tensors.
        perms: of all groups.
        tie: bonus for the identity, as a share of a typical similarity.
    """
    search = _Search(grams, grams.spec.by_name[name], perms, tie)
    here = search.value(perms[name])
    best, value = max(((perm, search.value(perm)) for perm in search.candidates()), key=lambda found: found[1])
    return best, value - here


class _Search:
    """One group, all others held."""

    def __init__(self, grams: Grams, group: Group, perms: Mapping[str, Tensor], tie: float) -> None:
        self.grams, self.group, self.perms, self.tie = grams, group, perms, tie
        self.linear = {part: s.clone() for part, s in grams.linear(group.name, perms).items()}

    def value(self, perm: Tensor) -> float:
        """The share of the objective that depends on this group."""
        held = {**self.perms, self.group.name: perm}
        crossed = self.grams.inner(held, self.grams.evidence[self.group.name].crossed)
        return total_similarity(self.group, self.linear, perm) + sum(crossed.values())

    def slope(self, perm: Tensor) -> dict[int, Tensor]:
        """The similarities at `perm`: linear ones, and the derivative of the crossed tensors."""
        found = self.grams.crossed(self.group.name, {**self.perms, self.group.name: perm})
        parts = self.linear.keys() | found.keys()
        return {part: sum_of(self.linear.get(part), found.get(part)) for part in sorted(parts)}

    def candidates(self) -> Iterator[Tensor]:
        """Permutations to try; the current one is among them."""
        current = self.perms[self.group.name]
        slope = self.slope(current)
        if not self.group.parts:
            yield current
            [similarity] = slope.values()
            for bonus in (0.0, *_bonuses(similarity, current)):
                stay = similarity.clone()
                stay[torch.arange(len(current)), current] += bonus
                yield solve(self.group, {-1: stay}, self.tie)
            if self.linear:
                yield solve(self.group, self.linear, self.tie)
            return
        for start in (current, solve(self.group, slope, self.tie), solve(self.group, self.linear, self.tie)):
            yield start
            yield self.refined(start)

    def refined(self, perm: Tensor) -> Tensor:
        """The units of each block reordered, one part at a time, for as long as the objective rises."""
        group, value = self.group, self.value(perm)
        for _ in range(_MAX_REFINEMENTS):
            before = value
            for part, size in enumerate(group.parts):
                similarity = self.slope(perm).get(part)
                if similarity is None or size == 1:
                    continue
                blocks = group.order_of_blocks(perm)
                within = [group.order_within(perm, one) for one in range(len(group.parts))]
                tiles = similarity.cpu().view(group.num_blocks, size, group.num_blocks, size)
                within[part] = torch.stack(
                    [
                        torch.from_numpy(linear_assignment(tiles[new, :, old].double().numpy()))
                        for new, old in enumerate(blocks.tolist())
                    ]
                )
                trial = group.joined(blocks, within)
                reached = self.value(trial)
                if reached > value:
                    perm, value = trial, reached
            if not value > before:
                break
        return perm


def solve(group: Group, similarity: Mapping[int, Tensor], tie: float) -> Tensor:
    """The best permutation by linear similarities; the identity where they say nothing."""
    scale = sum(float(matrix.norm()) / len(matrix) for matrix in similarity.values())
    here = {part: matrix.cpu() for part, matrix in similarity.items()}
    return best_permutation(group, here, stickiness=tie * scale or tie)


def sum_of(one: Tensor | None, two: Tensor | None) -> Tensor:
    """The sum of what is there."""
    found = [tensor for tensor in (one, two) if tensor is not None]
    return found[0] if len(found) == 1 else found[0] + found[1]


def _bonuses(similarity: Tensor, current: Tensor) -> list[float]:
    """What a unit must gain to leave its place, by `_STEPS`."""
    gaps = similarity.max(dim=1).values - similarity.gather(1, current[:, None].to(similarity.device))[:, 0]
    gaps = gaps[gaps > 0].double()
    return [float(torch.quantile(gaps, step)) for step in _STEPS] if len(gaps) else []
