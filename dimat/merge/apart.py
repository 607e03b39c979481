"""Compute on a thread of its own what another one writes: each has a core, and neither waits for long."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

import torch

T = TypeVar("T")
_LOOK_S = 0.1
"""How often a thread that waits for room looks whether anybody still wants what it has."""


def computed_apart(items: Generator[T], most: int, stop: Callable[[], None] | None = None) -> Generator[T]:
    """The same items, made ahead on a thread of its own.

    Args:
        items: goes on one thread, to its end; closed there, too.
        most: how many items may be ready beside the one that is made and the one that is used.
        stop: called where the rest is not wanted any more (Ctrl-C, a full disk), so that a long way to the next item
            ends soon; the thread is waited for.

    Raises:
        BaseException: what `items` raises, where its next item would have come.

    >>> list(computed_apart((n * n for n in range(4)), most=2))
    [0, 1, 4, 9]
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(most)
    unwanted = threading.Event()
    num_threads = torch.get_num_threads()  # a number of each thread's own

    def put(item: T | None, failure: BaseException | None = None) -> None:
        while not unwanted.is_set():
            try:
                return ready.put((item, failure), timeout=_LOOK_S)
            except queue.Full:
                continue

    def run() -> None:
        torch.set_num_threads(num_threads)
        try:
            with closing(items):
                for item in items:
                    put(item)
                    if unwanted.is_set():
                        return
            put(None, StopIteration())
        except BaseException as error:  # raised again where the item is waited for
            put(None, error)

    thread = threading.Thread(target=run, name="compute apart", daemon=True)
    thread.start()
    try:
        while True:
            item, failure = ready.get()
            if isinstance(failure, StopIteration):
                return
            if failure is not None:
                raise failure
            yield item  # type: ignore[misc]  # an item, where there is no failure
            del item
    except BaseException:
        if stop is not None:
            stop()
        raise
    finally:
        unwanted.set()
        thread.join()
