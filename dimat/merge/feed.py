"""What a merge reads, in the order in which it reads it: steps (a tensor, or a slice of one) and each model's entries.

    for step in Schedule(method, arrivals, names):         # base, first model, second model, ... at each step
        anchor = feed.base(step)
        for i in range(num_models): entries = feed.model(i, step)

The order is known beforehand, so that threads may read ahead along it (`dimat.merge.ahead`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dimat.merge.absorb import Arrival, read_stats, survey_tensor
from dimat.merge.api import Fold
from dimat.merge.digest import SLICE_ENTRIES, slices_of
from dimat.merge.source import Source, TensorInfo, check_finite
from dimat.merge.survey import Found


@dataclass(frozen=True, slots=True)
class Step:
    """Entries `start` to `stop` of a tensor; `sliced` when they are not all of it."""

    name: str
    info: TensorInfo
    start: int
    stop: int
    sliced: bool

    @property
    def span(self) -> tuple[int, int | None]:
        """The arguments of `Source.read`: of the whole tensor, in its shape, or of a flat slice."""
        return (self.start, self.stop) if self.sliced else (0, None)


@dataclass(frozen=True, slots=True)
class Entries:
    """One model's entries of a step, looked over.

    Attributes:
        x: the entries; in the dtype of the file.
        found: what the fold's survey found in the tensor, when that is its scope.
        stats: the same entries of the model's statistics.
    """

    x: torch.Tensor
    found: Found = field(default_factory=dict)
    stats: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Feed(Protocol):
    """Where the loop of a merge gets its entries from; asked step by step, the base first, then model by model."""

    def base(self, step: Step) -> torch.Tensor | None:
        """The base's entries, where the step needs them."""

    def model(self, i: int, step: Step) -> Entries:
        """The entries of model `i`."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of a merge, in order; may be gone through any number of times.

    Attributes:
        method: the fold.
        arrivals: the models.
        names: the tensors, in this order.
        slice_entries: tensors with more entries are folded in slices of this size, where the fold is elementwise.
    """

    method: Fold
    arrivals: Sequence[Arrival]
    names: Sequence[str]
    slice_entries: int = SLICE_ENTRIES

    def __iter__(self) -> Iterator[Step]:
        tensors = self.arrivals[0].source.tensors
        folds = (self.method, *(arrival.fold for arrival in self.arrivals))
        for name in self.names:
            info = tensors[name]
            sliced = info.num_entries > self.slice_entries and is_sliced(folds, name, info)
            for start, stop in slices_of(info, self.slice_entries if sliced else max(info.num_entries, 1)):
                yield Step(name, info, start, stop, sliced)


def is_sliced(folds: Iterable[Fold], name: str, info: TensorInfo) -> bool:
    """Whether the tensor may be folded slice by slice, as far as all these folds go."""
    different = {id(fold): fold for fold in folds}.values()
    return not info.dtype.is_floating_point or all(fold.of(name, info.shape).elementwise for fold in different)


def needs_base(method: Fold, arrivals: Sequence[Arrival], step: Step) -> bool:
    """Whether a step reads the base, when there is one."""
    return not step.info.dtype.is_floating_point or any(
        fold.needs_base or fold.norms for fold in (method, *(arrival.fold for arrival in arrivals))
    )


class DirectFeed:
    """A feed that reads when it is asked.

    Args:
        method: the fold.
        arrivals: the models.
        anchor: the base.
    """

    def __init__(self, method: Fold, arrivals: Sequence[Arrival], anchor: Source | None) -> None:
        self.method, self.arrivals, self.anchor = method, arrivals, anchor
        self._surveyed: dict[int, tuple[str, Found]] = {}

    def base(self, step: Step) -> torch.Tensor | None:
        """See `Feed.base`.

        Raises:
            UsageError: NaN or Inf.
        """
        if self.anchor is None or not needs_base(self.method, self.arrivals, step):
            return None
        entries = self.anchor.read(step.name, *step.span)
        if step.info.dtype.is_floating_point:
            check_finite(entries, step.name, self.anchor.label)
        return entries

    def model(self, i: int, step: Step) -> Entries:
        """See `Feed.model`; a tensor in slices is surveyed before its first slice.

        Raises:
            UsageError: NaN or Inf.
        """
        arrival = self.arrivals[i]
        x = arrival.source.read(step.name, *step.span)
        if not step.info.dtype.is_floating_point:
            return Entries(x)
        check_finite(x, step.name, arrival.source.label)
        if not step.sliced:
            found = survey_tensor(arrival, self.anchor, step.name, x)
        else:
            if self._surveyed.get(i, ("", {}))[0] != step.name:
                self._surveyed[i] = step.name, survey_tensor(arrival, self.anchor, step.name)
            found = self._surveyed[i][1]
        return Entries(x, found, read_stats(arrival, step.name, x, step.start))
