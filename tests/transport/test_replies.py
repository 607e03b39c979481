"""Servers that answer with bytes that are no message: an error of theirs, told as one, and never a crash here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from dimat.errors import NoCoordinator, TransportError
from dimat.messages import Heartbeat, Join, Report, Schema, TensorSpec
from dimat.transport.base import Wait
from dimat.transport.grpc import GrpcControl, GrpcTransport
from dimat.transport.grpc.server import GrpcServer

SCHEMA = Schema((TensorSpec("w", "float32", (2,)),))
NO_MESSAGE = b"\xff" * 9 + b"\x01garbage"


async def babble(request: bytes, context: Any) -> bytes:
    return NO_MESSAGE


async def babble_on(request: bytes, context: Any) -> None:
    await context.write(NO_MESSAGE)


@pytest.fixture
def serve() -> Iterator[Callable[[str], str]]:
    """Serves nonsense under a service's name; returns the address."""
    started: list[GrpcServer] = []

    def serve(service: str) -> str:
        unary = grpc.unary_unary_rpc_method_handler(babble)
        methods = dict.fromkeys(("Describe", "Join", "Heartbeat", "Report"), unary)
        started.append(GrpcServer({service: {**methods, "Watch": grpc.unary_stream_rpc_method_handler(babble_on)}}))
        return started[-1].start()

    yield serve
    for server in started:
        server.close(0.0)


def test_a_neighbour_that_babbles_is_an_error_of_that_neighbour(serve: Callable[[str], str]) -> None:
    reader = GrpcTransport(1, "reader", SCHEMA)
    reader.start()
    reader.connect({0: serve("dimat.v1.Peer")})
    try:
        with pytest.raises(TransportError, match=r"agent 0 at .* that are no Description"):
            reader.describe(0, 5.0)
        assert reader.wait(Wait("published", (0,), "snapshot", 1, 0.3)) == frozenset()
    finally:
        reader.close()


def test_a_coordinator_that_babbles_stops_nobody(serve: Callable[[str], str]) -> None:
    """The heartbeat's thread and the one that hands in reports go on; nothing is taken for acknowledged."""
    control = GrpcControl(serve("dimat.v1.Coordinator"), retry_s=0.01)
    try:
        assert control.heartbeat(Heartbeat(1, "s", 3, "train")).stop_after is None
        assert control.report(Report(1, "s", 3, {"loss": 1.0})).stop_after is None
        assert [report.round for report in control._kept] == [3]
        assert control._sender is not None
        assert control._sender.is_alive()
        with pytest.raises(NoCoordinator):
            control.join(Join(1, "s", "127.0.0.1:1", SCHEMA.fingerprint, 8), 0.3)
    finally:
        control.close(0.1)
