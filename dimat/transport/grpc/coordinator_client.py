"""The calls that agents and onlookers make to the coordinator, from any thread, on one channel that is kept."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from dimat.messages import View
from dimat.proto.v1 import coordinator_pb2
from dimat.transport.grpc import convert, errors, options
from dimat.transport.grpc.loop import LoopThread


class CoordinatorClient:
    """A line to the coordinator at `address` (HOST:PORT); dials when first used."""

    def __init__(self, address: str) -> None:
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
            response_deserializer=convert.reading(getattr(coordinator_pb2, reply.name)),
        )

        async def call() -> Any:
            return await stub(request, timeout=timeout_s, wait_for_ready=True)

        try:
            return convert.from_proto(answer, loop.run(call()))
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
            response_deserializer=convert.reading(coordinator_pb2.View),
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

        async def hang_up(call: Any) -> None:
            call.cancel()

        call = loop.run(dial())
        try:
            while (message := loop.run(read(call))) is not grpc.aio.EOF:
                yield convert.from_proto(View, message)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise errors.from_status(error, self.whom) from None
        finally:
            if not self._closed:
                loop.run(hang_up(call))

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
                    return grpc.aio.insecure_channel(self.address, options=options.client())

                self._loop, self._channel = loop, loop.run(dial())
            assert self._channel is not None
            return self._loop, self._channel
