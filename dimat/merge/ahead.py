"""Read ahead: threads follow the known order of a merge, hash and look over what they read, and keep it ready.

Models are dealt out to lanes, one thread each; a lane works through its models' entries in the order of the merge and
rests while what it holds is more than its share of bytes. The loop takes entries in the same order, so that it never
waits for something that a lane cannot reach.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import torch

from dimat.merge.feed import Entries, Feed, Step

BASE = -1
"""The number of the base, beside those of the models."""


class ReadAhead:
    """A feed whose entries are ready when they are asked for.

    Args:
        feed: does the reading, on the lanes' threads; asked for the entries of one model by one thread only.
        steps: the order; gone through by every lane.
        num_models: how many models there are, beside the base.
        num_lanes: threads; with none, `feed` is asked directly.
        lane_bytes: what one lane may hold ready; one step's entries at least.
    """

    def __init__(self, feed: Feed, steps: Iterable[Step], num_models: int, num_lanes: int, lane_bytes: int) -> None:
        self._feed = feed
        num_lanes = min(num_lanes, num_models + 1)
        numbers = range(BASE, num_models)
        self._lanes = [_Lane(feed, steps, numbers[lane::num_lanes], lane_bytes) for lane in range(num_lanes)]

    def __enter__(self) -> Self:
        for lane in self._lanes:
            lane.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes:
            lane.close()

    def stop(self) -> None:
        """Give nothing any more: who asks gets an InterruptedError. For a thread that is to end soon."""
        for lane in self._lanes:
            lane.stop()

    def base(self, step: Step) -> torch.Tensor | None:
        """See `Feed.base`."""
        if not self._lanes:
            return self._feed.base(step)
        entries = self._take(BASE, step)
        return None if entries is None else entries.x

    def model(self, i: int, step: Step) -> Entries:
        """See `Feed.model`."""
        if not self._lanes:
            return self._feed.model(i, step)
        entries = self._take(i, step)
        assert entries is not None
        return entries

    def _take(self, number: int, step: Step) -> Entries | None:
        return self._lanes[(number - BASE) % len(self._lanes)].take(number, step)


class _Lane:
    """One thread, and what it has ready."""

    def __init__(self, feed: Feed, steps: Iterable[Step], numbers: Sequence[int], most_bytes: int) -> None:
        self._feed, self._steps, self._numbers, self._most = feed, steps, numbers, most_bytes
        self._ready: deque[tuple[int, Step, Entries | None, int]] = deque()
        self._held = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def _run(self) -> None:
        torch.set_num_threads(1)  # of this thread: two teams of threads on the same cores wait for each other
        try:
            for step in self._steps:
                for number in self._numbers:
                    self._put(number, step)
                    if self._closed:
                        return
        except BaseException as error:  # raised again where the entries are waited for
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _put(self, number: int, step: Step) -> None:
        size = (step.stop - step.start) * step.info.dtype.itemsize
        with self._changed:
            while self._ready and self._held + size > self._most and not self._closed:
                self._changed.wait()
            if self._closed:
                return
            self._held += size
        if number == BASE:
            x = self._feed.base(step)
            entries = None if x is None else Entries(x)
        else:
            entries = self._feed.model(number, step)
        taken = 0 if entries is None else sum(one.nbytes for one in (entries.x, *entries.stats.values()))
        with self._changed:
            self._held += taken - size  # a model's own dtype may be wider, and statistics come on top
            self._ready.append((number, step, entries, taken))
            self._changed.notify_all()

    def take(self, number: int, step: Step) -> Entries | None:
        """The next entries, which are those of model `number` at `step`."""
        with self._changed:
            while not self._ready or self._closed:
                if self._closed:
                    raise InterruptedError("the merge has ended")
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            for_number, for_step, entries, size = self._ready.popleft()
            self._held -= size
            self._changed.notify_all()
        assert (for_number, for_step) == (number, step), "entries are asked for in another order than they are read"
        return entries

    def stop(self) -> None:
        """Read no more, give no more, and let go of what is ready."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self.stop()
        if self.thread.ident is not None:
            self.thread.join()
