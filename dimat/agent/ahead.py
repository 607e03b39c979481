"""Transfers that go on while their agent trains (`exchange.overlap`): begun together, collected when it has trained.

Training may last longer than any transfer, so a transfer has no deadline of its own on the way. When they are
collected, what has come is there; what is still under way is waited for until its deadline, counted from when it
began, and given up if that is over already.

There is no thread that could be left behind: the transport's own, which serves, fetches as well. What is owned is the
transfers, and `close` ends them; a round that fails, or is told to stop at once, does so on its way out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from dimat.agent.steps import Steps
from dimat.errors import PeerUnavailable, TransportError
from dimat.messages import Payload
from dimat.transport.base import Fetch, Transport

if TYPE_CHECKING:
    from dimat.agent.state import Agent

A_DAY_S = 86_400.0
"""What the transport is given for a transfer: the round gives up on it, much sooner."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrived:
    """What has come of some transfers."""

    answers: Mapping[int, Payload | TransportError] = field(default_factory=dict)
    num_bytes: Mapping[int, int] = field(default_factory=dict)
    """Bytes of tensors that travelled, by peer; 0 for what was held already."""
    took_s: Mapping[int, float] = field(default_factory=dict)
    """Seconds from when each began until it had come, or was given up."""
    hidden_s: float = 0.0
    """Seconds that the round would have waited longer, had the transfers begun when they were collected."""


class Ahead(Protocol):
    """Transfers under way."""

    @property
    def peers(self) -> frozenset[int]:
        """Whom they are from."""

    def drop(self, peer: int) -> None:
        """End the transfer from `peer`, if there is one: somebody else needs its buffer."""

    def collect(self, agent: Agent, patience_s: float) -> Steps[Arrived]:
        """What has come by now, or comes within `patience_s` seconds from the beginning; ends the others."""

    def close(self) -> None:
        """End all that are left; a second call does nothing."""


class Transfers:
    """Implements `Ahead` on a transport: in the time that passes.

    Args:
        fetches: what is to come.
        now: the agent's clock in seconds.
    """

    def __init__(self, fetches: tuple[Fetch, ...], now: Callable[[], float]) -> None:
        self._fetches = {fetch.peer: fetch for fetch in fetches}
        self._now = now
        self._begun_s = 0.0
        self._futures: dict[int, Future[Payload | TransportError]] = {}
        self._ended_s: dict[int, float] = {}

    def start(self, transport: Transport) -> Transfers:
        """Begin to fetch; returns itself."""
        self._begun_s = self._now()
        self._futures = dict(transport.begin(tuple(self._fetches.values()), A_DAY_S))
        for peer, future in self._futures.items():
            future.add_done_callback(partial(self._note_end, peer))
        return self

    @property
    def peers(self) -> frozenset[int]:
        """Whom they are from."""
        return frozenset(self._futures)

    def drop(self, peer: int) -> None:
        """End the transfer from `peer`, if there is one."""
        future = self._futures.pop(peer, None)
        if future is not None:
            future.cancel()

    def collect(self, agent: Agent, patience_s: float) -> Steps[Arrived]:
        """What has come by now, or comes within `patience_s` seconds from the beginning; ends the others."""
        yield from ()  # nobody else's turn: where time passes, an agent has its thread to itself
        collected_s = self._now()
        wait(self._futures.values(), timeout=max(0.0, self._begun_s + patience_s - collected_s))
        waited_s = self._now() - collected_s
        answers = {peer: self._answer(agent.id, peer) for peer in sorted(self._futures)}
        took_s = {peer: self._ended_s.get(peer, self._now()) - self._begun_s for peer in answers}
        num_bytes = {peer: self._fetches[peer].num_bytes(answer) for peer, answer in answers.items()}
        self.close()
        longest_s = min(max(took_s.values(), default=0.0), patience_s)  # a round would not have waited longer for it
        return Arrived(answers, num_bytes, took_s, max(0.0, longest_s - waited_s))

    def close(self) -> None:
        """End all that are left; a second call does nothing."""
        for peer in self.peers:
            self.drop(peer)

    def _answer(self, agent: int, peer: int) -> Payload | TransportError:
        future = self._futures[peer]
        if (not future.done() and future.cancel()) or future.cancelled():
            since_s = self._now() - self._begun_s
            return PeerUnavailable(f"agent {peer}'s answer had not come {since_s:.3g} s after it was asked for")
        if error := future.exception():
            # Not the network's doing, which is told by a value; what it costs is this neighbour in this merge.
            log.error("agent %d: fetching from agent %d failed", agent, peer, exc_info=error)
            return TransportError(f"fetching from agent {peer} failed: {type(error).__name__}: {error}")
        return future.result()

    def _note_end(self, peer: int, future: Future[Payload | TransportError]) -> None:
        del future
        self._ended_s[peer] = self._now()


@contextmanager
def no_transfer_left(agent: Agent) -> Iterator[None]:
    """Whatever ends the block, no transfer that was begun in it goes on."""
    try:
        yield
    finally:
        ahead, agent.ahead = agent.ahead, None
        if ahead is not None:
            ahead.close()
