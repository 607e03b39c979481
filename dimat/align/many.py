"""Many models into one basis: permutations that agree with each other by construction.

MergeMany of Git Re-Basin (Ainsworth, Hayase, Srinivasa 2022, arXiv 2209.04836, algorithm 3) maximises

    F(π) = Σ_{i<j} ⟨π_i(A_i), π_j(A_j)⟩ = (‖Σᵢ π_i(A_i)‖² − Σᵢ ‖A_i‖²) / 2

one model at a time: with the others held, π_p has to match A_p to their sum, which is weight matching. Every model has
one permutation into the common basis, and the map from model i to model j, first π_i and then the inverse of π_j, makes
no detour: composed around any cycle, it is the identity. F does not change when all π_i are followed by one more
permutation, so the basis is that of the first model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dimat.align.grams import Grams, permute_pairs, voting_members
from dimat.align.groups import PermutationSpec
from dimat.align.terms import Pair
from dimat.align.weights import check_gain, descend, match_weights
from dimat.errors import AlignmentError


def match_many(
    spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], *, seed: int = 0, max_passes: int = 100
) -> list[dict[str, Tensor]]:
    """The permutations that bring n state dicts into one basis, that of the first.

    Each model is matched to the first one; then, in seeded order, each to the sum of all others, starting where it is,
    until a pass over all models changes nothing. With two models that is weight matching.

    Args:
        spec: the groups of all models.
        states: their state dicts. Beside them, memory for one sum in float32 (float64 if any is) and what weight
            matching takes for two models.
        seed: of the order of models, and of groups in each matching.
        max_passes: an upper bound; a handful is the rule.

    Returns:
        For each model its permutations, for `PermutationSpec.apply`; the identity for the first.

    Raises:
        AlignmentError: there is no model, or a weight is not finite.
        SchemaError: a state dict is not of the spec's architecture.

    >>> from torch import nn
    >>> from dimat.align import permutation_spec
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> spec = permutation_spec(model, torch.zeros(2, 4))
    >>> states = [spec.apply(model.state_dict(), spec.random(seed)) for seed in range(3)]
    >>> merged = [spec.apply(state, perms) for state, perms in zip(states, match_many(spec, states), strict=True)]
    >>> all(state["0.weight"].equal(states[0]["0.weight"]) for state in merged)
    True
    """
    if not states:
        raise AlignmentError("there is no model to bring into one basis; expected at least one state dict")
    spec.check_state(states[0])
    perms = [spec.identity()]
    perms += [match_weights(spec, states[0], state, seed=seed).perms for state in states[1:]]
    if len(states) <= 2:
        return perms
    generator = torch.Generator().manual_seed(seed)
    members = voting_members(spec, states[0])
    reached = -torch.inf
    for pass_ in range(max_passes):
        total = _sum(spec, members, states, perms)
        square = sum(float(tensor.square().sum(dtype=torch.float64)) for tensor in total.values())
        assert square >= reached - 1e-5 * abs(reached), f"the objective fell from {reached} to {square}"
        reached, gained = square, False
        for model in torch.randperm(len(states), generator=generator).tolist():
            _add(total, spec, members, states[model], perms[model], -1)
            grams = Grams(spec, {**states[model], **total}, states[model])
            start = sum(grams.inner(perms[model]).values())
            better, gain = descend(grams, perms[model], seed=seed + pass_)
            if gain > 0:
                check_gain(grams, start, gain, sum(grams.inner(better).values()))
                perms[model], gained = better, True
            del grams
            _add(total, spec, members, states[model], perms[model], 1)
        if not gained:
            break
    home = spec.invert(perms[0])
    return [spec.compose(one, home) for one in perms]


def _sum(
    spec: PermutationSpec,
    members: Mapping[str, tuple[Pair, ...]],
    states: Sequence[Mapping[str, Tensor]],
    perms: Sequence[Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Σᵢ π_i(A_i) over the tensors that vote, made anew so that rounding does not pile up."""
    double = any(state[name].dtype == torch.float64 for state in states for name in members)
    dtype = torch.float64 if double else torch.float32
    total = {name: torch.zeros_like(states[0][name], dtype=dtype) for name in members}
    for state, one in zip(states, perms, strict=True):
        _add(total, spec, members, state, one, 1)
    return total


def _add(
    total: Mapping[str, Tensor],
    spec: PermutationSpec,
    members: Mapping[str, tuple[Pair, ...]],
    state: Mapping[str, Tensor],
    perms: Mapping[str, Tensor],
    sign: int,
) -> None:
    """Add ±π(A) to a sum, tensor by tensor."""
    for name, tensor in total.items():
        moved = permute_pairs(spec, state[name].detach(), members[name], perms)
        tensor.add_(moved.to(tensor.device, tensor.dtype), alpha=sign)
