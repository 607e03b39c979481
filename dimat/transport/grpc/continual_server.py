"""A ledger's gRPC service in front of a `ContinualHandler`: models stream in, the merged one streams out.

The handler writes to disk and computes, so its calls run in threads beside the loop; the loop only moves frames. While
something takes its time, the client hears every few seconds where it stands, and so tells slowness from absence.

What a client may cost is limited in time and in calls by `continual_gate`, and by the handler in bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from dimat.errors import PayloadError, PeerUnavailable, UsageError
from dimat.messages import PROTOCOL_VERSION
from dimat.proto.v1 import continual_pb2
from dimat.transport.continual import ContinualHandler, Held, Lease, LedgerEntry, Offer, Queued, SubmitAnswer
from dimat.transport.grpc import convert, options
from dimat.transport.grpc.admission import Admission
from dimat.transport.grpc.callers import ledger_rules
from dimat.transport.grpc.continual_gate import Gate, Limits
from dimat.transport.grpc.errors import guarded
from dimat.transport.grpc.frames import data_frame, is_data_frame, read_data_frame
from dimat.transport.grpc.server import GRACE_S, GrpcServer
from dimat.transport.security import Credentials

SERVICE = "dimat.v1.Continual"
TICK_S = 5.0
"""How often a client hears where things stand while nothing happens."""

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class ContinualServer:
    """Serves a handler; `start()` returns the address, `close()` ends it.

    Args:
        handler: what answers; called from several threads.
        bind: the address to listen on; loopback unless `insecure`.
        port: 0 lets the system choose.
        advertise: HOST or HOST:PORT that clients dial, where it differs from `bind`.
        insecure: allow plain text beyond loopback.
        credentials: proves to clients that this is the coordinator; with them nothing is plain text.
        limits: what clients may ask.
        frame_bytes: size of the frames that are sent.
    """

    def __init__(
        self,
        handler: ContinualHandler,
        bind: str = "127.0.0.1",
        port: int = 0,
        *,
        advertise: str | None = None,
        insecure: bool = False,
        credentials: Credentials | None = None,
        limits: Limits | None = None,
        frame_bytes: int = options.FRAME_BYTES,
    ) -> None:
        self._handler = handler
        self._limits = limits or Limits()
        self._frame_bytes = frame_bytes
        self._gate = Gate(self._limits)
        self._threads: ThreadPoolExecutor | None = None
        self._server = GrpcServer(
            {SERVICE: self._methods()},
            bind=bind,
            port=port,
            advertise=advertise,
            insecure=insecure,
            credentials=credentials,
            admission=Admission(ledger_rules()),
            max_message_bytes=options.max_message_bytes(handler.schema),
        )

    def start(self) -> str:
        """Listen; returns the address that clients dial.

        Raises:
            UsageError: a port in use, an address that is not this machine's, plain text beyond loopback.
        """
        self._threads = ThreadPoolExecutor(2 * self._limits.num_streams + 4, thread_name_prefix="dimat-continual")
        try:
            return self._server.start()
        except BaseException:
            self.close()
            raise

    def close(self, grace_s: float = GRACE_S) -> None:
        """End what is under way after `grace_s` seconds, free the port; a second call does nothing."""
        if self._threads is not None:
            self._server.close(grace_s)
            self._threads.shutdown()
            self._threads = None

    def _methods(self) -> Mapping[str, grpc.RpcMethodHandler[Any, Any]]:
        """The method handlers by name; frames stay bytes."""
        return {
            "Submit": grpc.stream_stream_rpc_method_handler(
                guarded(self._submit), response_serializer=continual_pb2.SubmitAnswer.SerializeToString
            ),
            "Status": grpc.unary_unary_rpc_method_handler(
                guarded(self._status),
                request_deserializer=continual_pb2.StatusRequest.FromString,
                response_serializer=continual_pb2.LedgerStatus.SerializeToString,
            ),
            "Export": grpc.unary_stream_rpc_method_handler(
                guarded(self._export), request_deserializer=continual_pb2.ExportRequest.FromString
            ),
        }

    # -------------------------------------------------------------------------------------------------- models come in

    async def _submit(self, frames: Any, context: Context) -> None:
        del frames  # read from the context, with a limit on time
        with self._gate.call(context.peer()):
            offer = self._offer(await _within(_read(context), self._limits.stall_s, "the offer"))
            while isinstance(found := await self._begin(offer, context), Held):
                await self._tell(context, asyncio.wrap_future(found.until), lambda: SubmitAnswer("waiting"))
            if not isinstance(found, LedgerEntry | Queued):
                found = await self._receive(found, context)
            if isinstance(found, LedgerEntry):
                answer = SubmitAnswer("present", offer.num_bytes, entry=found)
            else:
                queued = found

                def waiting() -> SubmitAnswer:
                    return SubmitAnswer("queued", offer.num_bytes, queued.ahead())

                await self._say(context, waiting())
                entry, present = await self._tell(context, asyncio.wrap_future(queued.entry), waiting)
                answer = SubmitAnswer(
                    "present" if present or queued.others else "absorbed", offer.num_bytes, entry=entry
                )
            await self._say(context, answer)

    async def _begin(self, offer: Offer, context: Context) -> LedgerEntry | Queued | Held | Lease:
        """What the handler says to an offer."""
        beginning = self._thread(self._handler.begin, offer, context.peer())
        try:
            return await self._tell(context, beginning, lambda: SubmitAnswer("waiting"))
        except BaseException:
            beginning.add_done_callback(self._release)  # the client has gone meanwhile
            raise

    async def _receive(self, lease: Lease, context: Context) -> Queued:
        """Take frames until the model is whole."""
        try:
            with self._gate.stream("received"):
                # Bytes that were there before are checked again after a restart, which may take a while.
                await self._tell(context, self._thread(lease.open), lambda: SubmitAnswer("waiting"))
                await self._say(context, SubmitAnswer("receiving", lease.position))
                started, first = time.monotonic(), lease.position
                told_at = started
                while lease.position < lease.num_bytes:
                    patience_s = self._limits.patience_s(time.monotonic() - started, lease.position - first)
                    reading = asyncio.ensure_future(_within(_read(context), patience_s, "the next frame"))
                    frame = await self._tell(context, reading, lambda: SubmitAnswer("receiving", lease.position))
                    if not is_data_frame(frame):
                        raise PayloadError("a frame of data was expected, and something else came")
                    position, start = read_data_frame(frame)
                    await self._thread(lease.take, position, memoryview(frame)[start:])
                    if time.monotonic() - told_at > 1.0:
                        told_at = time.monotonic()
                        await self._say(context, SubmitAnswer("receiving", lease.position))
                finishing = self._thread(self._handler.finish, lease)
                return await self._tell(context, finishing, lambda: SubmitAnswer("receiving", lease.position))
        finally:
            self._thread(lease.release)

    def _offer(self, frame: bytes) -> Offer:
        """The offer in a first frame, of about as many tensors as the base has: counted before it is converted."""
        try:
            message = continual_pb2.SubmitFrame.FromString(frame)
        except DecodeError:
            raise PayloadError(f"{len(frame)} bytes came that are no frame") from None
        if not message.HasField("offer") or message.HasField("data"):
            raise PayloadError("the first frame must hold an offer, and nothing else")
        if message.offer.protocol != PROTOCOL_VERSION:
            raise UsageError(
                f"the client speaks version {message.offer.protocol} of the protocol, this server {PROTOCOL_VERSION}",
                hint="install the same version of dimat on both sides",
            )
        most = len(self._handler.schema.tensors)
        for what, count in (("tensors", len(message.offer.tensors)), ("checksums", len(message.offer.checksums))):
            if count > most + 1:  # one too many is still named
                raise UsageError(f"a model of {count} {what} was offered; the ledger's base has {most} tensors")
        return convert.from_proto(Offer, message.offer)

    # ------------------------------------------------------------------------------------------------- answers go out

    async def _status(self, request: continual_pb2.StatusRequest, context: Context) -> continual_pb2.LedgerStatus:
        del request
        with self._gate.call(context.peer()):
            status: continual_pb2.LedgerStatus = convert.to_proto(await self._thread(self._handler.status))
            return status

    async def _export(self, request: continual_pb2.ExportRequest, context: Context) -> None:
        with self._gate.call(context.peer()), self._gate.stream("sent"):
            opening = self._thread(self._handler.merged, request.digest)
            try:
                reader = await self._tell(context, opening, lambda: None)
            except BaseException:
                opening.add_done_callback(self._release)
                raise
            try:
                merged = convert.to_proto(reader.merged)
                await self._write(context, continual_pb2.ExportFrame(merged=merged).SerializeToString())
                position = request.position
                while data := await self._thread(reader.read, position, self._frame_bytes):
                    await self._write(context, data_frame(position, [memoryview(data)]))
                    position += len(data)
            finally:
                self._thread(reader.close)

    # ------------------------------------------------------------------------------------------------------- plumbing

    def _thread(self, call: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """`call` in a thread; what nobody waits for any more may fail in silence."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        future.add_done_callback(_seen)
        return future

    async def _tell(self, context: Context, future: asyncio.Future[T], now: Callable[[], SubmitAnswer | None]) -> T:
        """Wait for `future`, and write every few seconds what `now()` says (of an export: an empty frame).

        A wait that is cancelled leaves the future alone: others may wait for it too.
        """
        future.add_done_callback(_seen)
        while not (await asyncio.wait({future}, timeout=TICK_S))[0]:
            answer = now()
            await (self._write(context, b"") if answer is None else self._say(context, answer))
        return future.result()

    async def _say(self, context: Context, answer: SubmitAnswer) -> None:
        await self._write(context, convert.to_proto(answer))

    async def _write(self, context: Context, message: Any) -> None:
        """Send a message: who does not read what they are sent holds no place for it."""
        await _within(context.write(message), self._limits.stall_s, "the client's reading")

    def _release(self, future: asyncio.Future[Any]) -> None:
        """Give back what a client asked for and did not wait for."""
        if future.cancelled() or future.exception() is not None:
            return
        found = future.result()
        for end in ("release", "close"):
            if hasattr(found, end) and self._threads is not None:
                self._threads.submit(getattr(found, end))


async def _read(context: Context) -> bytes:
    """The next frame."""
    frame = await context.read()
    if frame is grpc.aio.EOF:
        raise PayloadError("the stream ended before the model was whole")
    assert isinstance(frame, bytes)
    return frame


async def _within(work: Awaitable[T], timeout_s: float, what: str) -> T:
    try:
        return await asyncio.wait_for(work, timeout_s)
    except TimeoutError:
        raise PeerUnavailable(f"stalled: {what} did not come within {timeout_s:.0f} s") from None


def _seen(future: asyncio.Future[Any]) -> None:
    """Whatever became of it was looked at: nothing is logged when nobody waits any more."""
    if not future.cancelled():
        future.exception()
