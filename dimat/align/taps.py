"""Where a group's activations are read: chosen on a traced model, read on any model of the same architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dimat.align.axes import AxisTable
from dimat.align.calls import Calls, call_model, tensors_in
from dimat.align.groups import PermutationSpec
from dimat.align.operators import Symbolic
from dimat.align.settle import Spot, spots
from dimat.align.units import Group, Place, Tap, misfit, unit_rows
from dimat.errors import AlignmentError

Sink = Callable[[str, Tap, Tensor], None]
"""Takes (group name, tap, activations of shape (units, samples))."""


@dataclass(frozen=True, slots=True)
class Record:
    """One call of the traced pass: what went in (in the order of `tensors_in`) and what came out."""

    call: int
    operator: str
    nonlinear: bool
    inputs: tuple[Symbolic, ...]
    outputs: tuple[Symbolic, ...]


def choose_taps(
    records: Iterable[Record], table: AxisTable, leaders: Mapping[int, int], atoms: set[int]
) -> dict[int, list[tuple[Tap, Spot]]]:
    """Inputs of activation functions; for atoms that meet none, inputs of the operators in which they vanish.

    An inner atom is read where the one that it follows stands beside it. The taps have no place yet: that depends on
    the group, and follows from the spot.
    """
    before: dict[int, list[tuple[Tap, Spot]]] = {atom: [] for atom in atoms}
    last: dict[int, list[tuple[Tap, Spot]]] = {atom: [] for atom in atoms}
    seen: set[tuple[bool, int, Spot]] = set()
    for record in records:
        kept = {atom for symbol in record.outputs for dim in symbol.dims for atom in table.leaves(dim)}
        for argument, symbol in enumerate(record.inputs):
            if not symbol.from_input:
                continue
            for spot in spots(table, symbol.dims):
                key = (record.nonlinear, id(symbol), spot)
                if spot.atom not in atoms or key in seen or not (record.nonlinear or spot.atom not in kept):
                    continue
                seen.add(key)
                if spot.reachable and leaders.get(spot.atom, spot.atom) in (spot.atom, *spot.companions()):
                    tap = Tap(record.call, record.operator, argument, Place(spot.dimension))
                    (before if record.nonlinear else last)[spot.atom].append((tap, spot))
    return {atom: before[atom] or last[atom] for atom in atoms}


def read_taps(spec: PermutationSpec, model: nn.Module, batch: Any, sink: Sink) -> None:
    """Run `model` on one batch and give `sink` each tap's activations as (group name, tap, rows of shape (size, n)).

    Raises:
        AlignmentError: the pass does not go by the operators at which the taps were found.
    """
    with _Taps(model, spec, sink) as reader:
        call_model(model, batch)
    for pairs in reader.taps.values():
        raise _other_path(pairs[0][1], f"only {reader.num_calls} operators")


class _Taps(Calls):
    """Hands on what stands at the taps of a spec during one pass, as matrices of shape (units, samples)."""

    def __init__(self, model: nn.Module, spec: PermutationSpec, sink: Sink) -> None:
        super().__init__(model)
        self.sink = sink
        self.taps: dict[int, list[tuple[Group, Tap]]] = {}
        for group in spec.groups:
            for tap in group.taps:
                self.taps.setdefault(tap.call, []).append((group, tap))

    def on_call(
        self, name: str, key: object, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Read before the operator runs: it may write its answer in place."""
        for group, tap in self.taps.pop(self.num_calls, ()):
            tensors = tensors_in(args, kwargs)
            if name != tap.operator or len(tensors) <= tap.argument:
                raise _other_path(tap, f"operator {name}")
            tensor = tensors[tap.argument]
            if misfit(tap.place, group, tensor.shape) is not None:
                raise _other_path(tap, f"a tensor of shape {tuple(tensor.shape)}")
            self.sink(group.name, tap, _copied_rows(tensor, tap, group))
        return run()


def _copied_rows(tensor: Tensor, tap: Tap, group: Group) -> Tensor:
    """The tap as a matrix (units, n) of at least float32 that shares no memory with the model."""
    rows = unit_rows(tensor, tap.place, group)
    wide = rows if rows.dtype == torch.float64 else rows.to(torch.float32)
    return wide.clone() if wide.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() else wide


def _other_path(tap: Tap, found: str) -> AlignmentError:
    return AlignmentError(
        f"the model does not take the path on which its groups were found: operator {tap.call} was {tap.operator}, "
        f"now there is {found}",
        hint="find the groups on the same model and mode of calling (permutation_spec), or match by weights",
    )
