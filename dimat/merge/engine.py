"""Run a fold over models, one tensor (or one slice of it) after another: the loop of every merge of a list.

    for each tensor, for each slice:
        state = init(base)
        for each model: state = absorb(state, x, base, w)
        tensor = finish(state, base, scalars)

Whoever keeps states between models (a ledger) runs the steps of `dimat.merge.absorb` itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dimat.errors import UsageError
from dimat.merge.absorb import (
    Arrival,
    Stats,
    absorb_read,
    arrive,
    exact_integers,
    merged_integers,
    squared_distance,
)
from dimat.merge.api import Fold, State
from dimat.merge.digest import SLICE_ENTRIES
from dimat.merge.feed import DirectFeed, Feed, Schedule, Step
from dimat.merge.registry import make_fold
from dimat.merge.source import InMemory, Source, TensorInfo, check_alike, check_statistics, widened
from dimat.merge.totals import Totals
from dimat.statedict import StateDict


def fold(
    method: str,
    models: Sequence[StateDict],
    base: StateDict | None = None,
    weights: Sequence[float] | None = None,
    *,
    stats: Sequence[Mapping[str, StateDict]] | None = None,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Merge `models` by a registered method.

    Args:
        method: the method's name; `dimat methods` lists them.
        models: state dicts of one architecture. Order is the order of absorption.
        base: the models' common ancestor, for methods that need one.
        weights: one weight per model; one each when None.
        stats: for methods that need statistics, one mapping per model: kind (`fisher`) -> state dict.
        options: the method's keyword options.

    Returns:
        A new state dict with the names, shapes and dtypes of the first model.

    Raises:
        UsageError: no models, a number of weights other than the number of models, a missing base or statistics, NaN.
        SchemaError: tensors that differ in name or shape; the first one is named with both shapes.

    >>> import torch
    >>> fold("mean", [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}])
    {'w': tensor([2., 3.])}
    """
    return fold_models(make_fold(method, options), models, weights, base, stats)


def fold_models(
    method: Fold,
    models: Sequence[StateDict],
    weights: Sequence[float] | None = None,
    base: StateDict | None = None,
    stats: Sequence[Mapping[str, StateDict]] | None = None,
) -> dict[str, torch.Tensor]:
    """`fold` with the method made already."""
    sources = [InMemory(f"model {i}", model) for i, model in enumerate(models)]
    anchor = None if base is None else InMemory("the base", base)
    evidence = [
        {kind: InMemory(f"{kind} of model {i}", state) for kind, state in kinds.items()}
        for i, kinds in enumerate(stats or [])
    ]
    arrivals = prepare(method, sources, weights, anchor, evidence or None)
    merged: dict[str, torch.Tensor] = {}
    others = [*models[1:], *([] if base is None else [base]), *(one for kinds in stats or [] for one in kinds.values())]
    names = _untied(models[0], others)
    scalars: Mapping[str, float] = {}
    parts = folded(method, arrivals, anchor, names=[n for n in names if names[n] == n])
    if method.needs_scalars:
        held = list(parts)
        scalars = scalars_of(method, arrivals, held)
        parts = iter(held)
    for part in parts:
        entries = finish(method, part, scalars, part.info.dtype)
        if part.stop - part.start == part.info.num_entries:
            merged[part.name] = entries
            continue
        if part.start == 0:
            merged[part.name] = torch.empty(part.info.shape, dtype=entries.dtype, device=entries.device)
        merged[part.name].view(-1)[part.start : part.stop] = entries
    # Tied tensors stay tied: they are one tensor under several names.
    return {name: merged[home] for name, home in names.items()}


def prepare(
    method: Fold,
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    base: Source | None = None,
    stats: Sequence[Stats] | None = None,
) -> list[Arrival]:
    """Check models against each other, and look over each (digest, survey) where the method asks for it.

    Raises:
        UsageError, SchemaError: see `fold`.
    """
    check_models(method, sources, weights, base, stats)
    weights = [1.0] * len(sources) if weights is None else weights  # a row of a numpy matrix has no truth value
    evidence = stats or [{} for _ in sources]
    return [
        arrive(method, source, base, float(weight), kinds)
        for source, weight, kinds in zip(sources, weights, evidence, strict=True)
    ]


def check_models(
    method: Fold,
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    base: Source | None = None,
    stats: Sequence[Stats] | None = None,
) -> None:
    """Everything about a merge that can be checked before a weight is read; see `fold` for what is raised."""
    if not sources:
        raise UsageError("fold got no models, expected at least one")
    if weights is not None and len(weights) != len(sources):
        raise UsageError(f"fold got {len(weights)} weights for {len(sources)} models, expected one each")
    if stats is not None and len(stats) != len(sources):
        raise UsageError(f"fold got statistics for {len(stats)} of {len(sources)} models, expected them for each")
    if method.needs_base and base is None:
        raise UsageError("this merge method needs the models' common ancestor: give base=")
    check_alike([*sources, *([base] if base is not None else [])])
    for source, kinds in zip(sources, stats or [], strict=False):
        for evidence in kinds.values():
            check_statistics(source, evidence)
    for name, info in sources[0].tensors.items():
        if info.dtype.is_complex:
            raise UsageError(f"tensor {name!r} of {sources[0].label} is {info.dtype}, expected real numbers")


