"""Symbolic axes: which tensor dimensions carry the same units, kept in a union-find with factors.

A dimension is a product of *atoms*, outermost first: a convolution's channels are one atom (C), after `flatten` they
are (C, H, W). An operator *ties* the dimensions that it matches entry by entry (a linear layer's input with the
columns of its weight), which unites their atoms, or *freezes* what it cannot permute. Where a whole dimension meets a
product, the whole is split into the same factors. A dimension of length one has no atoms: it has no order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Dim = tuple[int, ...]
"""One dimension: its atoms, outermost first."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The operator that froze or split an atom, and the module in which it was called."""

    operator: str
    module: str


@dataclass(slots=True)
class _Atom:
    size: int
    movable: bool = True
    cause: Cause | None = None  # None while frozen: by nature (inputs, outputs, space), not for want of knowledge
    factors: tuple[int, int] | None = None
    split_by: Cause | None = None


class AxisTable:
    """The atoms of one trace. Tying and freezing only ever lose freedom, so their order does not matter."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._atoms: list[_Atom] = []

    def free(self, size: int) -> Dim:
        """A new dimension that may move: an axis of a parameter."""
        return self._new(_Atom(size))

    def fixed(self, size: int, cause: Cause | None = None) -> Dim:
        """A new dimension that stays in order, by nature or because of `cause`."""
        return self._new(_Atom(size, movable=False, cause=cause))

    def length(self, dim: Dim) -> int:
        """Number of entries along a dimension."""
        return math.prod(self._atoms[atom].size for atom in dim)

    def atoms(self, dim: Dim) -> Dim:
        """The dimension in its finest known factors, each named by its representative."""
        out: list[int] = []
        stack = list(reversed(dim))
        while stack:
            atom = self._find(stack.pop())
            factors = self._atoms[atom].factors
            if factors is None:
                out.append(atom)
            else:
                stack.extend(reversed(factors))
        return tuple(atom for atom in out if self._atoms[atom].size > 1)

    def blocks(self, dim: Dim) -> list[tuple[int, int]]:
        """The atoms of a dimension, each with the number of consecutive entries that belong to one of its units."""
        out = []
        block = 1
        for atom in reversed(self.atoms(dim)):
            out.append((atom, block))
            block *= self.size(atom)
        return out[::-1]

    def size(self, atom: int) -> int:
        """Number of units of an atom."""
        return self._atoms[atom].size

    def movable(self, atom: int) -> bool:
        """Whether nothing has frozen the atom (one that `atoms` returned)."""
        return self._atoms[atom].movable

    def cause(self, atom: int) -> Cause | None:
        """What froze the atom for want of knowledge, if anything did."""
        return self._atoms[atom].cause

    def freeze(self, dim: Dim, cause: Cause | None = None) -> None:
        """Keep a dimension in its order; with no `cause` because it lies in its nature."""
        for atom in self.atoms(dim):
            entry = self._atoms[atom]
            if entry.movable:
                entry.movable, entry.cause = False, cause
            elif cause is None:
                entry.cause = None

    def tie(self, one: Dim, other: Dim, cause: Cause) -> None:
        """Let two dimensions of equal length move together only; `cause` answers for what that splits."""
        left, right = list(reversed(self.atoms(one))), list(reversed(self.atoms(other)))
        while left and right:
            a, b = self.atoms((left.pop(),)), self.atoms((right.pop(),))
            if len(a) > 1 or len(b) > 1:  # an atom that occurs twice was split meanwhile
                left.extend(reversed(a))
                right.extend(reversed(b))
                continue
            large, small = self.size(a[0]), self.size(b[0])
            if large == small:
                self._unite(a[0], b[0])
            elif large % small == 0:
                left.extend(reversed(self._split(a[0], small, cause)))
                right.append(b[0])
            elif small % large == 0:
                right.extend(reversed(self._split(b[0], large, cause)))
                left.append(a[0])
            else:
                self.freeze((*a, *left, *b, *right), cause)
                return
        assert not left and not right, "dimensions of unequal length were tied"

    def regroup(self, dims: Sequence[Dim], shape: Sequence[int], cause: Cause) -> list[Dim]:
        """The dimensions after a reshape to `shape`: the same atoms in the same order, dealt anew."""
        rest = [atom for dim in reversed(dims) for atom in reversed(self.atoms(dim))]
        out: list[Dim] = []
        for length in shape:
            taken: list[int] = []
            need = length
            while need > 1:
                parts = self.atoms((rest.pop(),))
                rest.extend(reversed(parts[1:]))
                size = self.size(parts[0])
                if need % size == 0:
                    taken.append(parts[0])
                    need //= size
                elif size % need == 0:
                    first, *others = self._split(parts[0], need, cause)
                    taken.append(first)
                    rest.extend(reversed(others))
                    need = 1
                else:
                    for dim in dims:
                        self.freeze(dim, cause)
                    return [self.fixed(length, cause) for length in shape]
            out.append(tuple(taken))
        return out

    def settle(self) -> None:
        """Freeze atoms that were split into two factors which both still move.

        Heads and the units inside each, or the groups of a grouped convolution, need a permutation of the outer and
        one inner permutation for each: a structure of its own that no plain group can state.
        """
        for atom in self._atoms:
            if atom.factors is not None:
                moving = [part for part in self.atoms(atom.factors) if self._atoms[part].movable]
                if len(moving) > 1:
                    self.freeze(tuple(moving), atom.split_by)

    def _new(self, atom: _Atom) -> Dim:
        if atom.size == 1:
            return ()
        self._parent.append(len(self._parent))
        self._atoms.append(atom)
        return (len(self._parent) - 1,)

    def _find(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def _unite(self, one: int, other: int) -> None:
        keep, drop = sorted((one, other))
        if keep == drop:
            return
        a, b = self._atoms[keep], self._atoms[drop]
        if not b.movable:
            a.cause = b.cause if a.movable or b.cause is None else a.cause
            a.movable = False
        self._parent[drop] = keep

    def _split(self, atom: int, outer: int, cause: Cause) -> Dim:
        entry = self._atoms[atom]
        parts = [_Atom(size, entry.movable, entry.cause) for size in (outer, entry.size // outer)]
        first, second = (self._new(part)[0] for part in parts)
        entry.factors, entry.split_by = (first, second), cause
        return (first, second)
