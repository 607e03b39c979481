"""What `dimat align` answers: as one JSON object, or as a table of groups and a few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimat.align.groups import PermutationSpec
from dimat.align.matching import Matching
from dimat.align.units import Group

_SHOWN_GROUPS = 64


@dataclass(frozen=True, slots=True)
class Aligned:
    """What was found and written.

    Attributes:
        out: the aligned copy of B.
        by: `weights` or `activations`.
        spec: the groups.
        matching: the permutations, and how well units agree.
        verified: relative error of the outputs under a random permutation of all groups.
        change: relative error between the outputs of B and of its aligned copy.
        distance_before: ‖A − B‖₂ over the trained parameters, those that are shared once.
        distance_after: the same for the aligned copy.
    """

    out: Path
    by: str
    spec: PermutationSpec
    matching: Matching
    verified: float
    change: float
    distance_before: float
    distance_after: float


def as_json(aligned: Aligned) -> dict[str, Any]:
    """{groups: [{name, size, moved}], moved, objective_before and _after, distance_before and _after, out}."""
    matching = aligned.matching
    return {
        "groups": [{"name": group.name, "size": group.size, "moved": group.moved} for group in matching.groups],
        "moved": matching.moved,
        "objective_before": matching.objective_before,
        "objective_after": matching.objective_after,
        "distance_before": aligned.distance_before,
        "distance_after": aligned.distance_after,
        "out": str(aligned.out),
    }


def print_aligned(aligned: Aligned) -> None:
    """A table of the groups, then what it comes to."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    spec, matching = aligned.spec, aligned.matching
    what = "mean correlation" if aligned.by == "activations" else "inner product of the weights"
    table = Table(title=f"Groups of units, matched by {aligned.by}: {what} before and after", title_justify="left")
    for heading in ("group", "units", "structure", "moved", "before", "after"):
        table.add_column(heading, justify="left" if heading in ("group", "structure") else "right", overflow="fold")
    for found in matching.groups[:_SHOWN_GROUPS]:
        structure = _structure(spec.by_name[found.name])
        moved = f"{found.moved:.1%}"
        table.add_row(found.name, f"{found.size:,}", structure, moved, f"{found.before:.4g}", f"{found.after:.4g}")
    console.print(table)
    if len(matching.groups) > _SHOWN_GROUPS:
        rest = len(matching.groups) - _SHOWN_GROUPS
        console.print(f"… and {rest} more groups; --format json has all of them")
    facts = Table(show_header=False)
    for row in _facts(aligned):
        facts.add_row(*row)
    console.print(facts)


def _facts(aligned: Aligned) -> list[tuple[str, str]]:
    spec, matching = aligned.spec, aligned.matching
    units = sum(group.size for group in spec.groups)
    parameters = sum(math.prod(info.shape) for info in spec.tensors if info.trained)
    total = "sum of correlations" if aligned.by == "activations" else "inner product of the weights"
    facts = [
        ("moved", f"{matching.moved:.1%} of {units:,} units in {len(spec.groups)} groups"),
        (total, f"{matching.objective_before:.6g} before, {matching.objective_after:.6g} after"),
        ("distance of the weights", f"{aligned.distance_before:.6g} before, {aligned.distance_after:.6g} after"),
        ("coverage", f"{spec.coverage():.1%} of {parameters:,} parameters have an axis that can move"),
    ]
    if matching.constant:
        facts.append(("constant units", f"{matching.constant:,} say nothing on this data"))
    for frozen in spec.frozen:
        where = f" in {frozen.module}" if frozen.module else ""
        facts.append(("frozen", f"{frozen.num_parameters:,} parameters by {frozen.operator}{where}"))
    facts += [
        ("groups proven", f"relative error {aligned.verified:.1e} under a random permutation of all"),
        ("function of B kept", f"relative error {aligned.change:.1e}"),
        ("written", str(aligned.out)),
    ]
    return facts


def _structure(group: Group) -> str:
    if not group.parts:
        return group.structure
    inside = " + ".join(str(part) for part in group.parts)
    return f"{group.num_blocks} {'heads' if group.structure == 'heads' else 'fixed blocks'} of {inside}"
