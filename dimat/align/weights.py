"""Weight matching: permute the other model's weights as close to the reference as coordinate descent finds.

Git Re-Basin (Ainsworth, Hayase, Srinivasa 2022, arXiv 2209.04836) maximises

    ⟨A, π(B)⟩ = Σ_t ⟨A_t, π(B_t)⟩   over the permutations π of all groups, t over the trained tensors,

which is the same as minimising ‖A − π(B)‖². It couples groups through the tensors they share; with all groups but one
held, it is a linear assignment (`dimat.align.crossed` has the exceptions). A group is solved again only when a group
that shares a tensor with it has changed, from similarities that follow the changes (`dimat.align.grams`). The
objective never falls, so the descent ends.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dimat.align.cosine import cosines
from dimat.align.crossed import improve_crossed, solve
from dimat.align.grams import Grams
from dimat.align.groups import PermutationSpec
from dimat.align.matching import GroupMatch, Matching
from dimat.align.solve import check_bonus, total_similarity

_TIE = 1e-9
"""Bonus of the identity, as a share of a typical similarity: it decides between equal pairings only."""

_STIR = 1e-5
"""A gain below this share of the objective wakes no neighbour: on a ResNet-50 that saves a third of the time and costs
0.15 % of the objective."""


def weight_matching(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    *,
    seed: int = 0,
    stickiness: float = 0.0,
    margin: float = 0.0,
) -> dict[str, Tensor]:
    """The permutations that bring the state dict `other` into the basis of `reference`; see `match_weights`.

    >>> from torch import nn
    >>> from dimat.align import permutation_spec
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = permutation_spec(model, torch.zeros(2, 4))
    >>> hidden = spec.random(seed=1)
    >>> found = weight_matching(spec, model.state_dict(), spec.apply(model.state_dict(), hidden))
    >>> spec.moved(spec.compose(hidden, found))
    0.0
    """
    return match_weights(spec, reference, other, seed=seed, stickiness=stickiness, margin=margin).perms


def match_weights(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    *,
    seed: int = 0,
    stickiness: float = 0.0,
    margin: float = 0.0,
    max_sweeps: int = 100,
) -> Matching:
    """Coordinate descent over the groups, from the better of two starts.

    The starts are the identity and one pass that begins at the groups beside the fixed inputs and outputs and goes on
    to those whose neighbours are placed, looking at tensors only when all their other axes are placed.

    Args:
        spec: the groups of both models.
        reference: the state dict whose basis is kept. Of any floating dtype; float64 is computed in float64, all else
            in float32.
        other: the state dict to permute.
        seed: of the group that is visited first.
        stickiness: bonus for leaving a unit where it is, in units of the cosine of two units: ‖A_g‖·‖B_g‖ / size for
            each. With it, or a margin, the descent starts at the identity. Groups that meet themselves in a tensor
            are held by the margin alone.
        margin: a group leaves the identity only when what its tensors gain is more than this share of what they reach.
        max_sweeps: an upper bound; the descent usually ends within twenty, of which the last ones are short.

    Returns:
        A `Matching`; the objective is ⟨A, π(B)⟩ over the trained tensors that can move (running statistics, which live
        on another scale, move along but do not vote).

    Raises:
        SchemaError: a state dict is not of the spec's architecture; the message names the first tensor that differs.
        AlignmentError: a weight is not finite.
        UsageError: `stickiness` or `margin` is negative or not finite.
    """
    check_bonus(stickiness, margin)
    grams = Grams(spec, reference, other)
    identity = spec.identity()
    start = identity if stickiness or margin else outside_in(grams)
    before, reached = grams.inner(identity), grams.inner(start)
    if sum(reached.values()) <= sum(before.values()):
        start, reached = identity, before
    perms, gain = descend(grams, start, seed=seed, max_sweeps=max_sweeps, stickiness=stickiness, margin=margin)
    after = grams.inner(perms)
    check_gain(grams, sum(reached.values()), gain, sum(after.values()))
    alike, groups = cosines(grams, perms), []
    for group in spec.groups:
        tensors = grams.tensors_of(group.name)
        moved = float((perms[group.name] != identity[group.name]).double().mean())
        was, is_now = (sum((some[tensor] for tensor in tensors), 0.0) for some in (before, after))
        groups.append(GroupMatch(group.name, group.size, moved, was, is_now, similarity=alike[group.name]))
    return Matching(perms, tuple(groups), sum(before.values()), sum(after.values()))


def outside_in(grams: Grams) -> dict[str, Tensor]:
    """The start that reads only what is certain: groups beside fixed axes first, then from placed ones onwards."""
    perms = grams.spec.identity()
    waiting = list(perms)
    while waiting:
        known = {
            name: [term for term in grams.evidence[name].terms if not any(group in waiting for group, _ in term.beside)]
            for name in waiting
        }
        weight = {name: sum(grams.a[term.axis.tensor].numel() for term in terms) for name, terms in known.items()}
        name = max(waiting, key=lambda one: weight[one])
        if weight[name]:  # else nothing is known of any: this one stays as it is
            perms[name] = solve(grams.spec.by_name[name], grams.linear(name, perms, known[name]), _TIE)
        waiting.remove(name)
    return perms


def descend(
    grams: Grams,
    start: Mapping[str, Tensor],
    *,
    seed: int = 0,
    max_sweeps: int = 100,
    stickiness: float = 0.0,
    margin: float = 0.0,
) -> tuple[dict[str, Tensor], float]:
    """Improve one group after the other until none can be; the permutations and what the objective gained.

    Groups are visited in the order of the model, round and round from a seeded one on: neighbours come one after the
    other, which takes fewer visits than a random order, most of all of the large groups of residual streams.
    """
    perms, total = dict(start), 0.0
    least = _STIR * abs(sum(grams.inner(start).values()))
    generator = torch.Generator().manual_seed(seed)
    names = list(perms)
    first = int(torch.randint(max(1, len(names)), (1,), generator=generator))
    names = names[first:] + names[:first]
    waiting = set(names)
    for _ in range(max_sweeps):
        if not waiting:
            break
        for name in names:
            if name not in waiting:
                continue
            waiting.discard(name)
            better, gain = _improve(grams, name, perms, stickiness)
            if gain > max(grams.rounding(grams.tensors_of(name)), _threshold(grams, name, perms, gain, margin)):
                perms[name] = better
                total += gain
                if gain > least:
                    waiting |= grams.affected_by(name)
    return perms, total


def check_gain(grams: Grams, start: float, gain: float, end: float) -> None:
    """Assert that a descent gained what its similarities promised, and did not end below its start."""
    error = 10 * grams.rounding(grams.members)
    assert abs(start + gain - end) <= error, f"from {start} by {gain}, and yet to {end}: similarities are out of date"
    assert end >= start - error, f"the objective fell from {start} to {end}"


def _threshold(grams: Grams, name: str, perms: Mapping[str, Tensor], gain: float, margin: float) -> float:
    """What a group must gain to leave the identity; nothing for one that has left it."""
    if not margin or not torch.equal(perms[name], torch.arange(len(perms[name]))):
        return 0.0
    return margin * abs(sum(grams.inner(perms, grams.tensors_of(name)).values()) + gain)


def _improve(grams: Grams, name: str, perms: Mapping[str, Tensor], stickiness: float) -> tuple[Tensor, float]:
    """The best permutation of one group with the others held, and what it gains."""
    if grams.evidence[name].crossed:
        return improve_crossed(grams, name, perms, _TIE)
    group, similarity = grams.spec.by_name[name], grams.linear(name, perms)
    bonus = stickiness * sum(grams.bound[tensor] for tensor in grams.tensors_of(name)) / group.size
    new = solve(group, similarity, _TIE, bonus)
    gain = total_similarity(group, similarity, new) - total_similarity(group, similarity, perms[name])
    assert bonus or gain >= -grams.rounding(grams.tensors_of(name)), "the assignment lowered the objective it maximises"
    return new, gain
