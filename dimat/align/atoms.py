"""The atoms of symbolic axes: a union-find in which an atom may be refined into a product, segments or a family."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Dim = tuple[int, ...]
"""One dimension: its atoms, outermost first."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The operator that froze an atom, and the module in which it was called."""

    operator: str
    module: str


@dataclass(slots=True)
class Atom:
    """What is known of one atom."""

    size: int
    movable: bool = True
    cause: Cause | None = None  # None while frozen: by nature (inputs, outputs, space), not for want of knowledge
    product: Dim | None = None
    segments: tuple[Dim, ...] | None = None
    family: tuple[int, Dim] | None = None  # the atom T, and one atom for each of its entries
    may_follow: set[int] = field(default_factory=set)


class Atoms:
    """All atoms of one trace: how they are made, read and frozen."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._atoms: list[Atom] = []

    def free(self, size: int, follows: Sequence[Dim] = ()) -> Dim:
        """A new dimension that may move: an axis of a parameter, or one along which all entries are alike.

        Inside of every entry of `follows` it may have an order of its own.
        """
        return self._new(Atom(size, may_follow={atom for dim in follows for atom in dim}))

    def fixed(self, size: int, cause: Cause | None = None) -> Dim:
        """A new dimension that stays in order, by nature or because of `cause`."""
        return self._new(Atom(size, movable=False, cause=cause))

    def length(self, dim: Dim) -> int:
        """Number of entries along a dimension."""
        return math.prod(self._atoms[atom].size for atom in dim)

    def atoms(self, dim: Dim) -> Dim:
        """The dimension in its finest known factors, each named by its representative."""
        out: list[int] = []
        stack = list(reversed(dim))
        while stack:
            atom = self._find(stack.pop())
            product = self._atoms[atom].product
            if product is None:
                out.append(atom)
            else:
                stack.extend(reversed(product))
        return tuple(atom for atom in out if self._atoms[atom].size > 1)

    def leaves(self, dim: Dim) -> Iterator[int]:
        """Every atom inside the dimension that is not refined any further, in all segments and family members."""
        for atom in self.atoms(dim):
            entry = self._atoms[atom]
            if entry.segments is not None:
                for segment in entry.segments:
                    yield from self.leaves(segment)
            elif entry.family is not None:
                yield from self.leaves(entry.family[1])
            else:
                yield atom

    def size(self, atom: int) -> int:
        """Number of units of an atom."""
        return self._atoms[atom].size

    def movable(self, atom: int) -> bool:
        """Whether nothing has frozen the atom (one that `leaves` returned)."""
        return self._atoms[atom].movable

    def cause(self, atom: int) -> Cause | None:
        """What froze the atom for want of knowledge, if anything did."""
        return self._atoms[atom].cause

    def segments(self, atom: int) -> tuple[Dim, ...] | None:
        """The dimensions that stand one after the other in a segmented atom, else None."""
        return self._atoms[atom].segments

    def family(self, atom: int) -> tuple[int, Dim] | None:
        """The atom that a family stands over and the family's members, else None."""
        family = self._atoms[atom].family
        return None if family is None else (self._find(family[0]), family[1])

    def may_follow(self, atom: int) -> set[int]:
        """The atoms on which the order inside of `atom` may depend, as far as its origin goes."""
        found: set[int] = set()
        for other in self._atoms[atom].may_follow:
            found.update(self.leaves((other,)))
        return found - {atom}

    def freeze(self, dim: Dim, cause: Cause | None = None) -> None:
        """Keep a dimension in its order; with no `cause` because it lies in its nature."""
        for atom in self.leaves(dim):
            entry = self._atoms[atom]
            if entry.movable:
                entry.movable, entry.cause = False, cause
            elif cause is None:
                entry.cause = None

    # ---- for those who refine

    def _new(self, atom: Atom) -> Dim:
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

    def _is_plain(self, atom: int) -> bool:
        entry = self._atoms[atom]
        return entry.product is None and entry.segments is None and entry.family is None
