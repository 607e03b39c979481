"""What a matching answers: the permutations to apply to the other model, and how far they move it."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        constant: units of which the probe says nothing: constant or not finite in one of the models (in the one that
            has more of them), or in a part of the group that is not read; always 0 when matched by weights.
        similarity: of each unit of the reference with its partner, float64 of shape (size,), in [-1, 1]: the
            correlation (0 when constant), or the cosine of their weights. NaN where nothing is known; None when it was
            not computed.
    """

    name: str
    size: int
    moved: float
    before: float
    after: float
    constant: int = 0
    similarity: Tensor | None = field(default=None, repr=False, compare=False)


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
        """Number of units of which the probe says nothing."""
        return sum(group.constant for group in self.groups)
