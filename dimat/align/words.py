"""A spec in words: as JSON, both ways, and as the table that `print` shows."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from dimat.align.units import BLOCKS, STRUCTURES, Axis, Frozen, Group, Place, Tap, TensorInfo
from dimat.errors import AlignmentError
from dimat.plugins import unknown

if TYPE_CHECKING:
    from dimat.align.groups import PermutationSpec

_BLOCKS_IN_WORDS = {"heads": "movable blocks", "blocks": "fixed blocks"}


def to_json(spec: PermutationSpec) -> str:
    """The spec as JSON text; see `PermutationSpec.to_json`."""
    groups = [
        {
            "name": g.name,
            "size": g.size,
            "structure": g.structure,
            "parts": g.parts,
            "axes": [axis.to_list() for axis in g.axes],
            "taps": g.taps,
        }
        for g in spec.groups
    ]
    return json.dumps({"version": 1, "groups": groups, "tensors": list(spec.tensors), "frozen": list(spec.frozen)})


def from_json(text: str) -> tuple[tuple[Group, ...], tuple[TensorInfo, ...], tuple[Frozen, ...]]:
    """What a spec is made of; see `PermutationSpec.from_json`."""
    try:
        data = json.loads(text)
        groups = tuple(_group(entry) for entry in data["groups"])
        tensors = tuple(
            TensorInfo(str(name), tuple(int(length) for length in shape), bool(trained))
            for name, shape, trained in data.get("tensors", ())
        )
        frozen = tuple(Frozen(*entry) for entry in data.get("frozen", ()))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        message = f"this is not a permutation spec: {type(error).__name__}: {error}"
        raise AlignmentError(message, hint="see PermutationSpec.to_json for the form") from error
    for group in groups:
        _check(group)
    return groups, tensors, frozen


def describe(spec: PermutationSpec) -> str:
    """One line for all, one for each group, one for each operator that froze axes."""
    units = sum(group.size for group in spec.groups)
    parameters = sum(math.prod(info.shape) for info in spec.tensors if info.trained)
    share = f", {spec.coverage():.1%} of {parameters:,} parameters can move" if parameters else ""
    lines = [f"{len(spec.groups)} groups, {units:,} units{share}"]
    width = max((len(group.name) for group in spec.groups), default=0)
    for group in spec.groups:
        tensors = len({axis.tensor for axis in group.axes})
        inside = ""
        if group.parts:
            parts = " + ".join(str(part) for part in group.parts)
            inside = f" ({group.num_blocks} {_BLOCKS_IN_WORDS[group.structure]} of {parts})"
        lines.append(
            f"  {group.name:<{width}}  {group.size:>6} units{inside} in {tensors} tensors, {len(group.taps)} taps"
        )
    for entry in spec.frozen:
        where = f" in {entry.module}" if entry.module else ""
        lines.append(f"  frozen by {entry.operator}{where}: {entry.num_parameters:,} parameters")
    return "\n".join(lines)


def _group(entry: Any) -> Group:
    return Group(
        str(entry["name"]),
        int(entry["size"]),
        tuple(_axis(*axis) for axis in entry["axes"]),
        tuple(_tap(*tap) for tap in entry.get("taps", ())),
        str(entry.get("structure", "plain")),
        tuple(int(part) for part in entry.get("parts", ())),
    )


def _tap(call: Any, operator: Any, argument: Any, place: Any) -> Tap:
    return Tap(int(call), str(operator), int(argument), Place(*_tuples(place)))


def _axis(tensor: Any, dimension: Any, *others: Any) -> Axis:
    return Axis(str(tensor), int(dimension), *_tuples(others))


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, at every depth."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _check(group: Group) -> None:
    """Raise AlignmentError when a group contradicts itself; whether it fits its tensors, `check_state` says."""
    name = f"group {group.name!r}"
    if group.structure not in STRUCTURES:
        raise AlignmentError(f"{name}: {unknown('structure', group.structure, STRUCTURES)}")
    whole = group.size > 0 and all(part > 0 for part in group.parts) and group.size % group.width == 0
    if bool(group.parts) != (group.structure != "plain") or not whole:
        found = f"{name} is {group.structure!r}, with {group.size} units, parts {list(group.parts)}"
        raise AlignmentError(f"{found}; a plain group has no parts, others are made up of blocks of parts")
    for axis in group.axes:
        if not BLOCKS <= axis.part < len(group.parts) or (axis.part != BLOCKS and axis.outer is None):
            found = f"{name}: the axis {axis.to_list()} has part {axis.part}, outer {axis.outer}"
            raise AlignmentError(
                f"{found}; the parts are {list(group.parts)}, and a place of one needs `outer`: where the blocks are"
            )
