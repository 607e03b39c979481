"""When to ask again, and when to give up: a call that breaks is begun again as long as it gets anywhere.

Two clocks decide. Within a call, a server that says nothing for `timeout_s` seconds is gone. Across calls, each of
which may break, it is given up after `timeout_s` seconds in which nothing came of any; a call that got further than
those before it sets that clock back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from dimat.errors import DimatError, PayloadError, PeerUnavailable, RoundGone, TransportError
from dimat.transport.grpc import errors

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0
MAX_LOSSES = 3
"""Times that bytes may arrive changed before it is no accident."""
SERVE_HINT = "is it running, and is this its address? `dimat continual serve LEDGER --listen HOST:PORT` starts one"

T = TypeVar("T")


class Patience:
    """The two clocks; used on the loop.

    Args:
        whom: who is asked, for messages.
        timeout_s: seconds, see above.
        clock: seconds, monotonic.
    """

    def __init__(self, whom: str, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.whom = whom
        self.timeout_s = timeout_s
        self._clock = clock
        self._heard_at = self._began_at = clock()
        self._until = self._heard_at + timeout_s
        self._failing_until: float | None = None
        self._best: Any = None
        self._advanced = False

    def begin(self) -> None:
        """A call begins."""
        self._began_at = self._clock()
        self._advanced = False

    def heard(self, mark: Any = None) -> None:
        """The server said something; `mark` grows with what was reached."""
        self._heard_at = self._clock()
        self._until = self._heard_at + self.timeout_s
        if mark is not None and (self._best is None or mark > self._best):
            self._best, self._advanced = mark, True

    def failed(self) -> float:
        """The call failed; how many seconds of patience are left."""
        lasted = self._heard_at - self._began_at >= self.timeout_s
        if self._failing_until is None or self._advanced or lasted:
            self._failing_until = self._heard_at + self.timeout_s
        self._until = self._failing_until
        return self._failing_until - self._clock()

    @property
    def advanced(self) -> bool:
        """Whether this call has got further than those before it."""
        return self._advanced

    async def wait(self, work: Awaitable[T]) -> T:
        """What the server says next.

        Raises:
            PeerUnavailable: it says nothing in time.
        """
        try:
            return await asyncio.wait_for(work, max(0.05, self._until - self._clock()))
        except TimeoutError:
            raise PeerUnavailable(f"{self.whom} is silent") from None


async def retried(once: Callable[[], Awaitable[T]], patience: Patience) -> T:
    """What `once()` returns, begun again with growing pauses when it breaks.

    Raises:
        PeerUnavailable: patience is over.
        PayloadError: bytes arrived changed, time after time.
        DimatError: the server's answer, which asking again would not change.
    """
    num_losses = num_breaks = 0
    jitter = random.Random()
    while True:
        patience.begin()
        try:
            return await once()
        except grpc.aio.AioRpcError as error:
            failure = errors.from_status(error, patience.whom)
            may_pass = error.code() in errors.BROKEN
        except TransportError as error:
            failure, may_pass = error, False
        if not may_pass and not isinstance(failure, PeerUnavailable | PayloadError | RoundGone):
            raise failure
        num_losses += isinstance(failure, PayloadError)
        if num_losses > MAX_LOSSES:
            raise failure
        num_breaks = 1 if patience.advanced else num_breaks + 1
        # Full jitter: clients that a restart threw out together do not come back together.
        pause_s = jitter.uniform(0, min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** min(num_breaks, 10)))
        if patience.failed() <= pause_s:
            raise _given_up(failure, patience)
        await asyncio.sleep(pause_s)


def _given_up(failure: DimatError, patience: Patience) -> DimatError:
    if not isinstance(failure, PeerUnavailable):
        return failure
    return PeerUnavailable(f"given up after {patience.timeout_s:.0f} s: {failure}", hint=failure.hint or SERVE_HINT)
