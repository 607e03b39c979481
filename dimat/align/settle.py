"""What is left of the freedom at the end of a trace: which atoms move, which follow which, and where each stands.

An inner atom D may have another order inside of every unit of an outer atom H (the units inside of attention heads)
when that is so at every place: each tensor in which D stands must have H exactly once beside it. That goes for what
operators pass through inside as well: a matrix product is equivariant when what is left of each operand is, without
the dimension that is summed over. Where it fails, D has one order for all of H, which is the same symmetry with less
freedom. D follows one atom at most; whom it follows follows nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dimat.align.atoms import Cause, Dim
from dimat.align.axes import AxisTable
from dimat.align.units import Place

_COLLAPSED = Cause("entries that share their order", "")


@dataclass(frozen=True, slots=True)
class Spot:
    """One place where an atom stands in a tensor.

    Attributes:
        atom: which.
        dimension, start: as in `Place`.
        stride: distance of two consecutive units.
        loops: (atom, count, stride) of the others in the same dimension and segment, outermost first.
        beside: (atom, dimension, stride) of those in other dimensions that are read whole.
        whole: the dimension has no other segments.
        reachable: False when the units stand at one entry of another dimension only, which no `Place` can say.
    """

    atom: int
    dimension: int
    start: int
    stride: int
    loops: tuple[tuple[int, int, int], ...]
    beside: tuple[tuple[int, int, int], ...]
    whole: bool
    reachable: bool = True

    def companions(self) -> Counter[int]:
        """How often every other atom stands in this tensor at an index that is known here."""
        return Counter([loop[0] for loop in self.loops] + [other[0] for other in self.beside])

    def place(self, part: int, leader: int | None) -> Place:
        """The spot as a `Place`: of blocks or units when there is no `leader`, else of a part that follows it."""
        if leader is None:
            rest = None if self.whole else tuple((count, stride) for _, count, stride in self.loops)
            return Place(self.dimension, self.stride, self.start, rest)
        rest = tuple((count, stride) for atom, count, stride in self.loops if atom != leader)
        inside = [stride for atom, _, stride in self.loops if atom == leader]
        outside = [(dimension, stride) for atom, dimension, stride in self.beside if atom == leader]
        outer = (self.dimension, inside[0]) if inside else outside[0]
        return Place(self.dimension, self.stride, self.start, rest, part, outer)


def find_leaders(
    table: AxisTable, parameters: Iterable[tuple[Dim, ...]], passed: Iterable[tuple[Dim, ...]]
) -> dict[int, int]:
    """Atom -> the atom that it follows, for those that still follow one; families that cannot be kept are given up.

    Args:
        table: the atoms.
        parameters: dimensions of the tensors that permutations will be applied to.
        passed: dimensions of all else that the pass goes through, inside of operators too.
    """
    stored = sorted(set(parameters))
    seen = sorted({*stored, *passed})
    while _collapse_crossed(table, stored) or _collapse_lonely(table, seen):
        pass
    allowed: dict[int, set[int]] = {}

    def only(atom: int, companions: Counter[int]) -> None:
        if atom not in allowed:
            allowed[atom] = table.may_follow(atom)
        allowed[atom] = {other for other in allowed[atom] if companions[other] == 1}

    for dims in seen:
        for spot in spots(table, dims):
            only(spot.atom, spot.companions())
    leaders: dict[int, int] = {}
    for atom in sorted(allowed):
        roots = [other for other in sorted(allowed[atom]) if other not in leaders]
        if roots and table.movable(atom):
            # Outer atoms are made before inner ones, so the first is the outermost; one that moves gives more freedom.
            leaders[atom] = next((other for other in roots if table.movable(other)), roots[0])
    return {atom: leader for atom, leader in leaders.items() if leader not in leaders}


def spots(table: AxisTable, dims: tuple[Dim, ...]) -> Iterator[Spot]:
    """Every place where an atom stands in a tensor with these dimensions."""
    for branch in _branches(table, [_Row(0, _strided(table, dim)) for dim in dims]):
        rows = [list(_segments(table, row)) for row in branch]
        for dimension, several in enumerate(rows):
            others = tuple(
                (atom, where, stride)
                for where, one in enumerate(rows)
                if where != dimension and len(one) == 1 and not one[0].picked
                for atom, stride in one[0].entries
            )
            for row in several:
                for at, (atom, stride) in enumerate(row.entries):
                    loops = tuple(
                        (other, table.size(other), step) for i, (other, step) in enumerate(row.entries) if i != at
                    )
                    whole = len(several) == 1 and not row.picked
                    yield Spot(atom, dimension, row.start, stride, loops, others, whole, not row.elsewhere)


@dataclass(frozen=True, slots=True)
class _Row:
    """One dimension, or a segment of it: where it starts, and (atom, stride) of its factors, outermost first."""

    start: int
    entries: tuple[tuple[int, int], ...]
    picked: bool = False
    """Whether one entry of an atom was picked, so that the row is not all of the dimension."""
    elsewhere: bool = False
    """Whether it holds members of a family whose entry was picked in another dimension."""


def _strided(table: AxisTable, dim: Dim, unit: int = 1) -> tuple[tuple[int, int], ...]:
    entries: list[tuple[int, int]] = []
    for atom in reversed(table.atoms(dim)):
        entries.append((atom, unit))
        unit *= table.size(atom)
    return tuple(reversed(entries))


def _branches(table: AxisTable, rows: list[_Row]) -> Iterator[list[_Row]]:
    """The tensor once for each entry of an atom that families stand over, the members in place of the families."""
    present = Counter(atom for row in rows for atom, _ in row.entries)
    over = _family_over(table, present)
    if over is None:
        yield rows
        return
    for index in range(table.size(over)):
        yield from _branches(table, [_picked(table, row, over, index) for row in rows])


def _family_over(table: AxisTable, present: Mapping[int, int]) -> int | None:
    """An atom that is present once, and over which a family among those present stands."""
    families = (table.family(atom) for atom in present)
    return next((family[0] for family in families if family is not None and present.get(family[0]) == 1), None)


def _picked(table: AxisTable, row: _Row, over: int, index: int) -> _Row:
    start, picked = row.start, row.picked
    entries: list[tuple[int, int]] = []
    for atom, stride in row.entries:
        family = table.family(atom)
        if atom == over:
            start, picked = start + index * stride, True
        elif family is not None and family[0] == over:
            entries.extend(_strided(table, (family[1][index],), stride))
        else:
            entries.append((atom, stride))
    here = any(atom == over for atom, _ in row.entries)
    changed = len(entries) != len(row.entries) or any(one not in row.entries for one in entries)
    return _Row(start, tuple(entries), picked, row.elsewhere or (changed and not here))


def _segments(table: AxisTable, row: _Row) -> Iterator[_Row]:
    """The row once for each choice of segments in its factors, and of members of the families inside."""
    for at, (atom, stride) in enumerate(row.entries):
        parts = table.segments(atom)
        if parts is not None:
            offset = 0
            for part in parts:
                inside = _strided(table, part, stride)
                yield from _segments(
                    table,
                    _Row(
                        row.start + offset * stride,
                        row.entries[:at] + inside + row.entries[at + 1 :],
                        row.picked,
                        row.elsewhere,
                    ),
                )
                offset += table.length(part)
            return
    present = Counter(atom for atom, _ in row.entries)
    over = _family_over(table, present)  # a family whose product stands in a segment: packed keys and values
    if over is None:
        yield row
        return
    for index in range(table.size(over)):
        yield from _segments(table, _picked(table, row, over, index))


def _collapse_lonely(table: AxisTable, tensors: Sequence[tuple[Dim, ...]]) -> bool:
    """Give up the families that stand somewhere without the atom they are over; whether there were any."""
    lonely: set[int] = set()
    for dims in tensors:
        lonely.update(spot.atom for spot in spots(table, dims) if table.family(spot.atom) is not None)
    for atom in sorted(lonely):
        table.collapse(atom, _COLLAPSED)
    return bool(lonely)


def _collapse_crossed(table: AxisTable, tensors: Iterable[tuple[Dim, ...]]) -> bool:
    """Give up a family that stands in one dimension of a tensor over an atom in another one; whether there was any.

    Its members sit at one entry of that other dimension, which no `Place` of a parameter can say.
    """
    for dims in tensors:
        inside = [set(_walk(table, dim)) for dim in dims]
        for atoms in inside:
            for atom in sorted(atoms):
                family = table.family(atom)
                if family is not None and family[0] not in atoms and any(family[0] in other for other in inside):
                    table.collapse(atom, _COLLAPSED)
                    return True
    return False


def _walk(table: AxisTable, dim: Dim) -> Iterator[int]:
    """Every atom inside the dimension, with those that are refined into segments or a family."""
    for atom in table.atoms(dim):
        yield atom
        family = table.family(atom)
        for part in (*(table.segments(atom) or ()), *([] if family is None else [family[1]])):
            yield from _walk(table, part)
