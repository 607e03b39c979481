"""What an agent has published, by kind and round, and who has read it: the same for every transport.

Writers and readers are different threads. A reader gets a whole payload or none: payloads are frozen values, and
publishing replaces one reference under a lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from dimat.errors import RoundGone
from dimat.messages import Payload
from dimat.transport.base import HISTORY, Wait, closed

WAIT_TICK_S = 5.0
"""Seconds after which a wait tells again what is known of the missing, though nothing happened."""


class Changes:
    """A counter that threads can sleep on and event loops can subscribe to: «something has changed, look again»."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._number = 0
        self._listeners: list[Callable[[], object]] = []

    @property
    def number(self) -> int:
        """How many changes there were."""
        return self._number

    def bump(self) -> None:
        """Note a change; sleepers wake and listeners are called, in this thread."""
        with self._condition:
            self._number += 1
            self._condition.notify_all()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Sleep until there was a change after the `seen`-th, at most `timeout_s` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._number != seen, timeout_s)

    def subscribe(self, listener: Callable[[], object]) -> Callable[[], object]:
        """Have `listener` called on every change, from the changing thread; the returned function ends that."""
        with self._condition:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._condition:
                self._listeners.remove(listener)

        return unsubscribe


class SnapshotStore:
    """The newest `HISTORY` rounds of every kind, and who has acknowledged reading them.

    Args:
        agent: whose store it is, for messages.
        changes: bumped whenever something is published or acknowledged; several stores may share one.
    """

    def __init__(self, agent: int, changes: Changes | None = None) -> None:
        self.changes = changes or Changes()
        self._agent = agent
        self._lock = threading.Lock()
        self._payloads: dict[str, dict[int, Payload]] = {}
        self._readers: dict[tuple[str, int], set[int]] = {}
        self._known: frozenset[int] | None = None

    def expect(self, readers: Iterable[int]) -> None:
        """Take acknowledgements from these agents alone: others could fill the memory, or speak for them."""
        self._known = frozenset(readers)

    def publish(self, payload: Payload, *, serve: Payload | None = None) -> None:
        """Put a payload where readers find it; the oldest round of its kind goes when there are more than `HISTORY`.

        Publishing a round again replaces it, and whoever had read it has not read the new one. With `serve` readers
        are given that in its place: how a fault plan has an agent serve what is wrong.
        """
        kind, round_ = payload.header.kind, payload.header.round
        with self._lock:
            rounds = self._payloads.setdefault(kind, {})
            rounds[round_] = payload if serve is None else serve
            self._readers[kind, round_] = set()
            for gone in sorted(rounds)[:-HISTORY]:
                del rounds[gone]
                del self._readers[kind, gone]
        self.changes.bump()

    def forget(self, kind: str) -> None:
        """Drop all rounds of a kind, and who has read them."""
        with self._lock:
            for round_ in self._payloads.pop(kind, {}):
                del self._readers[kind, round_]

    def get(self, kind: str, round_: int | None) -> Payload:
        """The payload of `round_`, or of the newest round.

        Raises:
            RoundGone: it is not held; the message says what is.
        """
        with self._lock:
            rounds = self._payloads.get(kind, {})
            if rounds:
                payload = rounds.get(max(rounds) if round_ is None else round_)
                if payload is not None:
                    return payload
            wanted = f"the newest {kind!r}" if round_ is None else f"{kind!r} of round {round_}"
            held = f"it holds rounds {sorted(rounds)} of that kind" if rounds else f"it has published no {kind!r} yet"
        raise RoundGone(f"agent {self._agent} does not hold {wanted}: {held}")

    def newest(self) -> dict[str, int]:
        """The newest round of every kind."""
        with self._lock:
            return {kind: max(rounds) for kind, rounds in sorted(self._payloads.items())}

    def acknowledge(self, reader: int, kind: str, round_: int) -> None:
        """Note that `reader` has read a round whole. A round that is not held is ignored: nobody waits for it."""
        with self._lock:
            readers = self._readers.get((kind, round_))
            stranger = self._known is not None and reader not in self._known
            if readers is None or reader in readers or stranger:
                return
            readers.add(reader)
        self.changes.bump()

    def readers(self, kind: str, round_: int) -> frozenset[int]:
        """Who has acknowledged reading a round; nobody, once it is no longer held."""
        with self._lock:
            return frozenset(self._readers.get((kind, round_), ()))


def has_gone_on(wait: Wait, newest: Mapping[str, int]) -> bool:
    """Whether a peer whose newest rounds by kind are `newest` will not read what `wait` is about any more."""
    return newest.get(wait.kind, -1) > wait.round or newest.get(closed(wait.kind), -1) >= wait.round


def wait_for_peers(
    wait: Wait,
    changes: Changes,
    done: Callable[[], frozenset[int]],
    known: Callable[[int], str],
    on_change: Callable[[Mapping[int, str]], None] | None,
) -> frozenset[int]:
    """Sleep until `done()` holds all of `wait.peers` or the time is over; returns what it holds then.

    `on_change` is called in this thread with what is `known` of each missing peer, whenever the missing ones change,
    and every `WAIT_TICK_S` seconds when what is known of them has changed.
    """
    peers = frozenset(wait.peers)
    deadline = time.monotonic() + wait.timeout_s
    told: tuple[frozenset[int], dict[int, str]] = (frozenset(), {})
    told_at = float("-inf")
    while True:
        seen = changes.number  # before looking, so that a change in between is not slept through
        missing = peers - done()
        now = time.monotonic()
        if on_change is not None and (missing != told[0] or now - told_at >= WAIT_TICK_S):
            state = (missing, {peer: known(peer) for peer in sorted(missing)})
            if state != told:
                on_change(state[1])
            told, told_at = state, now
        if not missing or now >= deadline:
            return peers - missing
        changes.wait(seen, min(deadline - now, WAIT_TICK_S))
