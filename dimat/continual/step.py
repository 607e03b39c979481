"""One model into a state, or out of it, from file to file; and what can be said of it afterwards.

    for each tensor:  state = read(old);  state = absorb(state, x, base, w);  append(new, state)
    for each tensor:  merged = finish(read(new), base, scalars);  <x - base, merged - base>

The second pass is one of its own since whole-model scalars are known only after the first. Neither holds more than a
few tensors of each: several small ones are worked on at once (`dimat.merge.in_order`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from dimat.continual.state import Held, StateWriter
from dimat.merge.absorb import Arrival, absorb_tensor, remove_tensor, survey_tensor
from dimat.merge.api import Fold, State
from dimat.merge.digest import slices_of
from dimat.merge.engine import Folded, finish
from dimat.merge.in_order import in_order
from dimat.merge.source import Source
from dimat.snapshot.sketch import sketch

R = TypeVar("R")

SKETCH_SEED = 0
"""Sketches are compared inside of a ledger only, so one stream serves all."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a model's task vector is, found while it was absorbed.

    Attributes:
        norm: ||x - base||, over all floating-point tensors.
        sketch: of x - base.
    """

    norm: float
    sketch: bytes


@dataclass(frozen=True, slots=True)
class Update:
    """What the ledger's models have made of the base.

    Attributes:
        norm: ||merged - base||.
        sketch: of merged - base.
        cosine: to the task vector of the model that was compared; None without one, or when either is zero.
    """

    norm: float
    sketch: bytes
    cosine: float | None


def floats_of(base: Source) -> list[str]:
    """The tensors that are folded, in the order in which a ledger goes through them."""
    return sorted(name for name, info in base.tensors.items() if info.dtype.is_floating_point)


def absorb_model(fold: Fold, base: Source, old: Held, arrival: Arrival, new: StateWriter) -> Taken:
    """Write the state `old` with the model in it.

    Raises:
        UsageError: NaN or Inf in the model; the tensor is named.
        OSError: the disk is full.
    """
    squared, measures = 0.0, dict[str, float]()

    def absorb(name: str) -> tuple[str, torch.Tensor, torch.Tensor, State]:
        x, b = arrival.source.read(name), base.read(name)
        found = survey_tensor(arrival, base, name, x)
        anchor = b if fold.needs_base or fold.norms else None
        return name, x, b, absorb_tensor(arrival, old.of(fold, base, name), name, x, anchor, 0, found)

    def differences() -> Iterator[torch.Tensor]:
        nonlocal squared
        for name, x, b, state in _in_order(absorb, base):
            _add_measures(fold, state, measures)
            new.append(name, state)
            for difference in _differences(base, name, x, b):
                squared += float(torch.dot(difference, difference))
                yield difference

    sketched = sketch(differences(), seed=SKETCH_SEED)
    norm = math.sqrt(squared)
    new.commit(old.totals.with_model(arrival.weight, norm), measures)
    return Taken(norm, sketched)


def remove_model(fold: Fold, base: Source, old: Held, arrival: Arrival, norm: float, new: StateWriter) -> None:
    """Write the state `old` without the model, whose task vector has the norm `norm`; see `absorb_model`."""
    measures = dict[str, float]()

    def remove(name: str) -> tuple[str, State]:
        x, b = arrival.source.read(name), base.read(name)
        found = survey_tensor(arrival, base, name, x)
        anchor = b if fold.needs_base or fold.norms else None
        return name, remove_tensor(arrival, old.of(fold, base, name), name, x, anchor, found)

    for name, state in _in_order(remove, base):
        _add_measures(fold, state, measures)
        new.append(name, state)
    new.commit(old.totals.without_model(arrival.weight, norm), measures)


def update_of(fold: Fold, base: Source, held: Held, source: Source | None = None, norm: float = 0.0) -> Update:
    """What the models in `held` make of the base, and how it lies to the model `source` of task-vector norm `norm`.

    Raises:
        UsageError: the merge gives NaN or Inf.
    """
    squared, inner = 0.0, 0.0

    def read_out(name: str) -> tuple[str, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        b = base.read(name)
        x = None if source is None else source.read(name)
        return name, x, b, merged_tensor(fold, base, held, name, b, torch.float64)

    def differences() -> Iterator[torch.Tensor]:
        nonlocal squared, inner
        for name, x, b, merged in _in_order(read_out, base):
            theirs = iter(()) if x is None else _differences(base, name, x, b)
            for difference in _differences(base, name, merged, b):
                squared += float(torch.dot(difference, difference))
                if x is not None:
                    inner += float(torch.dot(difference, next(theirs)))
                yield difference

    sketched = sketch(differences(), seed=SKETCH_SEED)
    total = math.sqrt(squared)
    known = source is not None and norm and total
    return Update(total, sketched, max(-1.0, min(1.0, inner / (norm * total))) if known else None)


def merged_tensor(
    fold: Fold, base: Source, held: Held, name: str, b: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The merged tensor `name`, in `dtype`, by default the base's; integers are the base's.

    Raises:
        UsageError: the merge gives NaN or Inf, or more than `dtype` holds.
    """
    info = base.tensors[name]
    if not info.dtype.is_floating_point:
        return b
    anchor = b if fold.needs_base or fold.norms else None
    part = Folded(name, info, 0, info.num_entries, held.of(fold, base, name), anchor)
    return finish(fold, part, held.scalars, dtype)


def _differences(base: Source, name: str, x: torch.Tensor, b: torch.Tensor) -> Iterator[torch.Tensor]:
    """`x - b` in float64, in slices."""
    x, b = x.reshape(-1), b.reshape(-1)
    for start, stop in slices_of(base.tensors[name]):
        yield x[start:stop].double() - b[start:stop].double()


def _in_order(work: Callable[[str], R], base: Source) -> Iterator[R]:
    """`work` for each tensor that is folded."""
    return in_order(work, floats_of(base), lambda name: base.tensors[name].num_entries)


def _add_measures(fold: Fold, state: State, measures: dict[str, float]) -> None:
    if fold.measure is not None:
        for key, value in fold.measure(state).items():
            measures[key] = measures.get(key, 0.0) + value
