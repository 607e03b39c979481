"""A virtual network and a virtual clock: how long training and transfers last, as a pure function of who and what.

    training of a round     epochs * samples * compute_s_per_sample * straggler factor * jitter
    one transfer            (latency_s + bytes / bandwidth_bytes_per_s) * jitter

An agent fetches from all its neighbours at the same time. With `bandwidth_of: link` every edge has the bandwidth to
itself, and fetching lasts as long as its slowest transfer; with `reader` those of one reader share it: each lasts as
long as all their bytes together. What a transfer brings is what its publisher held when it began; when it ends the
publisher knows that it was read. `latency_s` is all that one transfer costs beside its bytes. That somebody has
published, has read, or has given up is known at once, and everything but training and transfers takes no time.

Jitter is a factor drawn evenly between 1 - jitter and 1 + jitter, from the run's seed and what it is drawn for: the
same whatever happens elsewhere. Time is counted in whole nanoseconds, so that what is equal is equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dimat.config import SimulationConfig
from dimat.errors import PeerUnavailable, TransportError
from dimat.messages import Payload
from dimat.seeds import derive_seed

NS = 1_000_000_000
"""Nanoseconds in a second."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the config says of time, and the run's seed for jitter."""

    config: SimulationConfig
    seed: int

    def training_ns(self, agent: int, round: int, num_samples: int) -> int:
        """How long `agent` trains on `num_samples` samples, those of all epochs counted.

        >>> Conditions(SimulationConfig(compute_s_per_sample=0.01, stragglers={1: 3}), 0).training_ns(1, 1, 50)
        1500000000
        """
        seconds = num_samples * (self.config.compute_s_per_sample or 0.0) * self.config.stragglers.get(agent, 1.0)
        return self._ns(seconds, "train", agent, round)

    def transfers_ns(self, reader: int, count: int, num_bytes: Mapping[int, int]) -> dict[int, int]:
        """How long each of the transfers lasts that `reader` begins at one moment, by the agent that is read.

        Args:
            reader: who reads.
            count: how many times it has fetched before.
            num_bytes: payload bytes by the agent that they come from.

        >>> slow = SimulationConfig(latency_s=0.1, bandwidth_bytes_per_s=1000)
        >>> Conditions(slow, 0).transfers_ns(0, 0, {1: 500, 2: 1000})
        {1: 600000000, 2: 1100000000}
        """
        shared = sum(num_bytes.values()) if self.config.bandwidth_of == "reader" else None
        latency_s, bandwidth = self.config.latency_s or 0.0, self.config.bandwidth_bytes_per_s
        return {
            peer: self._ns(latency_s + (own if shared is None else shared) / bandwidth if bandwidth else latency_s,
                           "transfer", reader, peer, count)
            for peer, own in sorted(num_bytes.items())
        }  # fmt: skip

    def _ns(self, seconds: float, *what: int | str) -> int:
        if self.config.jitter:
            even = derive_seed(self.seed, "jitter", *what) % (1 << 32) / (1 << 32)
            seconds *= 1 + self.config.jitter * (2 * even - 1)
        return round(seconds * NS)


def in_time(
    answers: Mapping[int, Payload | TransportError], lasts_ns: Mapping[int, int], limit_ns: int
) -> dict[int, Payload | TransportError]:
    """The answers as they are `limit_ns` after they were asked for: a transfer that lasts longer has not come."""
    late = {peer for peer, payload in answers.items() if lasts_ns.get(peer, 0) > limit_ns}
    return {
        peer: PeerUnavailable(f"agent {peer}'s answer was not read before the deadline of {limit_ns / NS:.3g} s")
        if peer in late
        else answer
        for peer, answer in sorted(answers.items())
    }
