"""From atoms to groups: which axes move together, by name, and where their activations are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dimat.align.atoms import Dim
from dimat.align.axes import AxisTable
from dimat.align.settle import Spot, find_leaders, spots
from dimat.align.taps import Record, choose_taps
from dimat.align.units import BLOCKS, Axis, Group, Tap


@dataclass(slots=True)
class _Draft:
    """A group in the making: the atom of its blocks or units, and the atoms of the parts inside of each block."""

    atom: int
    parts: list[int] = field(default_factory=list)
    axes: dict[Axis, None] = field(default_factory=dict)  # a set in order
    structure: str = "plain"


def find_groups(
    table: AxisTable,
    members: Mapping[str, tuple[Dim, ...]],
    records: Iterable[Record],
    witnesses: Sequence[tuple[Dim, ...]],
) -> tuple[Group, ...]:
    """The groups among the axes of `members` (entries of the state dict, in its order), with their taps.

    `witnesses` are dimensions of tensors inside of operators, which must be permutable as well.
    """
    records = list(records)
    symbols = {symbol.dims for record in records for symbol in (*record.inputs, *record.outputs)}
    leaders = find_leaders(table, members.values(), [*symbols, *witnesses])
    drafts: dict[int, _Draft] = {}
    for name, dims in members.items():
        found = sorted(
            dict.fromkeys(spots(table, dims)), key=lambda spot: (spot.atom in leaders, spot.dimension, spot.start)
        )
        for spot in found:
            if table.movable(spot.atom):
                assert spot.reachable, "a parameter's axis stands at one entry of another of its axes"
                _add(table, drafts, leaders, name, spot)
    groups = [draft for draft in drafts.values() if draft.axes]
    taps = choose_taps(records, table, leaders, {part for draft in groups for part in (draft.atom, *draft.parts)})
    return tuple(
        Group(
            _name(next(iter(draft.axes))),
            _size(table, draft),
            tuple(draft.axes),
            _taps(draft, taps),
            draft.structure,
            tuple(table.size(part) for part in draft.parts),
        )
        for draft in groups
    )


def _add(table: AxisTable, drafts: dict[int, _Draft], leaders: Mapping[int, int], name: str, spot: Spot) -> None:
    leader = leaders.get(spot.atom)
    if leader is None:
        draft = drafts.setdefault(spot.atom, _Draft(spot.atom))
        draft.axes[Axis(name, *spot.place(BLOCKS, None))] = None
        return
    fixed = not table.movable(leader)
    # Parts of blocks that stay have nothing to do with each other: each is a group of its own.
    draft = drafts.setdefault(spot.atom if fixed else leader, _Draft(leader))
    draft.structure = "blocks" if fixed else "heads"
    if spot.atom not in draft.parts:
        draft.parts.append(spot.atom)
    draft.axes[Axis(name, *spot.place(draft.parts.index(spot.atom), leader))] = None


def _taps(draft: _Draft, taps: Mapping[int, Sequence[tuple[Tap, Spot]]]) -> tuple[Tap, ...]:
    """Taps of the units, or of blocks and parts; blocks are compared where no part of theirs is, which says more."""
    found = []
    if draft.structure != "blocks":
        for tap, spot in taps[draft.atom]:
            if not spot.companions().keys() & set(draft.parts):
                found.append(tap._replace(place=spot.place(BLOCKS, None)))
    for part, atom in enumerate(draft.parts):
        found.extend(tap._replace(place=spot.place(part, draft.atom)) for tap, spot in taps[atom])
    return tuple(found)


def _size(table: AxisTable, draft: _Draft) -> int:
    return table.size(draft.atom) * (sum(table.size(part) for part in draft.parts) or 1)


def _name(axis: Axis) -> str:
    """Unique: two atoms never have the same stride and start in one dimension."""
    block = f"/{axis.block}" if axis.block > 1 else ""
    return f"{axis.tensor}:{axis.dimension}{block}" + (f"+{axis.start}" if axis.start else "")
