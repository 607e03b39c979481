"""How alike the units of two models are by their weights: grams that are kept, and brought up to date where needed.

A term of a group's similarity (`dimat.align.terms`) is the gram rows(A)·rows(π(B))ᵀ of its tensor, in which π permutes
what sits beside the units. When a group beside changes the order of some units, only their columns change:

    s += A[:, U] · (B[:, new(U)] − B[:, old(U)])ᵀ   over the entries U whose unit is another one now,

which costs |U| / n of a gram. That is what makes late sweeps nearly free. The sums are kept as long as they take no
more memory than one model; beyond that, the largest are made anew each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dimat.align.groups import PermutationSpec
from dimat.align.solve import part_order
from dimat.align.terms import Covered, Pair, Term, find_evidence
from dimat.align.units import Axis, Group, permute_axis, unit_rows
from dimat.errors import AlignmentError

Indices = dict[int, Tensor]
"""Dimension -> which entry of the other model stands where, int64."""

_PIECE = 1 << 18
"""Entries that are summed up at a time, so that sums in float64 take no memory to speak of."""


class Grams:
    """Two state dicts, cut down to the trained tensors that can move, and the similarities of their units.

    Attributes:
        a: the reference, by tensor name; b: the other model. float64 when either model is, else float32.
        members: tensor name -> the (group, axis) pairs that sit in it, for the tensors that vote.
        evidence: group name -> the terms of its similarity.
        bound: tensor name -> ‖A_t‖·‖B_t‖, which no permutation can exceed.

    Raises:
        SchemaError: a state dict is not of the spec's architecture; the message names the first tensor that differs.
        AlignmentError: a weight is not finite.
    """

    def __init__(self, spec: PermutationSpec, reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
        for state in (reference, other):
            spec.check_state(state)
        self.spec = spec
        self.members = voting_members(spec, reference)
        double = any(state[name].dtype == torch.float64 for state in (reference, other) for name in self.members)
        self.dtype = torch.float64 if double else torch.float32
        self.a = {name: _wide(reference[name], name, self.dtype) for name in self.members}
        self.b = {name: _wide(other[name], name, self.dtype).to(self.a[name].device) for name in self.members}
        self.bound = {name: float(self.a[name].norm()) * float(self.b[name].norm()) for name in self.members}
        shapes = {name: tuple(tensor.shape) for name, tensor in self.a.items()}
        self.evidence = {group.name: find_evidence(spec, self.members, shapes, group.name) for group in spec.groups}
        self._kept = self._affordable()
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._seen: dict[str, dict[Term, Indices]] = {}

    def tensors_of(self, name: str) -> list[str]:
        """The tensors in which a group votes."""
        return list(dict.fromkeys(axis.tensor for axis in self.spec.by_name[name].axes if axis.tensor in self.members))

    def affected_by(self, name: str) -> set[str]:
        """The groups whose similarities change when this group's permutation does; itself, when it meets itself."""
        mine = set(self.tensors_of(name))
        return {
            other
            for other, evidence in self.evidence.items()
            if any(group == name for term in evidence.terms for group, _ in term.beside) or mine & set(evidence.crossed)
        }

    def inner(self, perms: Mapping[str, Tensor], tensors: Iterable[str] | None = None) -> dict[str, float]:
        """⟨A_t, π(B_t)⟩ by tensor (by default all that vote), summed in float64."""
        found = {}
        for name in self.members if tensors is None else tensors:
            pair = (self.a[name], self.permuted(name, self.members[name], perms))
            pieces = (torch.split(tensor.reshape(-1), _PIECE) for tensor in pair)
            found[name] = sum(float((one * two).double().sum()) for one, two in zip(*pieces, strict=True))
        return found

    def rounding(self, tensors: Iterable[str]) -> float:
        """What rounding may do to the sum of ⟨A_t, π(B_t)⟩ over `tensors`: a gain of less is none."""
        return 8 * torch.finfo(self.dtype).eps * sum(self.bound[name] for name in tensors)

    def permuted(self, tensor: str, pairs: Iterable[Pair], perms: Mapping[str, Tensor]) -> Tensor:
        """The other model's tensor, with the axes in `pairs` permuted."""
        return permute_pairs(self.spec, self.b[tensor], pairs, perms)

    def linear(self, name: str, perms: Mapping[str, Tensor], terms: Iterable[Term] | None = None) -> dict[int, Tensor]:
        """Similarity by part, from what is linear in the group's permutation; not to be written to.

        With `terms`, only those are brought up to date; what an earlier call has added stays in the sum.
        """
        group = self.spec.by_name[name]
        sums, seen = self._sums.setdefault(name, {}), self._seen.setdefault(name, {})
        chosen = self.evidence[name].terms if terms is None else tuple(terms)
        for term in chosen:
            if term.by_index:
                self._bring_up_to_date(sums, group, term, seen, perms)
        fresh = [term for term in chosen if not term.by_index]
        if fresh:
            sums = {part: total.clone() for part, total in sums.items()}
        for term in fresh:
            tensor = term.axis.tensor
            b = self.permuted(tensor, term.beside, perms)
            _add_gram(sums, _without(self.a[tensor], term.covered), b, term.axis, group)
        if name not in self._kept:
            del self._sums[name], self._seen[name]
        return sums

    def crossed(self, name: str, perms: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """The same, from tensors that hold the group twice: each axis in turn, with the others in their current order.

        It is a derivative at `perms`. Units of the other model keep their numbers, as in `linear`.
        """
        group, sums = self.spec.by_name[name], dict[int, Tensor]()
        for tensor, own in self.evidence[name].crossed.items():
            b = self.permuted(tensor, self.members[tensor], perms)
            for axis in own:
                _add_gram(sums, self.a[tensor], b, axis, group)
        for part, gram in sums.items():
            back = torch.argsort(part_order(group, perms[name], part))
            sums[part] = gram.index_select(1, back.to(gram.device))
        return sums

    def _bring_up_to_date(
        self, sums: dict[int, Tensor], group: Group, term: Term, seen: dict[Term, Indices], perms: Mapping[str, Tensor]
    ) -> None:
        axis = term.axis
        a, b = self.a[axis.tensor], self.b[axis.tensor]
        new, old = self._indices(term, perms), seen.get(term)
        changed = [d for d, index in new.items() if old is None or not torch.equal(index, old[d])]
        seen[term] = new
        if old is None:
            _add_gram(sums, _without(a, term.covered), _taken(b, new), axis, group)
        elif len(changed) == 1 and changed[0] not in _own_dimensions(axis):
            [d] = changed
            moved = torch.nonzero(new[d] != old[d]).squeeze(1)
            here = _without(a, term.covered).index_select(d, moved.to(a.device))
            there = _taken(b, {**new, d: new[d][moved]}).sub_(_taken(b, {**new, d: old[d][moved]}))
            _add_gram(sums, here, there, axis, group)
        elif changed:
            _add_gram(sums, _without(a, term.covered), _taken(b, new) - _taken(b, old), axis, group)

    def _indices(self, term: Term, perms: Mapping[str, Tensor]) -> Indices:
        """What the permutations beside do to each dimension."""
        found: Indices = {}
        for name, axis in term.beside:
            d, length = axis.dimension, self.a[axis.tensor].shape[axis.dimension]
            flat = replace(axis, dimension=0, outer=None if axis.outer is None else (0, axis.outer[1]))
            found[d] = permute_axis(found.get(d, torch.arange(length)), flat, self.spec.by_name[name], perms[name])
        return found

    def _affordable(self) -> set[str]:
        """The groups whose sums are kept: the smallest ones, up to the size of a model."""
        sizes = {
            name: sum(self.spec.by_name[name].num_units(part) ** 2 for part in {term.axis.part for term in found.terms})
            for name, found in self.evidence.items()
        }
        left, kept = sum(tensor.numel() for tensor in self.a.values()), set()
        for name in sorted(sizes, key=lambda one: (sizes[one], one)):
            left -= sizes[name]
            if left >= 0:
                kept.add(name)
        return kept


def voting_members(spec: PermutationSpec, state: Mapping[str, Tensor]) -> dict[str, tuple[Pair, ...]]:
    """The spec's members without buffers, which live on another scale and move along, and without integers."""
    buffers = {info.name for info in spec.tensors if not info.trained}
    return {
        name: pairs for name, pairs in spec.members.items() if name not in buffers and state[name].is_floating_point()
    }


def permute_pairs(spec: PermutationSpec, tensor: Tensor, pairs: Iterable[Pair], perms: Mapping[str, Tensor]) -> Tensor:
    """`tensor` with each axis in `pairs` in the order of its group."""
    for name, axis in pairs:
        tensor = permute_axis(tensor, axis, spec.by_name[name], perms[name])
    return tensor


def _add_gram(sums: dict[int, Tensor], a: Tensor, b: Tensor, axis: Axis, group: Group) -> None:
    """Add rows(a)·rows(b)ᵀ to the sum of the axis's part."""
    one, two = unit_rows(a, axis.place, group), unit_rows(b, axis.place, group)
    if axis.part in sums:
        sums[axis.part].addmm_(one, two.T)
    else:
        sums[axis.part] = one @ two.T


def _taken(tensor: Tensor, indices: Indices) -> Tensor:
    """`tensor` indexed along several dimensions, the shortest index first; the tensor itself without any."""
    for d in sorted(indices, key=lambda d: len(indices[d]) / tensor.shape[d]):
        tensor = tensor.index_select(d, indices[d].to(tensor.device))
    return tensor


def _without(tensor: Tensor, covered: Covered) -> Tensor:
    """`tensor` with zeros where axes of parts speak."""
    if covered:
        tensor = tensor.clone()
        for dimension, entries in covered:
            tensor.index_fill_(dimension, entries.to(tensor.device), 0.0)
    return tensor


def _own_dimensions(axis: Axis) -> set[int]:
    return {axis.dimension} | ({axis.outer[0]} if axis.outer is not None else set())


def _wide(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise AlignmentError(f"tensor {name!r} holds NaN or Inf: it cannot be matched")
    return tensor.detach().to(dtype)
