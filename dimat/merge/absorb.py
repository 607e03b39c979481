"""Take one model's tensor into a state: the step that a list, a stream, a ledger and a neighbourhood have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from dimat.errors import UsageError
from dimat.merge.api import Fold, State, owned_step
from dimat.merge.digest import digest_of, slices_of
from dimat.merge.source import Source, check_finite, widened
from dimat.merge.survey import OFFSET, Found, run_survey

_CACHED_ENTRIES = 1 << 16
Stats = Mapping[str, Source]
"""A model's statistics by kind (`fisher`), each with the names and shapes of the model."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One model that is about to be absorbed, and what was found out about it before.

    Attributes:
        source: the model.
        weight: its weight, finite.
        fold: the method it is absorbed by; models of one merge may differ in their options.
        stats: its statistics by kind.
        digest: see `dimat.merge.digest`; None where neither the fold nor the caller asks for it.
        found: what a survey of the whole model found.
        weight_of: the weight of a tensor by its name, where tensors differ in it (recipes); else `weight` is of all.
    """

    source: Source
    weight: float
    fold: Fold
    stats: Stats
    digest: str | None = None
    found: Found | None = None
    weight_of: Callable[[str], float] | None = None


def arrive(
    fold: Fold,
    source: Source,
    base: Source | None,
    weight: float = 1.0,
    stats: Stats | None = None,
    digest: str | None = None,
    weight_of: Callable[[str], float] | None = None,
) -> Arrival:
    """Look over a model before it is absorbed: its digest and its survey, where the fold asks for them.

    Raises:
        UsageError: a weight that is not finite, or statistics that the fold asks for and the model has not.
    """
    if not math.isfinite(weight):
        raise UsageError(f"the weight of {source.label} is {weight}, expected a finite number")
    stats = dict(stats or {})
    for kind in fold.stats:
        if kind not in stats:
            raise UsageError(f"{source.label} comes without {kind} statistics, which this merge method needs")
    if fold.digests and digest is None:
        digest = digest_of(source)
    arrival = Arrival(source, weight, fold, stats, digest, weight_of=weight_of)
    if fold.survey is None or fold.survey.scope != "model":
        return arrival

    def whole_model() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for name, info in source.tensors.items():
            if info.dtype.is_floating_point:
                yield from _pairs(source, base if fold.needs_base else None, name)

    return replace(arrival, found=run_survey(fold.survey, whole_model))


def absorb_tensor(
    arrival: Arrival, state: State, name: str, x: torch.Tensor, base: torch.Tensor | None, offset: int, survey: Found
) -> State:
    """The state with a tensor, or a slice of it, taken in.

    Args:
        arrival: the model.
        state: of this tensor (of this slice).
        name: of the tensor.
        x: its entries; those of the whole tensor in its own shape, or a flat slice.
        base: the same entries of the base.
        offset: where the slice starts.
        survey: what `survey_tensor` found.

    Raises:
        UsageError: NaN or Inf in `x`; the tensor is named.
    """
    return _take(
        arrival.fold.of(name, arrival.source.tensors[name].shape).absorb, arrival, state, name, x, base, offset, survey
    )


def remove_tensor(
    arrival: Arrival, state: State, name: str, x: torch.Tensor, base: torch.Tensor | None, survey: Found
) -> State:
    """The state with a whole tensor taken out again; see `absorb_tensor`.

    Raises:
        UsageError: the method does not know how.
    """
    remove = arrival.fold.of(name, arrival.source.tensors[name].shape).remove
    if remove is None:
        raise UsageError("this merge method cannot take a model out again: what it added is not kept apart")
    return _take(remove, arrival, state, name, x, base, 0, survey)


def _take(
    step: Callable[..., State],
    arrival: Arrival,
    state: State,
    name: str,
    x: torch.Tensor,
    base: torch.Tensor | None,
    offset: int,
    survey: Found,
) -> State:
    check_finite(x, name, arrival.source.label)
    return _step(step, arrival, state, name, x, base, offset, survey, read_stats(arrival, name, x, offset))


def absorb_read(
    arrival: Arrival,
    state: State,
    name: str,
    x: torch.Tensor,
    base: torch.Tensor | None,
    offset: int,
    survey: Found,
    stats: Mapping[str, torch.Tensor],
    own: bool = False,
) -> State:
    """`absorb_tensor` for entries whose statistics were read, and which were checked, where they were read.

    A state that is the caller's own, which the fold's `absorb` has made, may be changed.
    """
    fold = arrival.fold.of(name, arrival.source.tensors[name].shape)
    return _step(owned_step(fold.absorb) if own else fold.absorb, arrival, state, name, x, base, offset, survey, stats)


def read_stats(arrival: Arrival, name: str, x: torch.Tensor, offset: int) -> dict[str, torch.Tensor]:
    """The statistics by kind of the entries `x`, which start at `offset` in their tensor.

    Raises:
        UsageError: NaN or Inf among them.
    """
    stats = {}
    sliced = x.shape != arrival.source.tensors[name].shape
    for kind, source in arrival.stats.items():
        entries = source.read(name, offset, offset + x.numel()) if sliced else source.read(name)
        check_finite(entries, name, source.label)
        stats[kind] = entries
    return stats


def _step(
    step: Callable[..., State],
    arrival: Arrival,
    state: State,
    name: str,
    x: torch.Tensor,
    base: torch.Tensor | None,
    offset: int,
    survey: Found,
    stats: Mapping[str, torch.Tensor],
) -> State:
    found = {**(arrival.found or {}), **survey}
    if arrival.fold.digests:
        assert arrival.digest is not None
        found["digest"] = torch.frombuffer(bytearray.fromhex(arrival.digest), dtype=torch.uint8)
    if found or arrival.fold.digests:
        found[OFFSET] = torch.tensor(offset)
    weight = arrival.weight if arrival.weight_of is None else arrival.weight_of(name)
    base = None if base is None else widened(base)
    evidence = {kind: widened(entries) for kind, entries in stats.items()}
    with torch.no_grad():
        return step(state, widened(x), base, weight, evidence or None, found or None)


def survey_tensor(arrival: Arrival, base: Source | None, name: str, x: torch.Tensor | None = None) -> Found:
    """What the fold's survey finds in one tensor, when that is its scope.

    Args:
        arrival: the model.
        base: the base.
        name: of the tensor.
        x: the whole tensor, when it is in memory already; else it is read in slices, once for every pass.
    """
    fold = arrival.fold.of(name, arrival.source.tensors[name].shape)
    if fold.survey is None or fold.survey.scope != "tensor":
        return {}
    anchor = base if fold.needs_base else None
    if x is None:
        return run_survey(fold.survey, lambda: _pairs(arrival.source, anchor, name))
    pair = (widened(x), None if anchor is None else widened(anchor.read(name)))
    return run_survey(fold.survey, lambda: [pair])


def _pairs(source: Source, base: Source | None, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    for start, stop in slices_of(source.tensors[name]):
        entries = source.read(name, start, stop)
        check_finite(entries, name, source.label)
        yield widened(entries), None if base is None else widened(base.read(name, start, stop))


def squared_distance(x: torch.Tensor, base: torch.Tensor) -> float:
    """||x - base||^2, in float64."""
    total, x, base = 0.0, widened(x).reshape(-1), widened(base).reshape(-1)
    for start in range(0, x.numel(), _CACHED_ENTRIES):  # in pieces that stay in the cache: a third of the time
        piece = x[start : start + _CACHED_ENTRIES].to(torch.float64, copy=True)
        piece.sub_(base[start : start + _CACHED_ENTRIES])
        total += float(torch.dot(piece, piece))
    return total


def merged_integers(tensors: Iterable[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor:
    """Counters, indices and masks do not average: the base's, or without a base the largest of each entry.

    Both answers leave the order of the models open. All tensors are of one dtype, and taken one after another.
    """
    largest: torch.Tensor | None = None
    for tensor in tensors:
        if largest is None:
            largest = tensor.clone()
        elif base is None and not torch.equal(largest, tensor):  # also: torch cannot compare wide unsigned integers
            largest = torch.from_numpy(np.asarray(np.maximum(largest.cpu().numpy(), tensor.cpu().numpy()))).to(
                tensor.device
            )
    assert largest is not None
    return largest if base is None else base.clone()


def exact_integers(x: torch.Tensor, dtype: torch.dtype, name: str, label: str) -> torch.Tensor:
    """The integers `x` in `dtype`, that of the first model.

    Raises:
        UsageError: one of them is not there in `dtype`; the tensor and the number are named.
    """
    if x.dtype == dtype:
        return x
    given, converted = x.cpu().numpy(), x.cpu().to(dtype).numpy()
    lost = (converted.astype(given.dtype) != given) | ((converted < 0) != (given < 0))
    if lost.any():
        raise UsageError(
            f"tensor {name!r} of {label} is {x.dtype} and holds {given[lost][0]}, "
            f"which {dtype}, that of the first model, does not"
        )
    return torch.from_numpy(np.asarray(converted))
