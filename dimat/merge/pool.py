"""Pools: where the prepared task vectors of all models are collected, entry by entry, until they are read out.

This is the plain one, a weighted sum; the election of signs is in `dimat.merge.election`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dimat.merge.api import State

NOTHING = 2.0**-46
"""Of the weights that were added: a sum below that is what rounding has left of it."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Where prepared task vectors are collected; a pool without any has only 0-d tensors in its state.

    Attributes:
        add: (state, tau, w, factor, undo, own) -> state with factor * tau of weight w taken in, or out again when undo;
            tau may be changed in place, and the state where it is the pool's own.
        combine: joins two states that both hold task vectors.
        read: (state, scalars) -> the merged update; the caller does not change it.
        measure: see `Fold.measure`.
        removable: whether `add` knows undo.
    """

    add: Callable[[State, torch.Tensor, float, float, bool, bool], State]
    combine: Callable[[State, State], State]
    read: Callable[[State, Mapping[str, float]], torch.Tensor]
    measure: Callable[[State], Mapping[str, float]] | None = None
    removable: bool = True


def holds_nothing(state: State) -> bool:
    """Whether no task vector has come to the state yet: it has its weight alone."""
    return len(state) == 1


def plus_weight(held: torch.Tensor, more: torch.Tensor | float) -> torch.Tensor:
    """The sum of weights held + more; 0 where they cancel but for rounding: nothing is to be divided by what that left.

    >>> plus_weight(torch.tensor(0.1 + 0.2, dtype=torch.float64), -0.3)
    tensor(0., dtype=torch.float64)
    """
    total = held + more
    return torch.zeros_like(total) if abs(float(total)) <= NOTHING * (abs(float(held)) + abs(float(more))) else total


def plus(held: torch.Tensor | None, part: torch.Tensor, by: float, own: bool = False) -> torch.Tensor:
    """The tensor held + by * part, in one pass; by * part where nothing is held yet. An `own` one is changed."""
    if held is None:
        return part * by
    if own and held.dtype == part.dtype:
        return held.add_(part, alpha=by)
    return torch.add(held, part, alpha=by)


def weighted_sum(*, normalize: bool) -> Pool:
    """The pool sum_i w_i tau_i, divided by sum_i w_i when `normalize`.

    State: `sum` like the tensor, `weight` 0-d float64.
    """

    def add(state: State, tau: torch.Tensor, w: float, factor: float, undo: bool, own: bool) -> State:
        w = -w if undo else w
        return {"weight": plus_weight(state["weight"], w), "sum": plus(state.get("sum"), tau, w * factor, own)}

    def read(state: State, scalars: Mapping[str, float]) -> torch.Tensor:
        del scalars
        return state["sum"] / state["weight"].to(state["sum"].dtype) if normalize else state["sum"]

    def combine(a: State, b: State) -> State:
        return {"weight": plus_weight(a["weight"], b["weight"]), "sum": a["sum"] + b["sum"]}

    return Pool(add=add, combine=combine, read=read)


def sum_of_states(a: State, b: State) -> State:
    """The entries of two additive states, added."""
    return {key: a[key] + b[key] for key in a}
