"""How much is let in at once: calls, streams, calls of one host, and how slow a stream may be."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dimat.errors import PeerUnavailable

MAX_HOSTS = 1024
"""Hosts whose calls are counted; the one that was silent the longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may ask of a service; whoever asks for more is told to come again later.

    Attributes:
        num_streams: models that are received at the same moment; as many may be sent out.
        num_calls: calls under way, those that wait for their model's turn included.
        calls_per_minute: calls from one host.
        stall_s: seconds until the next frame.
        min_bytes_per_s: what a stream must make on the average after its first `stall_s` seconds, so that nobody
            holds a place for ever by a byte now and then.
    """

    num_streams: int = 4
    num_calls: int = 64
    calls_per_minute: int = 600
    stall_s: float = 30.0
    min_bytes_per_s: float = 16384.0

    def patience_s(self, elapsed_s: float, num_bytes: int) -> float:
        """How long the next frame of a stream may take, after `num_bytes` in `elapsed_s` seconds."""
        return max(0.0, min(self.stall_s, self.stall_s + num_bytes / self.min_bytes_per_s - elapsed_s))


class Gate:
    """Counts what is under way, and how often each host calls; used on the loop alone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._counts = {"calls": 0, "received": 0, "sent": 0}
        self._hosts: OrderedDict[str, tuple[float, float]] = OrderedDict()  # host -> (calls it may make, as of when)

    @contextmanager
    def call(self, peer: str) -> Iterator[None]:
        """One call from the address `peer` is under way.

        Raises:
            PeerUnavailable: it is one too many.
        """
        host, now = peer.rpartition(":")[0] or peer, time.monotonic()
        most = float(self._limits.calls_per_minute)
        left, at = self._hosts.pop(host, (most, now))
        left = min(most, left + (now - at) * most / 60)
        self._hosts[host] = (max(0.0, left - 1), now)
        if len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
        if left < 1:
            raise PeerUnavailable(f"busy: more than {most:.0f} calls a minute from one host")
        with self._count("calls", self._limits.num_calls):
            yield

    @contextmanager
    def stream(self, what: str) -> Iterator[None]:
        """One model is being `received` or `sent`.

        Raises:
            PeerUnavailable: it is one too many.
        """
        with self._count(what, self._limits.num_streams):
            yield

    @contextmanager
    def _count(self, what: str, most: int) -> Iterator[None]:
        if self._counts[what] >= most:
            things = "calls are under way" if what == "calls" else f"models are being {what}"
            raise PeerUnavailable(f"busy: {most} {things}, as many as may be at once")
        self._counts[what] += 1
        try:
            yield
        finally:
            self._counts[what] -= 1
