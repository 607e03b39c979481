"""Ask a server whether it serves, how far away it is and what time it has: the standard health service, for doctors."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from dimat.errors import PeerUnavailable
from dimat.transport.grpc import options

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


def ping(address: str, timeout_s: float) -> Pong:
    """Dial `address` and check its health a few times.

    Raises:
        PeerUnavailable: nobody answers there within `timeout_s` seconds, or it does not serve.
    """
    pongs = []
    with grpc.insecure_channel(address, options=options.client()) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
            for _ in range(NUM_PINGS):
                asked, started = time.time(), time.perf_counter()
                answer, call = check.with_call(health_pb2.HealthCheckRequest(), timeout=timeout_s)
                took_s = time.perf_counter() - started
                told = dict(call.trailing_metadata() or ()).get(TIME_KEY)
                # The answer was written about half a round trip after the question.
                pongs.append(Pong(took_s, None if told is None else float(told) - (asked + took_s / 2)))
        except grpc.FutureTimeoutError:
            raise PeerUnavailable(f"nobody answers at {address} within {timeout_s:g} s") from None
        except grpc.RpcError as error:
            # Every error of a call is a grpc.Call too, which the types do not say.
            code = getattr(error, "code", lambda: "broken")()
            raise PeerUnavailable(f"{address} does not answer a health check: {code}") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise PeerUnavailable(f"{address} answers, but serves nobody (it is leaving)")
    nearest = min(pongs, key=lambda pong: pong.round_trip_s)  # the least time in which clocks could drift from the mean
    return Pong(statistics.median(pong.round_trip_s for pong in pongs), nearest.skew_s)
