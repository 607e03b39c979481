"""Partial matching: merge only the units that are alike, and keep the others of both models apart.

Models that learnt different things have units without a counterpart. Averaging such a unit with whatever is left over
destroys both; PLeaS keeps them side by side instead, in layers that are wider by as many units. Here is the decision
alone: which pairs of a matching are kept. In a structured group it is made unit by unit, inside of matched blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dimat.align.groups import PermutationSpec
from dimat.align.matching import Matching
from dimat.align.units import Permutations
from dimat.errors import AlignmentError, UsageError
from dimat.plugins import unknown


@dataclass(frozen=True, slots=True, eq=False)
class PartialMatch:
    """The pairs of one group that are kept, and the units that stay apart; each unit of either model stands once.

    Attributes:
        kept: (unit of the reference, unit of the other model), int64 of shape (k, 2), in the reference's order.
        only_reference: units of the reference without a partner, int64 of shape (size - k,), ascending.
        only_other: the same of the other model. Units are numbered as in the model that was given to the matching.
    """

    kept: Tensor
    only_reference: Tensor
    only_other: Tensor

    @property
    def size(self) -> int:
        """Units of the merged group: 2 · size - k."""
        return len(self.kept) + len(self.only_reference) + len(self.only_other)


def partial_matching(
    spec: PermutationSpec,
    matching: Matching,
    *,
    threshold: float | Mapping[str, float] | None = None,
    quantile: float | Mapping[str, float] | None = None,
) -> dict[str, PartialMatch]:
    """Keep the pairs of a matching that are similar enough: by a `threshold`, or by a `quantile` of each group.

    Args:
        spec: the groups that were matched.
        matching: what `match_activations` or `match_weights` answered.
        threshold: pairs with at least this similarity (correlation, or cosine of weights) are kept.
        quantile: pairs at or above this quantile of their group's similarities are kept, in [0, 1]: 0 keeps all, 0.25
            parts the least similar quarter.

    Either may be one number, or one for each group by name; groups that are then not named keep all their pairs, and
    exactly one of the two must be given. A pair of which nothing is known (NaN) is kept by a quantile of 0 alone.

    Returns:
        Group name -> `PartialMatch`, in the order of the spec.

    Raises:
        UsageError: both or neither of threshold and quantile, or a value out of range.
        AlignmentError: an unknown group, or a matching that does not tell the similarity of its pairs.

    >>> from dimat.align.matching import GroupMatch
    >>> from dimat.align.units import Group
    >>> spec = PermutationSpec((Group("g", 3, ()),))
    >>> alike = torch.tensor([0.9, 0.1, 0.7], dtype=torch.float64)
    >>> perms = {"g": torch.tensor([2, 0, 1])}
    >>> found = partial_matching(spec, Matching(perms, (GroupMatch("g", 3, 1, 0, 0, 0, alike),), 0, 0), threshold=0.5)
    >>> found["g"].kept.tolist(), found["g"].only_reference.tolist(), found["g"].only_other.tolist()
    ([[0, 2], [2, 1]], [1], [0])
    """
    if (threshold is None) == (quantile is None):
        raise UsageError("partial matching takes a threshold or a quantile: exactly one of the two")
    given = threshold if threshold is not None else quantile
    limits = given if isinstance(given, Mapping) else dict.fromkeys(spec.by_name, given)
    for name, limit in limits.items():
        if name not in spec.by_name:
            raise AlignmentError(unknown("group", name, spec.by_name))
        if limit is None or limit != limit or (quantile is not None and not 0 <= limit <= 1):
            what = "threshold" if quantile is None else "quantile"
            expected = "a number" if quantile is None else "a number in [0, 1]"
            raise UsageError(f"the {what} of group {name!r} is {limit}, expected {expected}")
    similarities = {group.name: group.similarity for group in matching.groups}
    answer = {}
    for group in spec.groups:
        alike, limit = similarities.get(group.name), limits.get(group.name)
        if alike is None or alike.shape != (group.size,):
            raise AlignmentError(
                f"the matching does not tell how similar the {group.size} pairs of group {group.name!r} are"
            )
        if limit is None:
            keep = torch.ones(group.size, dtype=torch.bool)
        else:
            keep = alike >= limit if quantile is None else _at_or_above(alike, limit)
        answer[group.name] = _split(matching.perms, group.name, keep)
    return answer


def _at_or_above(similarity: Tensor, quantile: float) -> Tensor:
    """Which entries are at or above a quantile; what is unknown ranks below everything."""
    ranked = similarity.nan_to_num(nan=-torch.inf)
    # The entry of that rank, not an interpolation: -inf would spread.
    smallest = torch.sort(ranked).values[min(len(ranked) - 1, math.floor(quantile * len(ranked)))]
    return (ranked >= smallest) & (similarity.isfinite() | (quantile == 0))


def _split(perms: Permutations, name: str, keep: Tensor) -> PartialMatch:
    perm, units = perms[name], torch.arange(len(keep))
    pairs = torch.stack([units, perm], dim=1)
    return PartialMatch(pairs[keep], units[~keep], perm[~keep].sort().values)
