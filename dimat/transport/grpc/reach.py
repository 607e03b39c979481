"""Whether the coordinator listens at an address, and proves to be it, before anything is written that supposes so."""

from __future__ import annotations

import asyncio
import time

from dimat.errors import NoCoordinator
from dimat.transport.grpc.channels import open_channel
from dimat.transport.grpc.diagnose import diagnose
from dimat.transport.grpc.loop import LoopThread
from dimat.transport.security import COORDINATOR, Credentials

LOOK_S = 1.0
"""After so long without a line it is looked into whether certificates are the reason."""


def await_coordinator(
    address: str, timeout_s: float, *, credentials: Credentials | None = None, insecure: bool = False
) -> None:
    """Dial the coordinator until it answers.

    Args:
        address: where it listens, HOST:PORT.
        timeout_s: how long to try, in seconds.
        credentials: who dials; with them it must prove to be the coordinator.
        insecure: allow plain text beyond this machine.

    Raises:
        NoCoordinator: it did not answer within `timeout_s` seconds, or certificates keep the two apart: which side
            lacks what is said at once.
        UsageError: plain text would leave this machine without leave.
    """

    async def ready() -> bool:
        deadline = time.monotonic() + timeout_s
        async with open_channel(address, COORDINATOR, credentials, insecure=insecure) as channel:
            while (left_s := deadline - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(channel.channel_ready(), min(left_s, LOOK_S))
                    return True
                except TimeoutError:
                    if trouble := await asyncio.to_thread(diagnose, address, COORDINATOR, credentials):
                        raise NoCoordinator(f"the coordinator at {address}: {trouble}") from None
        return False

    loop = LoopThread.acquire()
    try:
        if loop.run(ready()):
            return
    finally:
        loop.release()
    raise NoCoordinator(
        f"no coordinator at {address} after {timeout_s:.0f} s",
        hint="is it running, and is this its address? `dimat coordinator CONFIG` starts one",
    )
