"""Fold several steps of a merge at once, on a thread each, where folding is most of the work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from dimat.merge.absorb import Arrival
from dimat.merge.api import Fold
from dimat.merge.digest import SLICE_ENTRIES
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


def may_go_side_by_side(method: Fold, arrivals: Sequence[Arrival]) -> bool:
    """Whether steps are small and need nothing of each other, and there are threads for them.

    Such steps hold all models' entries at once, so there may not be many models.
    """
    elementwise = all(fold.elementwise for fold in (method, *(arrival.fold for arrival in arrivals)))
    few = (len(arrivals) + 1) * SLICE_ENTRIES <= MOST_ENTRIES
    return elementwise and few and not method.needs_scalars and torch.get_num_threads() > 1


def side_by_side(
    work: Callable[[Step, Feed], R], arrivals: Sequence[Arrival], schedule: Schedule, feed: Feed
) -> Generator[R]:
    """`work` for every step, with its entries, in the order of the schedule; `feed` is asked by this thread alone."""

    def taken() -> Iterator[tuple[Step, Taken]]:
        for step in schedule:
            anchor = feed.base(step)
            yield step, Taken(anchor, [feed.model(i, step) for i in range(len(arrivals))])

    def num_entries(item: tuple[Step, Taken]) -> int:
        return (item[0].stop - item[0].start) * (len(arrivals) + 1)

    yield from in_order(lambda item: work(*item), taken(), num_entries)
