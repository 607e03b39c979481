"""Agents in one process: the same bytes, digests and checks as over the network, without a network.

The simulator runs agents one after the other in one thread, so besides `wait` there is `ready`, which never sleeps.
Agents in several threads work as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from dimat.errors import PeerUnavailable, TransportError
from dimat.messages import Description, Directive, Heartbeat, Join, Payload, Report, Schema, View
from dimat.transport.base import ControlHandler, Fetch, Wait, known
from dimat.transport.receive import Receiver, pieces
from dimat.transport.store import Changes, SnapshotStore, has_gone_on, wait_for_peers

PIECE_BYTES = 1 << 20
"""Bytes copied at once: what fits the processor's cache is checked there."""


class MemoryHub:
    """The place where the agents of one process find each other."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.on_read: Callable[[int, int, str, int], None] = self.acknowledge
        """Called when a reader has what it fetched (reader, publisher, kind, round); may put acknowledging off."""
        self._doors: dict[int, MemoryTransport] = {}
        self._lock = threading.Lock()

    def enter(self, agent: int, door: MemoryTransport) -> None:
        """Let others find `agent`; a restarted agent takes its old place."""
        with self._lock:
            self._doors[agent] = door
        self.changes.bump()

    def leave(self, agent: int, door: MemoryTransport) -> None:
        """Take `agent` off, unless a newer one has taken its place."""
        with self._lock:
            if self._doors.get(agent) is door:
                del self._doors[agent]
        self.changes.bump()

    def acknowledge(self, reader: int, publisher: int, kind: str, round_: int) -> None:
        """Let `publisher` know that `reader` has read a round, unless it has left."""
        door = self.find(publisher)
        if door is not None:
            door.store.acknowledge(reader, kind, round_)

    def find(self, agent: int) -> MemoryTransport | None:
        """The door of `agent`, or None when it is not there."""
        with self._lock:
            return self._doors.get(agent)


class MemoryTransport:
    """One agent's door to the others of its process; implements `dimat.transport.base.Transport`.

    With `lends`, what is fetched is checked in the same way and then read where its publisher keeps it: it is frozen,
    and a thousand agents need no buffers. Readers must not write to it.

    >>> from dimat.messages import Header, Tensor, TensorSpec, digest
    >>> from dimat.transport.base import Buffer
    >>> schema, hub = Schema((TensorSpec("w", "uint8", (3,)),)), MemoryHub()
    >>> alice, bob = (MemoryTransport(agent, "s", schema, hub) for agent in (0, 1))
    >>> alice.start(), bob.start()
    ('memory:0', 'memory:1')
    >>> tensor = Tensor(schema.tensors[0], memoryview(b"abc"), digest(b"abc"))
    >>> alice.publish(Payload(Header("snapshot", 1, agent=0), (tensor,)))
    >>> fetched = bob.gather((Fetch(0, "snapshot", 1, Buffer(schema)),), timeout_s=1.0)[0]
    >>> bytes(fetched.tensors[0].data)
    b'abc'
    """

    def __init__(self, agent: int, session: str, schema: Schema, hub: MemoryHub, *, lends: bool = False) -> None:
        self._agent = agent
        self._lends = lends
        self._session = session
        self._schema = schema
        self._hub = hub
        self._store = SnapshotStore(agent, hub.changes)
        self._gone: frozenset[int] = frozenset()

    def start(self) -> str:
        """Be found by the others; returns an address that nobody needs."""
        self._hub.enter(self._agent, self)
        return f"memory:{self._agent}"

    def connect(self, addresses: Mapping[int, str]) -> None:
        """Nothing to learn: the hub knows where everybody is."""
        del addresses

    def describe(self, peer: int, timeout_s: float) -> Description:
        """What `peer` says of itself; who is not in the hub is not waited for."""
        del timeout_s
        door = self._find(peer)
        return Description(door._agent, door._session, door._schema, door._store.newest())

    def publish(self, payload: Payload) -> None:
        """Let readers fetch `payload` from now on."""
        self._store.publish(payload)

    def forget(self, kind: str) -> None:
        """Serve nothing of a kind any more."""
        self._store.forget(kind)

    def ready(self, wait: Wait) -> frozenset[int]:
        """Those of `wait.peers` who have done by now what is waited for; never sleeps."""
        if wait.what == "acknowledged":
            return self._store.readers(wait.kind, wait.round) & frozenset(wait.peers)
        doors = ((peer, self._hub.find(peer)) for peer in wait.peers)
        return frozenset(peer for peer, door in doors if door and door._store.newest().get(wait.kind, -1) >= wait.round)

    def settled(self, wait: Wait) -> frozenset[int]:
        """Those of `wait.peers` for whom waiting is over: they have done it, read this round no more, or are gone."""
        gone = self._gone & frozenset(wait.peers)
        if wait.what == "published":
            return self.ready(wait) | gone
        doors = ((peer, self._hub.find(peer)) for peer in wait.peers)
        gone_on = {peer for peer, door in doors if door and has_gone_on(wait, door._store.newest())}
        return self.ready(wait) | gone_on | gone

    def presume_gone(self, peers: frozenset[int]) -> None:
        """Do not wait for these peers."""
        self._gone = peers
        self._hub.changes.bump()

    def wait(self, wait: Wait, on_change: Callable[[Mapping[int, str]], None] | None = None) -> frozenset[int]:
        """Sleep until all peers have done what is waited for, or the time is over; returns those who have."""
        wait_for_peers(
            wait, self._hub.changes, lambda: self.settled(wait), lambda peer: self._known(peer, wait), on_change
        )
        return self.ready(wait)

    def gather(self, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Payload | TransportError]:
        """Copy from all peers into the given buffers, with every check of the network, and acknowledge."""
        deadline = time.monotonic() + timeout_s
        return {fetch.peer: self._fetch(fetch, deadline) for fetch in fetches}

    def begin(self, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Future[Payload | TransportError]]:
        """As `gather`, which is all there is to it: what lies in this process has come at once."""
        return {peer: known(answer) for peer, answer in self.gather(fetches, timeout_s).items()}

    @property
    def store(self) -> SnapshotStore:
        """What readers are served from."""
        return self._store

    def readers(self, kind: str, round_: int) -> frozenset[int]:
        """Who has acknowledged reading a round that is still held."""
        return self._store.readers(kind, round_)

    def close(self) -> None:
        """Leave the hub."""
        self._hub.leave(self._agent, self)

    def _fetch(self, fetch: Fetch, deadline: float) -> Payload | TransportError:
        receiver = Receiver(self._agent, fetch)
        try:
            store = self._find(fetch.peer)._store
            payload = store.get(fetch.kind, fetch.round)
            specs = tuple(tensor.spec for tensor in payload.tensors)
            receiver.announce(payload.header, specs, tuple(tensor.checksum for tensor in payload.tensors))
            if fetch.held is not None and receiver.is_announced(fetch.held):
                self._hub.on_read(self._agent, fetch.peer, fetch.kind, payload.header.round)
                return fetch.held
            if self._lends:
                receiver.check(payload)
                self._hub.on_read(self._agent, fetch.peer, fetch.kind, payload.header.round)
                return payload
            for _, parts in pieces(payload, 0, PIECE_BYTES):
                if time.monotonic() > deadline:
                    raise PeerUnavailable(f"agent {fetch.peer}'s {fetch.kind!r} was not read before the deadline")
                for part in parts:
                    receiver.take(receiver.position, part)
            received = receiver.finish()
        except TransportError as error:
            return error
        self._hub.on_read(self._agent, fetch.peer, fetch.kind, received.header.round)
        return received

    def _find(self, peer: int) -> MemoryTransport:
        door = self._hub.find(peer)
        if door is None:
            raise PeerUnavailable(f"agent {peer} is not there: it has not started, or has closed its door")
        return door

    def _known(self, peer: int, wait: Wait) -> str:
        door = self._hub.find(peer)
        if door is None:
            return "is not there"
        if wait.what == "acknowledged":
            return f"has not read {wait.kind!r} of round {wait.round}"
        newest = door._store.newest().get(wait.kind)
        return f"has published no {wait.kind!r} yet" if newest is None else f"has published round {newest}"


class MemoryControl:
    """A line to a coordinator in the same process; implements `dimat.transport.base.Control`.

    `join` waits for all agents like any other, except with a `timeout_s` of 0: then it lets the agent in and returns
    the view as it is, so that whoever runs all agents in one thread can let in one after the other.
    """

    def __init__(self, handler: ControlHandler) -> None:
        self._handler = handler

    def join(self, join: Join, timeout_s: float) -> View:
        """Enter the run; returns the view once all agents have joined.

        Raises:
            PeerUnavailable: not all agents came within `timeout_s`; the message says who is missing.
            UsageError: the coordinator refuses this agent.
        """
        deadline = time.monotonic() + timeout_s
        view = self._handler.join(join)
        if timeout_s == 0:
            return view
        while view.state == "forming":
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise PeerUnavailable(still_forming(view, timeout_s))
            view = self._handler.changed(view.number, remaining_s)
            if view.state != "forming":  # where this agent begins is for it alone to know
                view = self._handler.join(join)
        return view

    def heartbeat(self, beat: Heartbeat) -> Directive:
        """Say that one is alive."""
        return self._handler.heartbeat(beat)

    def report(self, report: Report) -> Directive:
        """Hand in one round's numbers."""
        return self._handler.report(report)

    def close(self, timeout_s: float = 5.0) -> None:
        """Nothing is kept back, so nothing is left to send."""
        del timeout_s


def still_forming(view: View, waited_s: float) -> str:
    """The sentence for a run whose agents have not all come."""
    absent = [str(member.agent) for member in view.members if member.state == "absent"]
    who = (
        f"agents that have not joined: {', '.join(absent)}"
        if absent
        else view.reason or "the coordinator did not say why"
    )
    return f"the run is still forming after {waited_s:.0f} s; {who}"
