"""Ask a server whether it serves, how far away it is and what time it has: the standard health service, for doctors."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from dimat.errors import PeerUnavailable
from dimat.transport.grpc.channels import open_channel
from dimat.transport.grpc.diagnose import diagnose
from dimat.transport.grpc.loop import LoopThread
from dimat.transport.security import Credentials, Identity

TIME_KEY = "dimat-time"
"""Trailing metadata of a health check: seconds since the epoch at the server."""
NUM_PINGS = 5


class TimedHealth(health.aio.HealthServicer):  # type: ignore[misc]  # the package has no types
    """The standard health service, which says what time it is with every answer."""

    async def Check(self, request: Any, context: Any) -> Any:
        """Whether a service is there."""
        context.set_trailing_metadata(((TIME_KEY, repr(time.time())),))
        return await super().Check(request, context)


@dataclass(frozen=True, slots=True)
class Pong:
    """What a server's answers told."""

    round_trip_s: float
    """Median over the pings."""
    skew_s: float | None
    """The server's clock minus this one's, within half a round trip; None when it does not say."""


def ping(
    address: str,
    timeout_s: float,
    expected: Identity,
    *,
    credentials: Credentials | None = None,
    insecure: bool = False,
) -> Pong:
    """Dial `address` and check its health a few times.

    Args:
        address: HOST:PORT.
        timeout_s: how long to try, in seconds.
        expected: who shall listen there; with certificates it has to prove it.
        credentials: who dials; the health service answers anybody of the same authority.
        insecure: allow plain text beyond this machine.

    Raises:
        PeerUnavailable: nobody answers there in time, it does not serve, or certificates keep the two apart.
        UsageError: plain text would leave this machine without leave.
    """

    async def pings() -> list[Pong]:
        pongs = []
        async with open_channel(address, expected, credentials, insecure=insecure) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            await asyncio.wait_for(channel.channel_ready(), timeout_s)
            for _ in range(NUM_PINGS):
                asked, started = time.time(), time.perf_counter()
                call = check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
                answer = await call
                took_s = time.perf_counter() - started
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    raise PeerUnavailable(f"{address} answers, but serves nobody (it is leaving)")
                told = dict(await call.trailing_metadata()).get(TIME_KEY)
                # The answer was written about half a round trip after the question.
                pongs.append(Pong(took_s, None if told is None else float(told) - (asked + took_s / 2)))
        return pongs

    loop = LoopThread.acquire()
    try:
        pongs = loop.run(pings())
    except TimeoutError:
        trouble = diagnose(address, expected, credentials)
        why = f"{address}: {trouble}" if trouble else f"nobody answers at {address} within {timeout_s:g} s"
        raise PeerUnavailable(why) from None
    except grpc.aio.AioRpcError as error:
        raise PeerUnavailable(f"{address} does not answer a health check: {error.code()}") from None
    finally:
        loop.release()
    nearest = min(pongs, key=lambda pong: pong.round_trip_s)  # the shorter the way, the less it hides
    return Pong(statistics.median(pong.round_trip_s for pong in pongs), nearest.skew_s)
