"""The calls that agents and onlookers make to the coordinator, from any thread, on one channel that is kept."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from dimat.errors import NotTrusted
from dimat.messages import View
from dimat.proto.v1 import coordinator_pb2
from dimat.transport.grpc import convert, errors
from dimat.transport.grpc.channels import check_dial, open_channel
from dimat.transport.grpc.diagnose import diagnose
from dimat.transport.grpc.loop import LoopThread
from dimat.transport.security import COORDINATOR, Credentials


class CoordinatorClient:
    """A line to the coordinator; dials when first used.

    Args:
        address: where it listens, HOST:PORT.
        credentials: who calls; with them it must prove to be the coordinator.
        insecure: allow plain text beyond this machine.

    Raises:
        UsageError: plain text would leave this machine without leave.
    """

    def __init__(self, address: str, *, credentials: Credentials | None = None, insecure: bool = False) -> None:
        if credentials is None:
            check_dial(address, insecure)
        self._credentials = credentials
        self._insecure = insecure
        self.address = address
        self.whom = f"the coordinator at {address}"
        self._lock = threading.Lock()
        self._closed = False
        self._loop: LoopThread | None = None
        self._channel: grpc.aio.Channel | None = None

    def call(self, method: str, value: Any, answer: type[Any], timeout_s: float) -> Any:
        """One unary call: `value` goes out, an `answer` comes back.

        Raises:
            DimatError: what the coordinator answered instead, or that it did not within `timeout_s`.
        """
        request = convert.to_proto(value)
        loop, channel = self._dialled()
        reply = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].methods_by_name[method].output_type
        stub: Any = channel.unary_unary(
            f"/dimat.v1.Coordinator/{method}",
            request_serializer=type(request).SerializeToString,
        )

        async def call() -> Any:
            return await stub(request, timeout=timeout_s, wait_for_ready=True)

        try:
            message = convert.parsed(getattr(coordinator_pb2, reply.name), loop.run(call()), self.whom)
            return convert.from_proto(answer, message)
        except grpc.aio.AioRpcError as error:
            raise errors.from_status(error, self.whom) from None

    def views(self, after: int, deadline: float) -> Iterator[View]:
        """Views of one Watch call, until it ends, breaks or `deadline` (`time.monotonic`) passes, which is no error.

        Raises:
            DimatError: the connection broke, or the coordinator refused.
        """
        loop, channel = self._dialled()
        stub: Any = channel.unary_stream(
            "/dimat.v1.Coordinator/Watch",
            request_serializer=coordinator_pb2.WatchRequest.SerializeToString,
        )

        async def dial() -> Any:
            return stub(coordinator_pb2.WatchRequest(after=after), timeout=max(0.0, deadline - time.monotonic()))

        async def read(call: Any) -> Any:
            try:
                return await call.read()
            except asyncio.CancelledError:
                if not self._closed:
                    raise
                return grpc.aio.EOF  # closed by another thread while this one watched

        call = loop.run(dial())
        try:
            while (message := loop.run(read(call))) is not grpc.aio.EOF:
                yield convert.from_proto(View, convert.parsed(coordinator_pb2.View, message, self.whom))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise errors.from_status(error, self.whom) from None
        finally:
            # Not waited for: a generator that nobody holds any more is closed by whatever thread happens to collect
            # garbage, and that may be the loop's own.
            with contextlib.suppress(RuntimeError):  # the loop has ended, and all its calls with it
                loop.loop.call_soon_threadsafe(call.cancel)

    def untrusted(self) -> NotTrusted | None:
        """Why there can be no line, if certificates are the reason; asks on a connection of its own."""
        trouble = diagnose(self.address, COORDINATOR, self._credentials)
        return NotTrusted(f"{self.whom}: {trouble}") if trouble else None

    def close(self) -> None:
        """Hang up; calls of other threads end. A second call does nothing."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
            channel, self._channel = self._channel, None
        if loop is not None:
            assert channel is not None
            loop.run(channel.close())
            loop.release()

    def _dialled(self) -> tuple[LoopThread, grpc.aio.Channel]:
        with self._lock:
            if self._loop is None:
                loop = LoopThread.acquire()

                async def dial() -> grpc.aio.Channel:
                    return open_channel(self.address, COORDINATOR, self._credentials, insecure=self._insecure)

                self._loop, self._channel = loop, loop.run(dial())
            assert self._channel is not None
            return self._loop, self._channel
