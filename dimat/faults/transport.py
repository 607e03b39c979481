"""A transport that fails as planned: links that carry nothing in some rounds, snapshots that are served wrong.

It stands around any other transport. A cut link is refused at once and in both directions, because both of its ends
follow the same plan. What is served wrong is changed where readers take it from, so that over gRPC the wrong bytes
really cross the wire and the reader's own checks meet them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from dimat.errors import PeerUnavailable, TransportError
from dimat.faults.plan import Fault, concerns, cut_off, served
from dimat.faults.serving import spoil
from dimat.messages import Description, Payload
from dimat.transport.base import Fetch, Wait, known

T = TypeVar("T")

SPOILT_KIND = "snapshot"
"""What serving faults change; agreeing on a basis comes before the first merge and stays whole."""


class FaultyTransport:
    """Implements `dimat.transport.base.Transport` around another one.

    Args:
        inner: the transport that does the work; its `store` is what readers are served from.
        agent: this agent's id.
        faults: the run's whole plan.
    """

    def __init__(self, inner: Any, agent: int, faults: Sequence[Fault]) -> None:
        self.inner = inner
        self._agent = agent
        self._faults = tuple(faults)
        self._last: Payload | None = None

    def start(self) -> str:
        """Open the inner door."""
        address: str = self.inner.start()
        return address

    def connect(self, addresses: Mapping[int, str]) -> None:
        """Learn where the peers are; a cut link still has two addresses."""
        self.inner.connect(addresses)

    def describe(self, peer: int, timeout_s: float) -> Description:
        """What `peer` says of itself: of no round, so no link is cut for it."""
        description: Description = self.inner.describe(peer, timeout_s)
        return description

    def publish(self, payload: Payload) -> None:
        """Let readers fetch `payload`, or what the plan has them get in its place."""
        header = payload.header
        if header.kind != SPOILT_KIND:
            self.inner.publish(payload)
            return
        kind = served(self._faults, self._agent, header.round)
        if kind is None:
            self.inner.publish(payload)
        else:
            self.inner.store.publish(payload, serve=spoil(kind, payload, self._last))
        self._last = payload

    def wait(self, wait: Wait, on_change: Callable[[Mapping[int, str]], None] | None = None) -> frozenset[int]:
        """Wait for those that can be reached; who is cut off counts as come, and is refused when it is fetched from."""
        cut = self._cut(wait)
        came: frozenset[int] = self.inner.wait(_without(wait, cut), on_change)
        return came | cut

    def gather(self, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Payload | TransportError]:
        """Fetch over the links that are whole."""
        whole, refused = self._part(fetches)
        answers: dict[int, Payload | TransportError] = dict(refused)
        if whole:
            answers |= self.inner.gather(whole, timeout_s)
        return dict(sorted(answers.items()))

    def begin(self, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Future[Payload | TransportError]]:
        """Begin to fetch over the links that are whole; the others' answers are known."""
        whole, refused = self._part(fetches)
        futures = {peer: known(refusal) for peer, refusal in refused.items()}
        if whole:
            futures |= self.inner.begin(whole, timeout_s)
        return dict(sorted(futures.items()))

    def forget(self, kind: str) -> None:
        """Serve nothing of a kind any more."""
        self.inner.forget(kind)

    def presume_gone(self, peers: frozenset[int]) -> None:
        """Waits for `peers` end at once."""
        self.inner.presume_gone(peers)

    def close(self) -> None:
        """Close the inner door."""
        self.inner.close()

    # ------------------------------------------------------------- what the simulator asks of a transport in memory

    def ready(self, wait: Wait) -> frozenset[int]:
        """As `MemoryTransport.ready`; who is cut off counts as come."""
        cut = self._cut(wait)
        came: frozenset[int] = self.inner.ready(_without(wait, cut))
        return came | cut

    def settled(self, wait: Wait) -> frozenset[int]:
        """As `MemoryTransport.settled`; who is cut off is not waited for."""
        cut = self._cut(wait)
        over: frozenset[int] = self.inner.settled(_without(wait, cut))
        return over | cut

    def _part(self, fetches: tuple[Fetch, ...]) -> tuple[tuple[Fetch, ...], dict[int, PeerUnavailable]]:
        """The fetches over whole links, and why the others are refused, by peer."""
        whole, refused = [], {}
        for fetch in fetches:
            # Who asks for the newest round, and does not say more, is itself in the one that it published last.
            last = self._last.header.round if self._last else 0
            round = next(number for number in (fetch.round, fetch.during, last) if number is not None)
            cut = cut_off(self._faults, self._agent, (fetch.peer,), round)
            if fetch.peer in cut:
                refused[fetch.peer] = PeerUnavailable(
                    f"the link to agent {fetch.peer} is cut in round {round}, as the fault plan says: {cut[fetch.peer]}"
                )
            else:
                whole.append(fetch)
        return tuple(whole), refused

    def _cut(self, wait: Wait) -> frozenset[int]:
        return frozenset(cut_off(self._faults, self._agent, wait.peers, wait.round))


def planned(inner: T, agent: int, faults: Sequence[Fault]) -> T | FaultyTransport:
    """`inner`, wrapped when the plan touches this agent's exchange; else `inner` itself."""
    return FaultyTransport(inner, agent, faults) if concerns(faults, agent) else inner


def _without(wait: Wait, cut: frozenset[int]) -> Wait:
    return replace(wait, peers=tuple(peer for peer in wait.peers if peer not in cut)) if cut else wait
