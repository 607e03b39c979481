"""Fold several steps of a merge at once, on a thread each, where folding is most of the work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from dimat.merge.feed import Entries, Feed, Schedule, Step
from dimat.merge.in_order import MOST_ENTRIES, in_order

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Taken:
    """A feed of one step, whose entries are there."""

    anchor: torch.Tensor | None
    entries: Sequence[Entries]

    def base(self, step: Step) -> torch.Tensor | None:
        """See `Feed.base`."""
        del step
        return self.anchor

    def model(self, i: int, step: Step) -> Entries:
        """See `Feed.model`."""
        del step
        return self.entries[i]


def may_go_side_by_side(schedule: Schedule) -> bool:
    """Whether steps are small and need nothing of each other, and there are threads for them.

    Such steps hold all models' entries at once, so there may not be many models.
    """
    method, arrivals = schedule.method, schedule.arrivals
    elementwise = all(fold.elementwise for fold in (method, *(arrival.fold for arrival in arrivals)))
    few = (len(arrivals) + 1) * schedule.slice_entries <= MOST_ENTRIES
    return elementwise and few and not method.needs_scalars and torch.get_num_threads() > 1


def side_by_side(work: Callable[[Step, Feed], R], schedule: Schedule, feed: Feed) -> Generator[R]:
    """`work` for every step, with its entries, in the order of the schedule; `feed` is asked by this thread alone."""
    num_models = len(schedule.arrivals)

    def taken() -> Iterator[tuple[Step, Taken]]:
        for step in schedule:
            anchor = feed.base(step)
            yield step, Taken(anchor, [feed.model(i, step) for i in range(num_models)])

    def num_entries(item: tuple[Step, Taken]) -> int:
        return (item[0].stop - item[0].start) * (num_models + 1)

    yield from in_order(lambda item: work(*item), taken(), num_entries)
