"""What is noted down while models are read from disk: how far it has come, and the digests that name them.

Nothing is read a second time for either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dimat.hashing import Begun
from dimat.merge.absorb import Arrival
from dimat.merge.api import Fold
from dimat.merge.digest import Digest
from dimat.merge.feed import DirectFeed, Entries, Step
from dimat.merge.source import OnDisk, Source, TensorInfo


class HashingFeed(DirectFeed):
    """A feed that makes the digests of what it reads.

    Args:
        method: the fold.
        arrivals: the models.
        anchor: the base.
        begun: what was hashed already of the base and of each model, in this order; see `Digest`.
    """

    def __init__(
        self,
        method: Fold,
        arrivals: Sequence[Arrival],
        anchor: Source | None,
        begun: Sequence[Mapping[str, Begun]] = (),
    ) -> None:
        super().__init__(method, arrivals, anchor)
        base, *models = begun or [{}] * (1 + len(arrivals))
        self.digests = [Digest(one) for one in models]
        self._base = Digest(base)

    def base(self, step: Step) -> torch.Tensor | None:
        """See `Feed.base`."""
        x = super().base(step)
        if x is not None:
            assert self.anchor is not None
            self._base.add(step.name, self.anchor.tensors[step.name], x)
        return x

    def model(self, i: int, step: Step) -> Entries:
        """See `Feed.model`."""
        entries = super().model(i, step)
        arrival = self.arrivals[i]
        if arrival.digest is None:
            self.digests[i].add(step.name, arrival.source.tensors[step.name], entries.x)
        return entries

    def base_digest(self) -> str | None:
        """Of the base, when all of it was read."""
        read = self.anchor is not None and self.method.needs_base
        return self._base.hexdigest() if read else None


class Progress:
    """Bytes read, by all threads together.

    Args:
        report: called with (bytes read, bytes to read).
    """

    def __init__(self, report: Callable[[int, int], None] | None) -> None:
        self.report, self.total, self.stopped = report, 0, False
        self._done = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Count what was read just now; raises where nobody wants more, so that threads end soon."""
        if self.stopped:
            raise InterruptedError("the merge has ended")
        if self.report is not None:
            with self._lock:
                self._done += num_bytes
                self.report(min(self._done, self.total), self.total)

    def complete(self) -> None:
        """Everything is read, whatever was expected."""
        if self.report is not None:
            self.report(self.total, self.total)


@dataclass(frozen=True, slots=True)
class CountedReads:
    """A model on disk whose reading is counted."""

    file: OnDisk
    reads: Progress

    @property
    def label(self) -> str:
        """See `Source.label`."""
        return self.file.label

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See `Source.tensors`."""
        return self.file.tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """See `Source.read`."""
        entries = self.file.read(name, start, stop)
        self.reads.add(entries.nbytes)
        return entries
