"""One agent's door to its neighbours over gRPC: a server that serves while it waits, and a line to each neighbour."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace

from dimat.errors import PeerUnavailable, TransportError, UsageError
from dimat.messages import Description, Payload, Schema
from dimat.transport.base import Fetch, Wait, closed
from dimat.transport.grpc import convert, options
from dimat.transport.grpc.admission import Admission, Limits
from dimat.transport.grpc.callers import MayRead, peer_rules
from dimat.transport.grpc.client import FIRST_PAUSE_S, MAX_PAUSE_S, PeerClient
from dimat.transport.grpc.loop import LoopThread
from dimat.transport.grpc.peer_service import SERVICE, PeerService
from dimat.transport.grpc.server import GrpcServer
from dimat.transport.security import Credentials
from dimat.transport.store import SnapshotStore, has_gone_on, wait_for_peers

UNASKED_S = 0.05
"""How long acknowledgements are awaited before their senders are asked how far they are."""

LAST_WORDS_S = 1.0
"""How long calls on a line may go on after its peer was found elsewhere."""
POLL_S = 10.0
"""A held call is renewed this often, so that a neighbour that hangs is told from one that trains."""


log = logging.getLogger(__name__)


class GrpcTransport:
    """Fetch neighbours' models over gRPC; implements `dimat.transport.base.Transport`.

    Args:
        agent: this agent's id.
        session: random per process, so that neighbours notice a restart.
        schema: this agent's model; what does not equal it is refused.
        bind: address to listen on.
        port: port to listen on; 0 lets the system choose.
        advertise: HOST or HOST:PORT that neighbours dial, where it differs from `bind`.
        insecure: allow plain text beyond loopback.
        credentials: who this agent is; with them nothing is plain text, and peers must prove who they are.
        may_read: whether an agent may fetch from this one now; by default any that says who it is.
        limits: what each peer may ask.
        frame_bytes: size of a frame, 1 KiB to 4 MB.
    """

    def __init__(
        self,
        agent: int,
        session: str,
        schema: Schema,
        *,
        bind: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        insecure: bool = False,
        credentials: Credentials | None = None,
        may_read: MayRead | None = None,
        limits: Limits | None = None,
        frame_bytes: int = options.FRAME_BYTES,
    ) -> None:
        if not options.MIN_FRAME_BYTES <= frame_bytes <= options.MAX_FRAME_BYTES:
            raise UsageError(
                f"frame_bytes is {frame_bytes}, expected {options.MIN_FRAME_BYTES} to {options.MAX_FRAME_BYTES}"
            )
        self._agent = agent
        self._schema = schema
        self._insecure = insecure
        self._credentials = credentials
        self._store = SnapshotStore(agent)
        self._service = PeerService(agent, session, schema, self._store, frame_bytes)
        self._server = GrpcServer(
            {SERVICE: self._service.methods()},
            bind=bind,
            port=port,
            advertise=advertise,
            insecure=insecure,
            credentials=credentials,
            admission=Admission(peer_rules(agent, may_read or _anybody), limits),
        )
        self._undialled: dict[int, str] = {}
        self._clients: dict[int, PeerClient] = {}
        self._gone: frozenset[int] = frozenset()
        self._closing: set[asyncio.Task[None]] = set()
        self._loop: LoopThread | None = None

    def start(self) -> str:
        """Open the door; returns the address at which others fetch.

        Raises:
            UsageError: a port in use, an address that is not this machine's, plain text beyond loopback.
        """
        address = self._server.start()
        self._loop = LoopThread.acquire()
        return address

    def connect(self, addresses: Mapping[int, str]) -> None:
        """Learn (again) where the peers are; known peers whose address changed are dialled anew."""
        self._store.expect(addresses)
        self._running().run(self._connect(addresses))

    def describe(self, peer: int, timeout_s: float) -> Description:
        """What `peer` says of itself.

        Raises:
            PeerUnavailable: no answer within `timeout_s` seconds.
            NotTrusted: it cannot prove to be `peer`, or does not believe this agent; said as soon as it is clear.
            TransportError: it speaks another version of the protocol.
        """
        client = self._client(peer)
        answer = self._running().run(client.describe(timeout_s, with_schema=True))
        return convert.description(answer, client.whom, most_tensors=4 * len(self._schema.tensors) + 100)

    def publish(self, payload: Payload) -> None:
        """Let readers fetch `payload` from now on."""
        self._store.publish(payload)

    def forget(self, kind: str) -> None:
        """Serve nothing of a kind any more."""
        self._store.forget(kind)

    def wait(self, wait: Wait, on_change: Callable[[Mapping[int, str]], None] | None = None) -> frozenset[int]:
        """Sleep until all peers have done what is waited for, or the time is over; returns those who have."""
        if wait.what == "acknowledged":
            return self._wait_for_readers(wait, on_change)
        newest: dict[int, int] = {}
        polls = self._running().run(self._start_polls(wait, newest))
        try:
            wait_for_peers(
                wait,
                self._store.changes,
                lambda: self._gone | {peer for peer in wait.peers if newest.get(peer, -1) >= wait.round},
                lambda peer: self._known(peer, wait.kind, newest),
                on_change,
            )
        finally:
            self._running().run(_cancel(polls))
        return frozenset(peer for peer in wait.peers if newest.get(peer, -1) >= wait.round)

    def _wait_for_readers(self, wait: Wait, on_change: Callable[[Mapping[int, str]], None] | None) -> frozenset[int]:
        """Wait for acknowledgements, but not for those of peers that have closed the round or published a later one.

        They have given up on this one. Waiting for them would make this agent late for the next round, and so on
        for ever. They are asked only when acknowledgements, which come unasked, take long.
        """

        def known(peer: int) -> str:
            return f"has not read {wait.kind!r} of round {wait.round}, {self._heard(peer)}"

        def readers() -> frozenset[int]:
            return self._store.readers(wait.kind, wait.round)

        unasked = replace(wait, timeout_s=min(wait.timeout_s, UNASKED_S))
        came = wait_for_peers(unasked, self._store.changes, lambda: readers() | self._gone, known, on_change)
        if len(came) == len(wait.peers) or wait.timeout_s <= UNASKED_S:
            return readers() & frozenset(wait.peers)
        later = replace(wait, round=wait.round + 1, timeout_s=wait.timeout_s - UNASKED_S)
        over = replace(later, kind=closed(wait.kind), round=wait.round)
        published: dict[int, int] = {}
        ended: dict[int, int] = {}
        loop = self._running()
        polls = [*loop.run(self._start_polls(later, published)), *loop.run(self._start_polls(over, ended))]

        def settled() -> frozenset[int]:
            told = {peer: {wait.kind: published.get(peer, -1), over.kind: ended.get(peer, -1)} for peer in wait.peers}
            return readers() | self._gone | {peer for peer, newest in told.items() if has_gone_on(wait, newest)}

        try:
            wait_for_peers(later, self._store.changes, settled, known, on_change)
        finally:
            loop.run(_cancel(polls))
        return readers() & frozenset(wait.peers)

    def presume_gone(self, peers: frozenset[int]) -> None:
        """Do not wait for these peers, from now on and until told otherwise."""
        self._gone = peers
        self._store.changes.bump()

    def gather(self, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Payload | TransportError]:
        """Fetch from all peers at the same time and acknowledge what arrived whole; a failure is a value."""
        return self._running().run(self._gather(fetches, time.monotonic() + timeout_s))

    def begin(self, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Future[Payload | TransportError]]:
        """As `gather`, without waiting: the loop's thread, which serves, fetches beside it."""
        loop, deadline = self._running(), time.monotonic() + timeout_s
        return {fetch.peer: loop.begin(self._fetch(fetch, deadline)) for fetch in fetches}

    @property
    def store(self) -> SnapshotStore:
        """What readers are served from."""
        return self._store

    def readers(self, kind: str, round_: int) -> frozenset[int]:
        """Who has acknowledged reading a round that is still held."""
        return self._store.readers(kind, round_)

    def close(self) -> None:
        """Stop serving, free the port and hang up; a second call does nothing."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        self._service.leave()
        self._server.close()
        loop.run(self._hang_up())
        loop.release()

    # ------------------------------------------------------------------------------------------------- on the loop

    async def _connect(self, addresses: Mapping[int, str]) -> None:
        for peer, address in addresses.items():
            known = self._clients.get(peer)
            if known is not None and known.address == address:
                continue
            limit = options.max_message_bytes(self._schema)
            self._undialled.pop(peer, None)
            try:
                self._clients[peer] = PeerClient(self._agent, peer, address, limit, self._credentials, self._insecure)
            except UsageError as refusal:  # one peer that is set up wrongly is one peer that is missing
                log.error("agent %d: %s", peer, refusal)
                self._undialled[peer] = str(refusal)
                self._clients.pop(peer, None)
            if known is not None:
                self._closing.add(closing := asyncio.create_task(known.close(LAST_WORDS_S)))
                closing.add_done_callback(self._closing.discard)

    async def _hang_up(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients.values()))
        await _cancel(list(self._closing))
        self._clients.clear()

    async def _start_polls(self, wait: Wait, newest: dict[int, int]) -> list[asyncio.Task[None]]:
        deadline = time.monotonic() + wait.timeout_s
        return [asyncio.create_task(self._poll(peer, wait, deadline, newest)) for peer in wait.peers]

    async def _poll(self, peer: int, wait: Wait, deadline: float, newest: dict[int, int]) -> None:
        """Ask `peer` again and again until it has published; notes in `newest` what it said."""
        pause_s = FIRST_PAUSE_S
        while (remaining_s := deadline - time.monotonic()) > 0:
            hold_s = min(remaining_s, POLL_S)
            try:
                answer = await self._client(peer).describe(hold_s + 1.0, until=(wait.kind, wait.round), wait_s=hold_s)
            except TransportError:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                continue
            pause_s = FIRST_PAUSE_S
            newest[peer] = answer.newest.get(wait.kind, -1)
            self._store.changes.bump()
            if newest[peer] >= wait.round:
                return
            await asyncio.sleep(FIRST_PAUSE_S)  # an agent that is leaving answers at once

    async def _gather(self, fetches: tuple[Fetch, ...], deadline: float) -> dict[int, Payload | TransportError]:
        results = await asyncio.gather(*(self._fetch(fetch, deadline) for fetch in fetches))
        return {fetch.peer: result for fetch, result in zip(fetches, results, strict=True)}

    async def _fetch(self, fetch: Fetch, deadline: float) -> Payload | TransportError:
        try:
            return await self._client(fetch.peer).fetch(fetch, deadline)
        except TransportError as error:
            return error

    # ----------------------------------------------------------------------------------------------------- helpers

    def _running(self) -> LoopThread:
        if self._loop is None:
            raise TransportError(
                f"agent {self._agent}'s transport is not running: start() comes first, close() is last"
            )
        return self._loop

    def _client(self, peer: int) -> PeerClient:
        client = self._clients.get(peer)
        if peer in self._undialled:
            raise PeerUnavailable(f"agent {peer}: {self._undialled[peer]}")
        if client is None:
            known = ", ".join(str(other) for other in sorted(self._clients)) or "none"
            raise PeerUnavailable(f"agent {peer} has no address: connect() named {known}")
        return client

    def _heard(self, peer: int) -> str:
        client = self._clients.get(peer)
        if client is None:
            return self._undialled.get(peer, "no address known")
        if client.trouble:
            return client.trouble
        if client.heard_at is None:
            return f"not heard yet at {client.address}"
        return f"last heard {time.monotonic() - client.heard_at:.0f} s ago"

    def _known(self, peer: int, kind: str, newest: Mapping[int, int]) -> str:
        if peer not in newest:
            return self._heard(peer)
        said = f"has published round {newest[peer]}" if newest[peer] >= 0 else f"has published no {kind!r} yet"
        return f"{said}, {self._heard(peer)}"


def _anybody(peer: int) -> bool:
    del peer
    return True


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
