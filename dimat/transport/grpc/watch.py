"""Look on while a run goes: the coordinator's views as they change, for tables and progress bars."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

from dimat.errors import TransportError
from dimat.messages import View
from dimat.transport.grpc.coordinator_client import CoordinatorClient
from dimat.transport.security import Credentials

SLICE_S = 0.5
"""How often the watch looks whether it is over."""

log = logging.getLogger(__name__)


def watch(
    address: str,
    *,
    after: int = -1,
    over: threading.Event | None = None,
    credentials: Credentials | None = None,
    insecure: bool = False,
) -> Iterator[View]:
    """The coordinator's views, from the first numbered above `after`, until one is `done` or `over` is set.

    A coordinator that is away is dialled again: after it has come back the view it then has is given, if it is another.

    Args:
        address: where the coordinator listens, HOST:PORT.
        after: number of the newest view seen already.
        over: set by another thread to end the watch within half a second.
        credentials: who looks on; any identity of the authority may.
        insecure: allow plain text beyond this machine.

    Raises:
        UsageError: the coordinator refuses to be watched.
        NotTrusted: before the first view: one side has certificates and the other none, or they do not fit.
    """
    over = over or threading.Event()
    line = CoordinatorClient(address, credentials=credentials, insecure=insecure)
    last: View | None = None
    try:
        while not over.is_set():
            try:
                # A restarted coordinator may count anew: after a break its view is asked for whatever the number.
                for view in line.views(after, time.monotonic() + SLICE_S):
                    after = view.number
                    if view != last:
                        last = view
                        yield view
                    if view.state == "done":
                        return
            except TransportError as error:
                log.debug("watching again: %s", error)
                if last is None and (untrusted := line.untrusted()) is not None:
                    raise untrusted from None
                after = -1
                over.wait(SLICE_S)
    finally:
        line.close()