@dataclass(frozen=True, slots=True)
class Folded:
    """One tensor, or a slice of it, with all models in it.

    Attributes:
        name: of the tensor.
        info: its dtype (of the first model) and shape.
        start: where the slice begins, in entries.
        stop: where it ends; the whole tensor from 0 to its number of entries.
        state: of a floating-point tensor; None for integers.
        base: the same entries of the base.
        integers: the merged entries of an integer tensor.
        squared: ||x - base||^2 of each model's entries, where the fold asks for norms; else empty.
    """

    name: str
    info: TensorInfo
    start: int
    stop: int
    state: State | None
    base: torch.Tensor | None
    integers: torch.Tensor | None = None
    squared: tuple[float, ...] = ()


def folded(
    method: Fold,
    arrivals: Sequence[Arrival],
    base: Source | None,
    *,
    names: Sequence[str] | None = None,
    slice_entries: int = SLICE_ENTRIES,
) -> Iterator[Folded]:
    """Absorb all models, tensor by tensor; sources are read in the order base, first model, second model, ...

    Args:
        method: the fold.
        arrivals: the models, in the order of absorption.
        base: their ancestor.
        names: the tensors, in this order; by default all, in the order of the first model.
        slice_entries: tensors with more entries are folded in slices of this size, where the fold is elementwise.
    """
    feed = DirectFeed(method, arrivals, base)
    names = list(arrivals[0].source.tensors) if names is None else names
    for step in Schedule(method, arrivals, names, slice_entries):
        yield fold_step(method, arrivals, step, feed)


def fold_step(method: Fold, arrivals: Sequence[Arrival], step: Step, feed: Feed) -> Folded:
    """Absorb all models' entries of one step."""
    name, info = step.name, step.info
    anchor = feed.base(step)
    if not info.dtype.is_floating_point:
        models = (
            exact_integers(feed.model(i, step).x, info.dtype, name, arrival.source.label)
            for i, arrival in enumerate(arrivals)
        )
        held = None if anchor is None else exact_integers(anchor, info.dtype, name, "the base")
        return Folded(name, info, step.start, step.stop, None, None, merged_integers(models, held))
    state = method.of(name, info.shape).init(None if anchor is None else widened(anchor))
    squared = []
    for i, arrival in enumerate(arrivals):
        entries = feed.model(i, step)
        given = name, entries.x, anchor, step.start, entries.found, entries.stats
        state = absorb_read(arrival, state, *given, own=i > 0)  # what init gave may share memory with the base
        if method.norms and anchor is not None:
            squared.append(squared_distance(entries.x, anchor))
    return Folded(name, info, step.start, step.stop, state, anchor, squared=tuple(squared))


def scalars_of(method: Fold, arrivals: Sequence[Arrival], parts: Iterable[Folded]) -> dict[str, float]:
    """The whole-model scalars that `finish` gets; every part is asked for once, in order.

    Sums are exact up to their last rounding, so that they do not depend on the order of the tensors.
    """
    measures: dict[str, list[float]] = {}
    squared: list[list[float]] = [[] for _ in arrivals]
    for part in parts:
        if part.state is None:
            continue
        for key, value in (method.measure(part.state) if method.measure else {}).items():
            measures.setdefault(key, []).append(value)
        for values, value in zip(squared, part.squared, strict=False):
            values.append(value)
    totals = Totals()
    for arrival, values in zip(arrivals, squared, strict=True):
        totals = totals.with_model(arrival.weight, _exact_sum(values) ** 0.5)
    return totals.scalars({key: _exact_sum(values) for key, values in measures.items()})


def _exact_sum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:  # squares of numbers that nobody trains
        return math.inf


def finish(method: Fold, part: Folded, scalars: Mapping[str, float], dtype: torch.dtype | None = None) -> torch.Tensor:
    """The merged entries of `part`, in `dtype` (integers keep theirs).

    Raises:
        UsageError: the method gave NaN or Inf, or numbers beyond the range of `dtype`.
    """
    if part.integers is not None:
        return part.integers
    assert part.state is not None
    with torch.no_grad():
        base = None if part.base is None else widened(part.base)
        merged = method.of(part.name, part.info.shape).finish(part.state, base, scalars)
        answer = merged.to(dtype or part.info.dtype)
    if answer.numel() and not torch.isfinite(torch.stack(torch.aminmax(widened(answer)))).all():
        if torch.isfinite(merged).all():
            raise UsageError(
                f"merged tensor {part.name!r} reaches {float(merged.abs().max()):.3g}, more than {answer.dtype} holds",
                hint="write another dtype: --dtype float32",
            )
        raise UsageError(
            f"merging tensor {part.name!r} gave NaN or Inf",
            hint="do the weights sum to zero? Methods that divide by their sum need another sum",
        )
    return answer


def _untied(model: StateDict, others: Sequence[StateDict] = ()) -> dict[str, str]:
    """Each name with the first name of the same memory in all of the models: tied tensors are merged once.

    What one model alone has tied is not: the others have two tensors there.
    """
    homes: dict[tuple[Any, ...], str] = {}
    names = {}
    for name, tensor in model.items():
        place = (_memory(tensor), *(_memory(other[name]) if name in other else None for other in others))
        names[name] = homes.setdefault(place, name) if tensor.numel() else name
    return names


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
