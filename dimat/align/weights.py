"""Weight matching: permute the other model's weights as close to the reference as coordinate descent finds.

Git Re-Basin (Ainsworth, Hayase, Srinivasa 2022, arXiv 2209.04836) maximises

    ⟨A, π(B)⟩ = Σ_t ⟨A_t, π(B_t)⟩   over the permutations π of all groups, t over the trained tensors,

which is the same as minimising ‖A − π(B)‖². It couples groups through the tensors they share; with all groups but one
held, it is a linear assignment. A group is solved again only when a group that shares a tensor with it has changed.
The objective never falls, so the descent ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dimat.align.groups import PermutationSpec
from dimat.align.matching import GroupMatch, Matching
from dimat.align.solve import best_permutation, total_similarity
from dimat.align.units import BLOCKS, Axis, Group, permute_axis, unit_rows
from dimat.errors import AlignmentError

_TIE = 1e-9
"""Bonus of the identity, as a share of a typical similarity: it decides between equal pairings only."""


def weight_matching(
    spec: PermutationSpec, reference: Mapping[str, Tensor], other: Mapping[str, Tensor], *, seed: int = 0
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
    return match_weights(spec, reference, other, seed=seed).perms


def match_weights(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    *,
    seed: int = 0,
    max_sweeps: int = 100,
) -> Matching:
    """Coordinate descent over the groups, from the better of two starts.

    The starts are the identity and one pass that begins at the groups beside the fixed inputs and outputs and goes on
    to those whose neighbours are placed, looking at tensors only when all their other axes are placed.

    Args:
        spec: the groups of both models.
        reference: the state dict whose basis is kept.
        other: the state dict to permute.
        seed: of the order in which groups are visited.
        max_sweeps: an upper bound; the descent usually ends within ten.

    Returns:
        A `Matching`; the objective is ⟨A, π(B)⟩ over the trained tensors that can move (running statistics, which live
        on another scale, move along but do not vote).

    Raises:
        SchemaError: a state dict is not of the spec's architecture; the message names the first tensor that differs.
        AlignmentError: a weight is not finite.
    """
    problem = _Problem(spec, reference, other)
    identity = spec.identity()
    perms = max((identity, problem.outside_in()), key=problem.objective)  # the first wins a draw
    generator = torch.Generator().manual_seed(seed)
    names = [group.name for group in spec.groups]
    waiting = set(names)
    for _ in range(max_sweeps):
        order = [names[i] for i in torch.randperm(len(names), generator=generator).tolist() if names[i] in waiting]
        if not order:
            break
        for name in order:
            waiting.discard(name)
            better = problem.improved(name, perms)
            if better is not None:
                perms = perms | {name: better}
                waiting |= problem.neighbours[name]
    return problem.matching(perms)


class _Problem:
    """The two models, cut down to the trained tensors that can move."""

    def __init__(self, spec: PermutationSpec, reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
        for state in (reference, other):
            spec.check_state(state)
        self.spec = spec
        buffers = {info.name for info in spec.tensors if not info.trained}
        self.members = {
            name: pairs
            for name, pairs in spec.members.items()
            if name not in buffers and reference[name].is_floating_point()
        }
        self.a = {name: _wide(reference[name], name) for name in self.members}
        self.b = {name: _wide(other[name], name) for name in self.members}
        self.neighbours: dict[str, set[str]] = {group.name: set() for group in spec.groups}
        self.twice: set[str] = set()  # groups with two axes in one tensor: not linear in their permutation
        for pairs in self.members.values():
            inside = [group for group, _ in pairs]
            for group in inside:
                self.neighbours[group] |= {one for one in inside if one != group}
                if inside.count(group) > 1:
                    self.twice.add(group)

    def axes(self, group: Group) -> list[Axis]:
        """The group's axes that vote."""
        return [axis for axis in group.axes if axis.tensor in self.members]

    def similarity(self, group: Group, axes: Iterable[Axis], perms: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """s_ij by part: what the objective gains when unit j of the other model stands at position i, all else held.

        A tensor that carries parts of the group's blocks speaks for the parts; its axis of blocks only moves along.
        """
        chosen = list(axes)
        with_parts = {axis.tensor for axis in chosen if axis.part != BLOCKS}
        found: dict[int, Tensor] = {}
        for axis in chosen:
            if axis.part == BLOCKS and axis.tensor in with_parts:
                continue
            b = self.b[axis.tensor]
            for name, beside in self.members[axis.tensor]:
                if beside != axis and not (name == group.name and beside.part == BLOCKS and axis.part != BLOCKS):
                    b = permute_axis(b, beside, self.spec.by_name[name], perms[name])
            rows = [unit_rows(t, axis.place, group) for t in (self.a[axis.tensor], b)]
            gram = (rows[0] @ rows[1].T).to("cpu", torch.float64)
            found[axis.part] = found[axis.part] + gram if axis.part in found else gram
        return found

    def outside_in(self) -> dict[str, Tensor]:
        """The start that reads only what is certain: groups beside fixed axes first, then from placed ones onwards."""
        perms = self.spec.identity()
        placed: set[str] = set()
        while len(placed) < len(perms):
            known = {
                group.name: [
                    axis
                    for axis in self.axes(group)
                    if all(name in placed for name, beside in self.members[axis.tensor] if beside != axis)
                ]
                for group in self.spec.groups
                if group.name not in placed
            }
            evidence = {name: sum(self.a[axis.tensor].numel() for axis in axes) for name, axes in known.items()}
            name = max(evidence, key=lambda one: evidence[one])
            group = self.spec.by_name[name]
            perms[name] = _solve(group, self.similarity(group, known[name], perms))
            placed.add(name)
        return perms

    def improved(self, name: str, perms: Mapping[str, Tensor]) -> Tensor | None:
        """The best permutation of one group with the others held, or None when that gains nothing."""
        group, old = self.spec.by_name[name], perms[name]
        axes = self.axes(group)
        similarity = self.similarity(group, axes, perms)
        new = _solve(group, similarity)
        here = total_similarity(group, similarity, old)
        gain = total_similarity(group, similarity, new) - here
        size = sum(float(matrix.abs().sum()) for matrix in similarity.values())
        if name in self.twice:
            # The similarity holds the group's second axis at its old order, so its gain is a guess: weigh the tensors.
            tensors = {axis.tensor for axis in axes}
            gain = self.objective({**perms, name: new}, tensors) - self.objective(perms, tensors)
        else:
            assert gain >= -1e-9 * size, "the assignment lowered the objective it maximises"
        return new if gain > 1e-7 * abs(here) else None

    def objective(self, perms: Mapping[str, Tensor], tensors: Iterable[str] | None = None) -> float:
        """⟨A, π(B)⟩ over `tensors`, by default all that vote."""
        total = 0.0
        for name in sorted(self.members if tensors is None else tensors):
            b = self.b[name]
            for group, axis in self.members[name]:
                b = permute_axis(b, axis, self.spec.by_name[group], perms[group])
            total += float(torch.sum(self.a[name] * b, dtype=torch.float64))
        return total

    def matching(self, perms: dict[str, Tensor]) -> Matching:
        """The answer with its evidence."""
        identity, stats = self.spec.identity(), []
        for group in self.spec.groups:
            tensors = {axis.tensor for axis in self.axes(group)}
            moved = float((perms[group.name] != identity[group.name]).double().mean())
            before, after = (self.objective(some, tensors) for some in (identity, perms))
            stats.append(GroupMatch(group.name, group.size, moved, before, after))
        return Matching(perms, tuple(stats), self.objective(identity), self.objective(perms))


def _solve(group: Group, similarity: Mapping[int, Tensor]) -> Tensor:
    scale = sum(float(matrix.abs().mean()) for matrix in similarity.values())
    return best_permutation(group, similarity, stickiness=_TIE * scale)


def _wide(tensor: Tensor, name: str) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise AlignmentError(f"tensor {name!r} holds NaN or Inf: it cannot be matched")
    value = tensor.detach()
    return value if value.dtype == torch.float64 else value.to(torch.float32)
