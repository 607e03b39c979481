"""The calls that one agent makes to another, on one channel that is kept.

Every call has a deadline. Describe waits until the channel is ready, so a neighbour that is starting or coming back is
found without a loop of retries; Fetch is for neighbours that have published, and gives up on one that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from dimat.errors import NotTrusted, PeerUnavailable, TransportError
from dimat.messages import Payload
from dimat.proto.v1 import peer_pb2
from dimat.transport.base import Fetch
from dimat.transport.grpc import convert, errors
from dimat.transport.grpc.channels import open_channel
from dimat.transport.grpc.diagnose import diagnose
from dimat.transport.grpc.frames import take_frame
from dimat.transport.receive import Receiver
from dimat.transport.security import Credentials, agent

MAX_BREAKS = 6
"""Times in a row that a stream may break without a single new byte before its peer is given up."""
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0
ACKNOWLEDGE_S = 2.0
"""How long an acknowledgement may take; a later call carries it again."""
LOOK_S = 1.0
"""After so long without a line it is looked into whether certificates are the reason ..."""
DIAGNOSE_S = 10.0
"""... and then this often."""


log = logging.getLogger(__name__)


class PeerClient:
    """The line from agent `reader` to agent `peer`; made and used on the loop.

    Args:
        reader: who reads.
        peer: who is read.
        address: where it listens, HOST:PORT.
        max_message_bytes: messages above are refused unread.
        credentials: who the reader is; with them the peer must prove to be agent `peer`.
        insecure: allow plain text beyond this machine.

    Raises:
        UsageError: plain text would leave this machine without leave.
    """

    def __init__(
        self,
        reader: int,
        peer: int,
        address: str,
        max_message_bytes: int,
        credentials: Credentials | None = None,
        insecure: bool = False,
    ) -> None:
        self.address = address
        self.whom = f"agent {peer} at {address}"
        self.heard_at: float | None = None
        self._reader = reader
        self._unsaid: set[tuple[str, int]] = set()  # acknowledgements that the peer may not have received
        self._jitter = random.Random(reader)
        self.trouble: str | None = None
        """Why the peer cannot be trusted, or does not trust this side; None when nothing is known of that kind."""
        self._peer = agent(peer)
        self._credentials = credentials
        self._diagnosed_at = float("-inf")
        self._channel = open_channel(
            address, self._peer, credentials, insecure=insecure, max_message_bytes=max_message_bytes
        )
        self._describe: Any = self._channel.unary_unary(
            "/dimat.v1.Peer/Describe",
            request_serializer=peer_pb2.DescribeRequest.SerializeToString,
        )
        self._fetch: Any = self._channel.unary_stream(
            "/dimat.v1.Peer/Fetch", request_serializer=peer_pb2.FetchRequest.SerializeToString
        )  # no deserialiser: frames arrive as bytes

    async def describe(
        self, timeout_s: float, *, until: tuple[str, int] | None = None, wait_s: float = 0.0, with_schema: bool = False
    ) -> peer_pb2.Description:
        """Ask what the peer has published, at once or when `until` (kind, round) is; carries acknowledgements.

        Raises:
            NotTrusted: certificates keep the two apart; said as soon as it is clear.
            TransportError: no answer within `timeout_s`, or an error.
        """
        said = sorted(self._unsaid)
        request = peer_pb2.DescribeRequest(
            reader=self._reader, acknowledged=_published(said), wait_s=wait_s, with_schema=with_schema
        )
        if until is not None:
            request.until.kind, request.until.round = until
        try:
            with self._line():
                answer = await self._answer(self._describe(request, timeout=timeout_s, wait_for_ready=True))
        except grpc.aio.AioRpcError as error:
            raise await self._error(error) from None
        self._unsaid.difference_update(said)
        self._heard()
        return answer

    async def fetch(self, fetch: Fetch, deadline: float) -> Payload:
        """Read a payload into the fetch's buffer, going on where a broken stream stopped, and acknowledge it.

        Where what is held is announced, that is it: no byte of it is taken a second time.

        Raises:
            TransportError: what arrived is not right, the round is not held, or the deadline (`time.monotonic`) passed.
        """
        receiver, held = Receiver(self._reader, fetch), False
        num_breaks = 0
        while True:
            before = receiver.position
            try:
                with self._line():
                    held = await self._stream(receiver, deadline)
                break
            except grpc.aio.AioRpcError as error:
                if not errors.may_pass(error):
                    raise await self._error(error, receiver) from None
                if not receiver.position and (trouble := await self._look_into()):
                    raise NotTrusted(f"{self.whom}: {trouble}") from None
                num_breaks = 1 if receiver.position > before else num_breaks + 1
                # Full jitter: neighbours whose streams broke together do not come back together.
                pause_s = self._jitter.uniform(0, min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**num_breaks))
                if num_breaks > MAX_BREAKS or time.monotonic() + pause_s >= deadline:
                    raise await self._error(error, receiver) from None
                await asyncio.sleep(pause_s)
        payload = fetch.held if held and fetch.held is not None else receiver.finish()
        self._unsaid.add((fetch.kind, payload.header.round))
        await self._acknowledge(deadline)
        return payload

    @contextlib.contextmanager
    def _line(self) -> Iterator[None]:
        """A call on this line; one that is hung up because the peer is elsewhere now is as good as one that is gone.

        Raises:
            PeerUnavailable: it was hung up.
        """
        try:
            yield
        except (asyncio.CancelledError, grpc.aio.UsageError) as end:
            task = asyncio.current_task()
            if isinstance(end, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # it is this task that somebody has cancelled, and not the call
            raise PeerUnavailable(f"{self.whom}: the line was hung up, it is elsewhere now") from None

    async def close(self, grace_s: float | None = None) -> None:
        """Hang up; calls under way may end within `grace_s` seconds."""
        await self._channel.close(grace_s)

    async def _stream(self, receiver: Receiver, deadline: float) -> bool:
        """Take frames until the stream ends or breaks; True, as soon as it turns out to bring what is held already."""
        held = None if receiver.position else receiver.fetch.held
        request = peer_pb2.FetchRequest(
            reader=self._reader, kind=receiver.fetch.kind, round=receiver.round, position=receiver.position
        )
        if held is not None:
            request.held = held.identity
        # Not `wait_for_ready`: who published a moment ago and is gone now shall not cost the whole deadline.
        call = self._fetch(request, timeout=max(0.0, deadline - time.monotonic()))
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                take_frame(receiver, frame)
                if held is not None and not receiver.position and receiver.is_announced(held):
                    self._heard()
                    return True
        finally:
            call.cancel()  # the peer stops sending what would be refused; no effect on a call that has ended
        self._heard()
        return False

    async def _acknowledge(self, deadline: float) -> None:
        with contextlib.suppress(TransportError):  # it stays unsaid, and the next call says it
            await self.describe(max(0.05, min(ACKNOWLEDGE_S, deadline - time.monotonic())))

    async def _answer(self, call: Any) -> peer_pb2.Description:
        """What a call brings; one that finds no line because of certificates does not wait for its deadline."""

        async def wait() -> peer_pb2.Description:
            return convert.parsed(peer_pb2.Description, await call, self.whom)

        waiting = asyncio.create_task(wait())
        try:
            if not (await asyncio.wait({waiting}, timeout=LOOK_S))[0] and (trouble := await self._look_into()):
                raise NotTrusted(f"{self.whom}: {trouble}")
            return await waiting
        finally:
            waiting.cancel()

    def _heard(self) -> None:
        self.heard_at = time.monotonic()
        self.trouble = None

    async def _error(self, error: grpc.aio.AioRpcError, receiver: Receiver | None = None) -> TransportError:
        """What a failed call to this peer means; an unfinished fetch tells how far it had come."""
        meant = errors.from_status(error, self.whom)
        if isinstance(meant, PeerUnavailable) and (trouble := await self._look_into()):
            return NotTrusted(f"{self.whom}: {trouble}")
        if isinstance(meant, PeerUnavailable) and receiver is not None and receiver.position:
            return PeerUnavailable(f"{meant}, after {receiver.position} of {receiver.num_bytes} bytes")
        # Whatever a peer answers is about that peer: it never looks like the user's own mistake.
        return meant if isinstance(meant, TransportError) else TransportError(f"{self.whom} refused: {meant}")

    async def _look_into(self) -> str | None:
        """Whether certificates are why there is no line, which is not the case where there is one."""
        if self._channel.get_state() is grpc.ChannelConnectivity.READY:
            return None
        if time.monotonic() - self._diagnosed_at >= DIAGNOSE_S:
            self._diagnosed_at = time.monotonic()
            before = self.trouble
            self.trouble = await asyncio.to_thread(diagnose, self.address, self._peer, self._credentials)
            if self.trouble and self.trouble != before:
                log.warning("%s: %s", self.whom, self.trouble)
        return self.trouble


def _published(pairs: Iterable[tuple[str, int]]) -> list[peer_pb2.Published]:
    return [peer_pb2.Published(kind=kind, round=round_) for kind, round_ in pairs]
