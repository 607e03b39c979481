"""What a matching answers: the permutations to apply to the other model, and how far they move it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class GroupMatch:
    """How one group was matched.

    Attributes:
        name: the group.
        size: number of units.
        moved: share of units whose permutation is not the identity, in [0, 1].
        before: similarity of the units at equal positions before the matching (mean correlation, or inner product).
        after: the same after it.
        constant: units that say nothing on the probe in either model (always 0 when matched by weights).
    """

    name: str
    size: int
    moved: float
    before: float
    after: float
    constant: int = 0


@dataclass(frozen=True, slots=True)
class Matching:
    """Permutations to apply to the other model, and the evidence.

    Attributes:
        perms: group name -> int64 tensor of shape (size,), for `PermutationSpec.apply`.
        groups: one `GroupMatch` for each group, in the order of the spec.
        objective_before: what was maximised, at the identity: the sum of correlations, or the inner product of the
            weights of both models over all tensors that can move.
        objective_after: the same at `perms`.
    """

    perms: dict[str, Tensor]
    groups: tuple[GroupMatch, ...]
    objective_before: float
    objective_after: float

    @property
    def moved(self) -> float:
        """Share of all units that move, in [0, 1]."""
        return sum(group.moved * group.size for group in self.groups) / max(1, sum(group.size for group in self.groups))

    @property
    def constant(self) -> int:
        """Number of units that are constant on the probe in either model."""
        return sum(group.constant for group in self.groups)
