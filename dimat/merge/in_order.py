"""Work on several tensors at once, with the answers in the order of the tensors.

Decompositions of one matrix hardly gain from a second core (768 x 768: 0.097 s on one, 0.077 s on two), two matrices
side by side do. Large ones gain enough, and two of them would be too much to hold: they are worked on alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MOST_ENTRIES = 1 << 22
"""A tensor of more entries than this is worked on alone, by all threads. Two of 768 x 3072 side by side are a seventh
faster than one after the other: one is read or written while the other is decomposed."""
ROOM_ENTRIES = 2 * MOST_ENTRIES
"""What may be under way together, on however many threads."""

T = TypeVar("T")
R = TypeVar("R")


def in_order(work: Callable[[T], R], items: Iterable[T], num_entries: Callable[[T], int]) -> Generator[R]:
    """`work(item)` for each item, in their order; as many at once as torch has threads here, one thread each.

    An item's number of threads depends on its size alone, so that the same machine gives the same bits. What is under
    way or waits to be taken has at most `ROOM_ENTRIES`, all together.

    Args:
        work: called on threads of its own, or on this one; what it raises is raised where its answer would be.
        items: what to work on.
        num_entries: the size of an item.

    >>> list(in_order(lambda x: 2 * x, [3, 1, 2], lambda x: 1))
    [6, 2, 4]
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        yield from map(work, items)
        return
    room = ROOM_ENTRIES
    pending: deque[tuple[Future[R], int]] = deque()

    def take() -> R:
        nonlocal room
        answer = pending[0][0].result()
        room += pending.popleft()[1]
        return answer

    with ThreadPoolExecutor(num_threads, "tensors", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in items:
                size = num_entries(item)
                while pending and (size > MOST_ENTRIES or size > room):
                    yield take()
                if size > MOST_ENTRIES:
                    yield work(item)
                else:
                    room -= size
                    pending.append((pool.submit(work, item), size))
            while pending:
                yield take()
        finally:  # nobody asks for the rest any more
            for future, _ in pending:
                future.cancel()
