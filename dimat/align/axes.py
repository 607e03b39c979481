"""Symbolic axes: which tensor dimensions carry the same units, kept in a union-find whose atoms can be refined.

A dimension is a product of *atoms*, outermost first: a convolution's channels are one atom (C), after `flatten` they
are (C, H, W). An operator *ties* the dimensions that it matches entry by entry (a linear layer's input with the
columns of its weight), which unites their atoms, or *freezes* what it cannot permute. Where the units of an atom turn
out to be of several kinds, the atom is refined, once for all places where it stands:

- into a **product** (outer, inner), where a reshape takes it apart: heads and the units inside of each;
- into **segments**, where it is cut or was joined: the rows of a packed q, k, v; the channels after `cat`;
- into a **family** over a frozen atom T, where entry t of T is picked: of (3, heads, units) the t-th has its own
  order of heads.

Inner atoms may have another order inside of every outer unit. Which atoms an atom may *follow* so is noted when it
arises; `dimat.align.settle` finds out which of that is left at the end. A dimension of length one has no atoms: it has
no order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dimat.align.atoms import Atom, Atoms, Cause, Dim

_LARGEST_FAMILY = 256
"""Members cost memory each; whoever picks one of more entries than this picks tokens, not q, k and v."""


class AxisTable(Atoms):
    """What operators do to the atoms. Tying and freezing only ever lose freedom, so their order does not matter."""

    def tie(self, one: Dim, other: Dim, cause: Cause) -> None:
        """Let two dimensions of equal length move together only; `cause` answers for what cannot be matched."""
        left, right = list(reversed(self.atoms(one))), list(reversed(self.atoms(other)))
        while left and right:
            a, b = self.atoms((left.pop(),)), self.atoms((right.pop(),))
            if len(a) > 1 or len(b) > 1:  # an atom that occurs twice was refined meanwhile
                left.extend(reversed(a))
                right.extend(reversed(b))
                continue
            large, small = self.size(a[0]), self.size(b[0])
            if large == small:
                self._unite(a[0], b[0], cause)
            elif self._split_larger(a[0], b[0], cause):
                left.append(a[0])
                right.append(b[0])
            else:
                self.freeze((*a, *left, *b, *right), cause)
                return
        assert not left and not right, "dimensions of unequal length were tied"

    # ---- taking apart and putting together

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
                elif size % need == 0 and self._split(parts[0], need, cause):
                    rest.append(parts[0])
                else:
                    for dim in dims:
                        self.freeze(dim, cause)
                    return [self.fixed(length, cause) for length in shape]
            out.append(tuple(taken))
        return out

    def join(self, dims: Sequence[Dim]) -> Dim:
        """One dimension after the other, as `cat` puts them."""
        if len(dims) == 1:
            return dims[0]
        parts = self._flat(dims)  # else a hundred joins, one after the other, would be a hundred levels deep
        return self._new(Atom(sum(self.length(dim) for dim in parts), segments=tuple(parts)))

    def stack(self, dims: Sequence[Dim], over: Dim, cause: Cause) -> Dim:
        """What stands in place of `dims` when a new dimension `over`, which has an order, chooses among them.

        They form a family, member by member; if they are made up of different factors they are tied instead.
        """
        rows = [self.atoms(dim) for dim in dims]
        if len(set(rows)) == 1:
            return dims[0]
        sizes = {tuple(self.size(atom) for atom in row) for row in rows}
        if len(sizes) > 1 or self.atoms(over) != over or len(over) != 1:
            for other in dims[1:]:
                self.tie(dims[0], other, cause)
            return dims[0]
        out: list[int] = []
        for size, members in zip(*sizes, zip(*rows, strict=True), strict=True):
            same = len(set(members)) == 1
            out.extend(members[:1] if same else self._new(Atom(size, family=(over[0], members))))
        return tuple(out)

    def cut(self, dim: Dim, start: int, stop: int, cause: Cause) -> Dim:
        """The entries from `start` to `stop`; what is cut becomes segments that move each for itself."""
        if (start, stop) == (0, self.length(dim)):
            return dim
        head, *inner = self.atoms(dim) or (None,)
        block = self.length(tuple(inner))
        if head is None or stop <= start or start % block or stop % block:
            self.freeze(dim, cause)
            return self.fixed(stop - start, cause)
        return (*self._slice(head, start // block, stop // block, cause), *inner)

    def select(self, dims: Sequence[Dim], at: int, index: int, cause: Cause) -> list[Dim]:
        """The dimensions without the one at `at`, of which one entry is picked; that dimension has an order then."""
        picked = self.atoms(dims[at])
        rest = [dim for i, dim in enumerate(dims) if i != at]
        if len(picked) != 1 or not self._is_plain(picked[0]):
            self.freeze(dims[at], cause)
            return rest
        followers = [
            atom
            for dim in rest
            for atom in self.atoms(dim)
            if self._is_plain(atom) and self._atoms[atom].movable and picked[0] in self.may_follow(atom)
        ]
        if self.size(picked[0]) > _LARGEST_FAMILY:
            followers = []
        # To tell q, k and v apart costs nothing: only a dimension whose units stand alone is reported as frozen.
        self.freeze(dims[at], None if followers else cause)
        for atom in dict.fromkeys(followers):
            members = tuple(self._new(Atom(self.size(atom)))[0] for _ in range(self.size(picked[0])))
            self._atoms[atom].family = (picked[0], members)
        for atom in dict.fromkeys(followers):
            self._inherit(atom, picked[0])
        return [tuple(self._member(atom, picked[0], index) for atom in self.atoms(dim)) for dim in rest]

    def collapse(self, atom: int, cause: Cause) -> None:
        """Give up a family: all its members have one order."""
        entry = self._atoms[self._find(atom)]
        if entry.family is not None:
            members, entry.family = entry.family[1], None
            for member in members:
                self.tie((atom,), (member,), cause)

    # ---- inside

    def _unite(self, one: int, other: int, cause: Cause) -> None:
        """Two atoms of one size become one; what is refined stays, and a plain one takes over its refinement."""
        keep, drop = sorted((self._find(one), self._find(other)), key=lambda atom: (self._is_plain(atom), atom))
        if keep == drop:
            return
        a, b = self._atoms[keep], self._atoms[drop]
        if not a.movable and not b.movable and self._is_plain(keep):
            # Neither moves, and they need not count the same things (one may hold the other's entries turned round):
            # units that have an order of their own inside of one must not be looked for inside of the other.
            self.freeze((keep,), b.cause)
            self.freeze((drop,), a.cause)
            return
        mine, theirs = self.family(keep), self.family(drop)
        alike = self._is_plain(drop) or (mine is not None and theirs is not None and mine[0] == theirs[0])
        for atom, stays in ((keep, alike and not self._within(keep, drop)), (drop, alike)):
            if not stays and self._atoms[atom].family is not None:
                self.collapse(atom, cause)
                self.tie((keep,), (drop,), cause)
                return
        if mine is not None and theirs is not None:
            for one_member, other_member in zip(mine[1], theirs[1], strict=True):
                self.tie((one_member,), (other_member,), cause)
        elif a.segments is not None and b.segments is not None:
            self._tie_segments(a.segments, b.segments, cause)
        elif not b.movable:
            self.freeze((keep,), b.cause)
        if self._is_plain(keep):
            a.may_follow |= b.may_follow
        else:
            for leaf in self.leaves((keep,)):
                self._atoms[leaf].may_follow |= b.may_follow
        keep, drop = self._find(keep), self._find(drop)
        if keep != drop:
            self._parent[drop] = keep

    def _within(self, family: int, atom: int) -> bool:
        """Whether `atom` is a member of the family, or of a family among its members."""
        found = self._atoms[self._find(family)].family
        return found is not None and any(
            self._find(member) == atom or self._within(member, atom) for member in found[1]
        )

    def _tie_segments(self, one: Sequence[Dim], other: Sequence[Dim], cause: Cause) -> None:
        left, right = list(reversed(self._flat(one))), list(reversed(self._flat(other)))
        while left and right:
            a, b = left.pop(), right.pop()
            n, m = self.length(a), self.length(b)
            if n > m:
                left.append(self.cut(a, m, n, cause))
                a = self.cut(a, 0, m, cause)
            elif m > n:
                right.append(self.cut(b, n, m, cause))
                b = self.cut(b, 0, n, cause)
            self.tie(a, b, cause)

    def _flat(self, segments: Sequence[Dim]) -> list[Dim]:
        """Segments of segments in one row."""
        out: list[Dim] = []
        for segment in segments:
            atoms = self.atoms(segment)
            inner = self._atoms[atoms[0]].segments if len(atoms) == 1 else None
            out.extend([segment] if inner is None else self._flat(inner))
        return out

    def _split_larger(self, one: int, other: int, cause: Cause) -> bool:
        """Take the smaller atom's units out of the larger; False when they do not go into it."""
        large, small = sorted((one, other), key=self.size, reverse=True)
        return self.size(large) % self.size(small) == 0 and self._split(large, self.size(small), cause)

    def _split(self, atom: int, outer: int, cause: Cause) -> bool:
        """Refine an atom into `outer` times the rest; False when its segments forbid that."""
        entry = self._atoms[atom]
        inner = entry.size // outer
        if entry.family is not None:
            self.collapse(atom, cause)
            return True  # whoever asked looks again
        if entry.segments is None:
            first, second = (
                self._new(Atom(n, entry.movable, entry.cause, may_follow=set(entry.may_follow))) for n in (outer, inner)
            )
            self._atoms[second[0]].may_follow.update(first)
            entry.product = (*first, *second)
            return True
        if any(self.length(segment) % inner for segment in entry.segments):
            return False
        pairs = [self.regroup([one], (self.length(one) // inner, inner), cause) for one in entry.segments]
        for _, unit in pairs[1:]:
            self.tie(pairs[0][1], unit, cause)
        entry.product, entry.segments = (*self.join([first for first, _ in pairs]), *pairs[0][1]), None
        return True

    def _slice(self, atom: int, start: int, stop: int, cause: Cause) -> Dim:
        if (start, stop) == (0, self.size(atom)):
            return (atom,)
        entry = self._atoms[atom]
        if entry.family is not None:
            self.collapse(atom, cause)
            return self.cut((atom,), start, stop, cause)
        if entry.segments is None:
            if not entry.movable:
                return self.fixed(stop - start, entry.cause)
            bounds = sorted({0, start, stop, entry.size})
            entry.segments = tuple(
                self._new(Atom(b - a, may_follow=set(entry.may_follow))) for a, b in pairwise(bounds)
            )
            return entry.segments[bounds.index(start)]
        taken: list[Dim] = []
        offset = 0
        for segment in entry.segments:
            length = self.length(segment)
            first, last = max(start - offset, 0), min(stop - offset, length)
            if first < last:
                taken.append(self.cut(segment, first, last, cause))
            offset += length
        return self.join(taken)

    def _inherit(self, atom: int, over: int) -> None:
        """A family's members follow what the family followed, member by member."""
        entry = self._atoms[atom]
        assert entry.family is not None
        for index, member in enumerate(entry.family[1]):
            others = {other for start in entry.may_follow for other in self.atoms((start,))} - {over}
            self._atoms[member].may_follow = {self._member(other, over, index) for other in others}

    def _member(self, atom: int, over: int, index: int) -> int:
        family = self.family(atom)
        return family[1][index] if family is not None and family[0] == over else atom
