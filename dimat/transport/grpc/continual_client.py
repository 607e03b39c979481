"""The calls that are made to a served ledger; when one breaks, and what is then done, says `continual_retry`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from dimat.errors import PayloadError, PeerUnavailable, RoundGone, UsageError
from dimat.messages import PROTOCOL_VERSION
from dimat.proto.v1 import continual_pb2
from dimat.transport.continual import LedgerStatus, Merged, Offer, SubmitAnswer
from dimat.transport.grpc import convert, options
from dimat.transport.grpc.continual_retry import Patience, retried
from dimat.transport.grpc.frames import data_frame, is_data_frame, read_data_frame
from dimat.transport.grpc.loop import LoopThread

STREAM_S = 24 * 3600.0
"""The deadline of one stream; what is not done by then goes on in the next."""
MAX_ANSWER_BYTES = 64 << 20
"""A status lists every model that was ever absorbed."""
_STATES = ("waiting", "receiving", "queued", "absorbed", "present")

Pieces = Callable[[int], Iterator[bytes]]
"""From a position to the bytes from there on, in pieces that fit a frame."""
T = TypeVar("T")


class ContinualClient:
    """A line to the ledger that is served at `address` (HOST:PORT).

    Args:
        address: where it listens.
        timeout_s: seconds without a sign of life after which it is given up.
    """

    def __init__(self, address: str, *, timeout_s: float = 60.0) -> None:
        self.address = address
        self.whom = f"the ledger at {address}"
        self._timeout_s = timeout_s

    def submit(self, offer: Offer, pieces: Pieces, tell: Callable[[SubmitAnswer], None]) -> SubmitAnswer:
        """Send a model; returns the last answer, which has its entry.

        Args:
            offer: what it is.
            pieces: its bytes.
            tell: called with every answer on the way, from another thread.

        Raises:
            UsageError: the server refuses the model, and says why.
            PeerUnavailable: nobody answered for `timeout_s` seconds.
            TransportError: the bytes arrived changed, time after time.
        """
        return self._run(lambda channel, patience: _submit(channel, patience, offer, pieces, tell))

    def status(self) -> LedgerStatus:
        """What is in the ledger.

        Raises:
            PeerUnavailable: nobody answered for `timeout_s` seconds.
        """
        return self._run(_status)

    def export(self, begin: Callable[[Merged], None], take: Callable[[int, memoryview], None]) -> Merged:
        """Receive the merged model.

        Args:
            begin: told what will come; once more when it has to come from its first byte again.
            take: stores the bytes at a position; raises PayloadError when they are not what was announced.

        Raises:
            UsageError: there is nothing to merge yet.
            PeerUnavailable: nobody answered for `timeout_s` seconds.
            TransportError: the bytes arrived changed, time after time.
        """
        incoming = _Incoming(begin, take)
        return self._run(lambda channel, patience: _export(channel, patience, incoming))

    def _run(self, once: Callable[[grpc.aio.Channel, Patience], Awaitable[T]]) -> T:
        async def work() -> T:
            patience = Patience(self.whom, self._timeout_s)
            async with grpc.aio.insecure_channel(self.address, options=options.client(MAX_ANSWER_BYTES)) as channel:
                return await retried(lambda: once(channel, patience), patience)

        loop = LoopThread.acquire()
        try:
            return loop.run(work())
        finally:
            loop.release()


async def _submit(
    channel: grpc.aio.Channel,
    patience: Patience,
    offer: Offer,
    pieces: Pieces,
    tell: Callable[[SubmitAnswer], None],
) -> SubmitAnswer:
    stub: Any = channel.stream_stream(
        "/dimat.v1.Continual/Submit", response_deserializer=convert.reading(continual_pb2.SubmitAnswer)
    )
    call = stub(timeout=STREAM_S)
    sending: asyncio.Task[None] | None = None
    try:
        await _write(call, continual_pb2.SubmitFrame(offer=convert.to_proto(offer)).SerializeToString())
        while (message := await patience.wait(_next_answer(call, sending))) is not grpc.aio.EOF:
            answer = convert.from_proto(SubmitAnswer, message)
            patience.heard((_STATES.index(answer.state), answer.position, -answer.ahead))
            tell(answer)
            if answer.entry is not None:
                return answer
            if answer.state == "receiving" and sending is None:
                sending = asyncio.create_task(_send(call, pieces, answer.position))
        raise PeerUnavailable(f"{patience.whom} ended the call without an answer")
    finally:
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        call.cancel()


async def _next_answer(call: Any, sending: asyncio.Task[None] | None) -> Any:
    """What the server says next; raises what went wrong with sending, such as a file that cannot be read."""
    reading = asyncio.ensure_future(call.read())
    try:
        await asyncio.wait({reading, sending} if sending is not None else {reading}, return_when="FIRST_COMPLETED")
        if sending is not None and sending.done():
            sending.result()
        return await reading
    finally:
        reading.cancel()


async def _send(call: Any, pieces: Pieces, position: int) -> None:
    iterator = pieces(position)
    while (piece := await asyncio.to_thread(next, iterator, None)) is not None:
        if not await _write(call, data_frame(position, [memoryview(piece)])):
            return
        position += len(piece)


async def _write(call: Any, frame: bytes) -> bool:
    """Send a frame; False when the call has ended, of which reading tells the reason."""
    try:
        await call.write(frame)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False
    return True


async def _status(channel: grpc.aio.Channel, patience: Patience) -> LedgerStatus:
    stub: Any = channel.unary_unary(
        "/dimat.v1.Continual/Status",
        request_serializer=continual_pb2.StatusRequest.SerializeToString,
        response_deserializer=convert.reading(continual_pb2.LedgerStatus),
    )
    message = await stub(continual_pb2.StatusRequest(), timeout=patience.timeout_s)
    if message is not None and message.protocol != PROTOCOL_VERSION:
        raise UsageError(
            f"{patience.whom} speaks version {message.protocol} of the protocol, this client {PROTOCOL_VERSION}",
            hint="install the same version of dimat on both sides",
        )
    return convert.from_proto(LedgerStatus, message)


async def _export(channel: grpc.aio.Channel, patience: Patience, incoming: _Incoming) -> Merged:
    stub: Any = channel.unary_stream(
        "/dimat.v1.Continual/Export", request_serializer=continual_pb2.ExportRequest.SerializeToString
    )
    digest = "" if incoming.merged is None else incoming.merged.digest
    call = stub(continual_pb2.ExportRequest(digest=digest, position=incoming.position), timeout=STREAM_S)
    try:
        while (frame := await patience.wait(call.read())) is not grpc.aio.EOF:
            await asyncio.to_thread(incoming.take, frame)
            patience.heard(incoming.position)
        return incoming.ended(patience.whom)
    except (PayloadError, RoundGone):
        incoming.forget()
        raise
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.OUT_OF_RANGE:
            incoming.forget()  # another model is the newest by now
        raise
    finally:
        call.cancel()


class _Incoming:
    """How far the merged model has come; survives streams that break."""

    def __init__(self, begin: Callable[[Merged], None], take: Callable[[int, memoryview], None]) -> None:
        self.merged: Merged | None = None
        self.position = 0
        self._begin = begin
        self._take = take

    def take(self, frame: bytes) -> None:
        """Take one frame.

        Raises:
            PayloadError: it is none, or not the next one.
        """
        if is_data_frame(frame):
            position, start = read_data_frame(frame)
            if self.merged is None or position != self.position:
                raise PayloadError(f"the merged model went on at byte {position} where byte {self.position} was next")
            self._take(position, memoryview(frame)[start:])
            self.position = position + len(frame) - start
            return
        try:
            message = continual_pb2.ExportFrame.FromString(frame)
        except DecodeError:
            raise PayloadError(f"{len(frame)} bytes came that are no frame") from None
        if message.HasField("merged"):
            merged = convert.from_proto(Merged, message.merged)
            if merged != self.merged:
                self.merged, self.position = merged, 0
                self._begin(merged)

    def ended(self, whom: str) -> Merged:
        """What has come; raises PayloadError unless that is every byte."""
        if self.merged is None or self.position != self.merged.num_bytes:
            raise PayloadError(f"the merged model of {whom} is truncated: it ended after {self.position} bytes")
        return self.merged

    def forget(self) -> None:
        """Begin again."""
        self.merged, self.position = None, 0
