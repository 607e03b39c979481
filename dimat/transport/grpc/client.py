"""The calls that one agent makes to another, on one channel that is kept.

Every call has a deadline. Describe waits until the channel is ready, so a neighbour that is starting or coming back is
found without a loop of retries; Fetch is for neighbours that have published, and gives up on one that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable
from typing import Any

import grpc

from dimat.errors import PeerUnavailable, TransportError
from dimat.messages import Payload
from dimat.proto.v1 import peer_pb2
from dimat.transport.base import Fetch
from dimat.transport.grpc import convert, errors, options
from dimat.transport.grpc.frames import take_frame
from dimat.transport.receive import Receiver

MAX_BREAKS = 6
"""Times in a row that a stream may break without a single new byte before its peer is given up."""
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0
ACKNOWLEDGE_S = 2.0
"""How long an acknowledgement may take; a later call carries it again."""


class PeerClient:
    """The line from agent `reader` to agent `peer`; made and used on the loop.

    Args:
        reader: who reads.
        peer: who is read.
        address: where it listens, HOST:PORT.
        max_message_bytes: messages above are refused unread.
    """

    def __init__(self, reader: int, peer: int, address: str, max_message_bytes: int) -> None:
        self.address = address
        self.whom = f"agent {peer} at {address}"
        self.heard_at: float | None = None
        self._reader = reader
        self._unsaid: set[tuple[str, int]] = set()  # acknowledgements that the peer may not have received
        self._jitter = random.Random(reader)
        self._channel = grpc.aio.insecure_channel(address, options=options.client(max_message_bytes))
        self._describe: Any = self._channel.unary_unary(
            "/dimat.v1.Peer/Describe",
            request_serializer=peer_pb2.DescribeRequest.SerializeToString,
            response_deserializer=convert.reading(peer_pb2.Description),
        )
        self._fetch: Any = self._channel.unary_stream(
            "/dimat.v1.Peer/Fetch", request_serializer=peer_pb2.FetchRequest.SerializeToString
        )  # no deserialiser: frames arrive as bytes

    async def describe(
        self, timeout_s: float, *, until: tuple[str, int] | None = None, wait_s: float = 0.0, with_schema: bool = False
    ) -> peer_pb2.Description:
        """Ask what the peer has published, at once or when `until` (kind, round) is; carries acknowledgements.

        Raises:
            TransportError: no answer within `timeout_s`, or an error.
        """
        said = sorted(self._unsaid)
        request = peer_pb2.DescribeRequest(
            reader=self._reader, acknowledged=_published(said), wait_s=wait_s, with_schema=with_schema
        )
        if until is not None:
            request.until.kind, request.until.round = until
        try:
            answer: peer_pb2.Description | None = await self._describe(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        if answer is None:
            raise TransportError(f"{self.whom} answered with bytes that are no description")
        self._unsaid.difference_update(said)
        self.heard_at = time.monotonic()
        return answer

    async def fetch(self, fetch: Fetch, deadline: float) -> Payload:
        """Read a payload into the fetch's buffer, going on where a broken stream stopped, and acknowledge it.

        Raises:
            TransportError: what arrived is not right, the round is not held, or the deadline (`time.monotonic`) passed.
        """
        receiver = Receiver(self._reader, fetch)
        num_breaks = 0
        while True:
            before = receiver.position
            try:
                await self._stream(receiver, deadline)
                break
            except grpc.aio.AioRpcError as error:
                if error.code() not in errors.BROKEN:
                    raise self._error(error, receiver) from None
                num_breaks = 1 if receiver.position > before else num_breaks + 1
                # Full jitter: neighbours whose streams broke together do not come back together.
                pause_s = self._jitter.uniform(0, min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**num_breaks))
                if num_breaks > MAX_BREAKS or time.monotonic() + pause_s >= deadline:
                    raise self._error(error, receiver) from None
                await asyncio.sleep(pause_s)
        payload = receiver.finish()
        self._unsaid.add((fetch.kind, payload.header.round))
        await self._acknowledge(deadline)
        return payload

    async def close(self, grace_s: float | None = None) -> None:
        """Hang up; calls under way may end within `grace_s` seconds."""
        await self._channel.close(grace_s)

    async def _stream(self, receiver: Receiver, deadline: float) -> None:
        """Take frames until the stream ends or breaks."""
        request = peer_pb2.FetchRequest(
            reader=self._reader, kind=receiver.fetch.kind, round=receiver.round, position=receiver.position
        )
        # Not `wait_for_ready`: who published a moment ago and is gone now shall not cost the whole deadline.
        call = self._fetch(request, timeout=max(0.0, deadline - time.monotonic()))
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                take_frame(receiver, frame)
        finally:
            call.cancel()  # the peer stops sending what would be refused; no effect on a call that has ended
        self.heard_at = time.monotonic()

    async def _acknowledge(self, deadline: float) -> None:
        with contextlib.suppress(TransportError):  # it stays unsaid, and the next call says it
            await self.describe(max(0.05, min(ACKNOWLEDGE_S, deadline - time.monotonic())))

    def _error(self, error: grpc.aio.AioRpcError, receiver: Receiver | None = None) -> TransportError:
        """What a failed call to this peer means; an unfinished fetch tells how far it had come."""
        meant = errors.from_status(error, self.whom)
        if isinstance(meant, PeerUnavailable) and receiver is not None and receiver.position:
            return PeerUnavailable(f"{meant}, after {receiver.position} of {receiver.num_bytes} bytes")
        # Whatever a peer answers is about that peer: it never looks like the user's own mistake.
        return meant if isinstance(meant, TransportError) else TransportError(f"{self.whom} refused: {meant}")


def _published(pairs: Iterable[tuple[str, int]]) -> list[peer_pb2.Published]:
    return [peer_pb2.Published(kind=kind, round=round_) for kind, round_ in pairs]
