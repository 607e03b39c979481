"""A round says what it waits for; who runs it decides how.

Rounds are generators that yield a `Wait` and are sent the peers that came. One driver blocks on the network; the
simulator runs the next agent meanwhile. So a run of processes and a simulation are the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from dimat.transport.base import Wait

T = TypeVar("T")
Steps = Generator[Wait, frozenset[int], T]


def drive(steps: Steps[T], wait: Callable[[Wait], frozenset[int]]) -> T:
    """Run `steps` to their end, waiting by `wait`; returns what they return. Where waiting fails, the steps end too."""
    try:
        request = next(steps)
        while True:
            request = steps.send(wait(request))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()
