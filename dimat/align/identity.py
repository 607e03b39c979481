"""Whether two models number their hidden units alike already, by a look at their weights that needs no samples.

With all groups but one held where they are, what a permutation p of that group is worth is Σᵢ s[i, p(i)], in which
s[i, j] = ⟨aᵢ, bⱼ⟩ is the inner product of everything that unit i of one model and unit j of the other have in the
trained tensors (`dimat.align.grams`). What all units have in common, such as the scale of a norm, says nothing about
which is which, and how large a unit is neither. So with c = ⟨aᵢ - ā, bⱼ - b̄⟩, which is s with the means of its rows and
columns taken out (that is worth the same for every p), let

    r[i, j] = c[i, j] / √(c[i, i] · c[j, j]),    so that r[i, i] = 1.

The identity is *settled* when every diagonal entry is the largest of its row and of its column in r. That is enough for
the optimum: then c[i, j] ≤ √(c[i, i] · c[j, j]) ≤ (c[i, i] + c[j, j]) / 2, and so for every permutation

    Σᵢ c[i, p(i)] ≤ Σᵢ (c[i, i] + c[p(i), p(i)]) / 2 = Σᵢ c[i, i].

It is not necessary: where it fails, a matching has to find out. One product of matrices for each tensor axis is all it
costs; matching by activations runs both models over a probe. The answer is the same from both ends of an edge, since r
is transposed when the models change places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dimat.align.grams import Grams
from dimat.align.groups import PermutationSpec
from dimat.align.units import BLOCKS, Group
from dimat.errors import AlignmentError

_ROUNDING = 1e-6
"""Units that are equal have r = 1, but for the rounding of inner products in float32."""


def identity_is_best(
    spec: PermutationSpec, reference: Mapping[str, Tensor], other: Mapping[str, Tensor], *, margin: float = 0.0
) -> bool:
    """Whether no group of `other` would gain by another order of its units, the other groups held where they are.

    So a descent by weights that begins at the identity ends there. The first group that is not settled ends the look.

    Args:
        spec: the groups of both models.
        reference: the state dict of one.
        other: the state dict of the other.
        margin: how far below 1 all r[i, j] of different units have to stay. Above rounding (1e-6) the identity is the
            only optimum, but among units with c[i, i] = 0.

    Returns:
        False as well when nothing is certain: a group that meets itself in a tensor (a recurrent weight), whose worth
        is quadratic in its permutation, or of which no trained tensor speaks; a weight that is not finite.

    Raises:
        SchemaError: a state dict is not of the spec's architecture; the message names the first tensor that differs.

    >>> from torch import nn
    >>> from dimat.align import permutation_spec
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec, state = permutation_spec(model, torch.zeros(2, 4)), model.state_dict()
    >>> near = {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in state.items()}
    >>> identity_is_best(spec, state, near), identity_is_best(spec, state, spec.apply(near, spec.random(seed=1)))
    (True, False)
    """
    try:
        grams = Grams(spec, reference, other)
    except AlignmentError:  # NaN or Inf
        return False
    identity = spec.identity()
    return all(_is_settled(grams, group, identity, margin) for group in spec.groups)


def strongest_rival(similarity: Tensor) -> float:
    """The largest r[i, j] of different units i and j; up to 1 no assignment is worth more than the identity.

    Nothing below 0 is told apart from 0. It is infinite where a unit is unlike itself: c[i, i] < 0, or c[i, i] = 0 and
    another unit is like it.

    >>> alike = torch.tensor([[2.0, 1, -1, -2], [1, 2, -2, -1], [-1, -2, 2, 1], [-2, -1, 1, 2]])
    >>> [round(strongest_rival(found), 6) for found in (alike, alike + 9)]
    [0.5, 0.5]
    >>> strongest_rival(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    inf
    """
    if len(similarity) < 2:
        return 0.0
    centred = similarity.to(torch.float64, copy=True)
    for dim in (0, 1):
        centred -= centred.mean(dim=dim, keepdim=True)
    own = centred.diagonal().clone()
    if float(own.min()) < 0:
        return math.inf
    scale = own.sqrt()
    rivals = centred.fill_diagonal_(0.0).clamp_(min=0.0)
    return float(rivals.div_(scale[:, None]).div_(scale).nan_to_num_(nan=0.0, posinf=math.inf).max())


def _is_settled(grams: Grams, group: Group, identity: Mapping[str, Tensor], margin: float) -> bool:
    evidence = grams.evidence[group.name]
    if evidence.crossed or not evidence.terms:
        return False
    similarities = grams.linear(group.name, identity)
    return all(
        strongest_rival(matrix) <= 1.0 + _ROUNDING - margin
        for part, own in similarities.items()
        for matrix in _competing(group, part, own)
    )


def _competing(group: Group, part: int, similarity: Tensor) -> list[Tensor]:
    """The similarities of units that may change places: those of one block, where blocks stay where they are.

    Where blocks move, this lets their units move one by one: more than is allowed, and so as certain.
    """
    if group.structure != "blocks":
        return [similarity]
    if part == BLOCKS:
        return []
    size = group.parts[part]
    return [similarity[start : start + size, start : start + size] for start in range(0, len(similarity), size)]
