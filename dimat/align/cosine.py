"""How alike matched units are by their weights: the cosine of what goes into and comes out of them, unit by unit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dimat.align.grams import Grams
from dimat.align.units import BLOCKS, Group, unit_rows


def cosines(grams: Grams, perms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of every unit of the reference the cosine with its partner: group name -> float64 of shape (size,).

    The vector of a unit is everything that it has in the tensors that vote. A unit of a part without tensors of its own
    gets the cosine of its block. It is 0 when one of the two is all zeros, and NaN when no tensor speaks of it.

    >>> from dimat.align import Axis, PermutationSpec
    >>> spec = PermutationSpec((Group("g", 2, (Axis("w", 0), Axis("b", 0))),))
    >>> one = {"w": torch.tensor([[3.0], [0.0]]), "b": torch.tensor([4.0, 1.0])}
    >>> two = {"w": torch.tensor([[0.0], [0.0]]), "b": torch.tensor([2.0, -1.0])}
    >>> cosines(Grams(spec, one, two), spec.identity())["g"].tolist()
    [0.8, -1.0]
    """
    sums: dict[str, dict[int, Tensor]] = {group.name: {} for group in grams.spec.groups}
    for tensor, pairs in grams.members.items():
        a, b = grams.a[tensor], grams.permuted(tensor, pairs, perms)
        for name, axis in pairs:
            one, two = (unit_rows(some, axis.place, grams.spec.by_name[name]) for some in (a, b))
            rows = torch.stack([(one * two).sum(dim=1), one.norm(dim=1).square(), two.norm(dim=1).square()])
            sums[name][axis.part] = sums[name].get(axis.part, torch.zeros(())) + rows.to("cpu", torch.float64)
    return {name: _by_unit(grams.spec.by_name[name], found) for name, found in sums.items()}


def _by_unit(group: Group, sums: Mapping[int, Tensor]) -> Tensor:
    """Cosines from (⟨a, b⟩, ‖a‖², ‖b‖²) by part, each of shape (3, units of the part)."""
    found: dict[int, Tensor] = {}
    for part, (inner, square_a, square_b) in sums.items():
        found[part] = inner / (square_a.sqrt() * square_b.sqrt()).clamp(min=torch.finfo(torch.float64).tiny)
    of_blocks = found.get(BLOCKS, torch.full((group.num_blocks,), torch.nan, dtype=torch.float64))
    if not group.parts:
        return of_blocks
    columns = [
        found[part].view(group.num_blocks, size) if part in found else of_blocks[:, None].expand(-1, size)
        for part, size in enumerate(group.parts)
    ]
    return torch.cat(columns, dim=1).reshape(-1)
