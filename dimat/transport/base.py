"""How an agent reaches its neighbours: one small interface, in memory or over gRPC.

Pull only: an agent publishes, whoever may read it fetches; nobody can push weights into another agent. Two rounds of
every kind are kept. On an undirected graph that is enough: to publish round r+1 an agent must have read (or given up
on) round r of its neighbours, so no reader is ever more than one round behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from dimat.errors import TransportError
from dimat.messages import Description, Directive, Drain, Heartbeat, Join, Payload, Report, Schema, View

HISTORY = 2
"""Rounds of each kind that a publisher keeps."""

CLOSED = "closed"
"""The kind of an empty payload by which an agent says that it reads no snapshot any more of this round, or an earlier
one. Whoever waits for its acknowledgement need not wait longer."""


def closed(kind: str) -> str:
    """The kind of payload by which an agent says that it reads nothing of `kind` any more.

    >>> closed("snapshot"), closed("statistics")
    ('closed', 'closed:statistics')
    """
    return CLOSED if kind == "snapshot" else f"{CLOSED}:{kind}"


@dataclass(frozen=True, slots=True)
class Wait:
    """What an agent waits for: that `peers` have published, or have acknowledged reading, `kind` of `round`.

    `hosted` waits for no peer, but for whoever runs many agents in one process: it has work of this agent's to do.
    """

    what: Literal["published", "acknowledged", "hosted"]
    peers: tuple[int, ...]
    kind: str
    round: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Fetch:
    """One thing to fetch: `kind` of `round` (None: the newest) from agent `peer`, into the receiver's own buffer."""

    peer: int
    kind: str
    round: int | None
    into: Buffer
    held: Payload | None = None
    """What `into` holds of it from an earlier fetch. Where that is what the peer would send, header and digests alike,
    it is itself the answer, the peer is told that it was read, and no tensor travels."""
    during: int | None = None
    """The round that the reader is in, where it does not ask for a round; None: the one that it published last."""

    def num_bytes(self, answer: Payload | TransportError) -> int:
        """The bytes of tensors that travelled for `answer`: none for what was held, or did not come."""
        return 0 if isinstance(answer, TransportError) or answer is self.held else answer.num_bytes


class Buffer:
    """Memory for one incoming payload, sized by the receiver's own schema and used again every round.

    A peer can never make the receiver allocate: what it announces must fit this schema, tensor by tensor. Tensors lie
    one after another at offsets that are multiples of 64 bytes.

    >>> from dimat.messages import TensorSpec
    >>> buffer = Buffer(Schema((TensorSpec("w", "float32", (2, 3)),)))
    >>> len(buffer.view("w"))
    24
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._offsets: dict[str, tuple[int, int]] = {}
        end = 0
        for spec in schema.tensors:
            self._offsets[spec.name] = (end, spec.num_bytes)
            end += -(-spec.num_bytes // 64) * 64
        # np.empty maps pages only when they are first written: an unused buffer costs nothing.
        self._memory = memoryview(np.empty(end, dtype=np.uint8).data)

    def view(self, name: str) -> memoryview:
        """The writable bytes of tensor `name`."""
        start, num_bytes = self._offsets[name]
        return self._memory[start : start + num_bytes]


def known(answer: Payload | TransportError) -> Future[Payload | TransportError]:
    """A future of what is known already.

    >>> known(TransportError("nobody there")).done()
    True
    """
    future: Future[Payload | TransportError] = Future()
    future.set_result(answer)
    return future


class Transport(Protocol):
    """One agent's door to its neighbours. Methods are called from one thread, but for `connect` and `presume_gone`;
    serving, and transfers that were begun, go on beside them.
    """

    def start(self) -> str:
        """Open the door; returns the address at which others fetch. Nothing is served before."""

    def connect(self, addresses: Mapping[int, str]) -> None:
        """Learn (again) where the peers are; known peers whose address changed are dialled anew."""

    def describe(self, peer: int, timeout_s: float) -> Description:
        """What `peer` says of itself.

        Raises:
            PeerUnavailable: no answer within `timeout_s` seconds, retries included.
        """

    def publish(self, payload: Payload) -> None:
        """Let readers fetch `payload` from now on: they see the old one or the new one, never half.

        The payload's memory must not change while it is among the newest `HISTORY` rounds of its kind.
        """

    def forget(self, kind: str) -> None:
        """Serve nothing of `kind` any more and free its memory: all who were to read it have, or never will."""

    def wait(self, wait: Wait, on_change: Callable[[Mapping[int, str]], None] | None = None) -> frozenset[int]:
        """Block until all peers have done what is waited for, or the time is over; returns those who have.

        The acknowledgement of a peer that has published a later round, or has `CLOSED` this one, is not waited for: it
        has given up on it.

        Peers that are presumed gone (`presume_gone`) are not waited for.

        `on_change` is told whom it still waits for and what is known of each («last heard 14 s ago»), when it changes.
        """

    def presume_gone(self, peers: frozenset[int]) -> None:
        """Do not wait for these peers, from now on and until told otherwise; may be called from another thread."""

    def gather(self, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Payload | TransportError]:
        """Fetch from all peers at once and acknowledge what arrived whole; a failure is a value, not an exception.

        The payloads' tensors are views into the given buffers. Broken streams are resumed where they stopped.
        """

    def begin(self, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Future[Payload | TransportError]]:
        """As `gather`, but without waiting: what comes from each peer, as it will be known.

        The transfers go on in the thread that serves. Once a future was cancelled nothing more is written to its buffer
        before the next fetch into it; those that are open when the door closes end with an error.
        """

    def close(self) -> None:
        """Stop serving and free the port; a second call does nothing."""


class Control(Protocol):
    """An agent's line to the coordinator. A dead coordinator stops nobody: numbers wait until it is back."""

    def join(self, join: Join, timeout_s: float) -> View:
        """Enter the run; returns the view once all agents have joined.

        Raises:
            NoCoordinator: nobody answered within `timeout_s` seconds.
            PeerUnavailable: not all agents came in that time; the message says who is missing.
            UsageError: the coordinator refuses this agent (an id that is not in the run, another schema) and says why.
        """

    def heartbeat(self, beat: Heartbeat) -> Directive:
        """Say that one is alive; never blocks longer than a second, never raises for an absent coordinator."""

    def report(self, report: Report) -> Directive:
        """Hand in one round's numbers; kept and sent again when the coordinator is away."""

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is still kept, as far as `timeout_s` allows, and hang up."""


class ControlHandler(Protocol):
    """What the coordinator does behind its service: the calls of `Control` as they arrive, from several threads."""

    def join(self, join: Join) -> View:
        """Admit an agent; the view may still be `forming`.

        Raises:
            UsageError: the agent does not belong here; the message goes back to it.
        """

    def heartbeat(self, beat: Heartbeat) -> Directive:
        """Note that an agent is alive."""

    def report(self, report: Report) -> Directive:
        """Write a report to disk, then answer; the same report twice is one report."""

    def drain(self, drain: Drain) -> Directive:
        """Have one agent leave in order; the answer names its last round.

        Raises:
            UsageError: no such agent is in its rounds.
        """

    def changed(self, after: int, timeout_s: float) -> View:
        """The view, as soon as its number is above `after` or `timeout_s` seconds have passed."""
