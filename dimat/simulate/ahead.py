"""Transfers that go on while their agent trains, in virtual time; `dimat.agent.ahead.Transfers` in real time.

What a transfer brings is what its publisher held when it began, which is known at once; what takes time is that it
has come. So nothing goes on beside the agent: when transfers are collected the clock says which are there, and how
long the agent waits for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dimat.agent.ahead import Arrived
from dimat.agent.host import Answers
from dimat.agent.state import Agent
from dimat.agent.steps import Steps
from dimat.simulate.network import NS, in_time
from dimat.transport.base import Wait


@dataclass(slots=True)
class TimedTransfers:
    """Implements `dimat.agent.ahead.Ahead`.

    Attributes:
        answers: what was asked for, by peer.
        num_bytes: the bytes of tensors that travel.
        lasts_ns: how long each transfer lasts.
        now_ns: the clock.
        begun_ns: when they began.
        ended: those that nobody waits for any more; when their time is over their publisher is told nothing.
    """

    answers: Answers
    num_bytes: Mapping[int, int]
    lasts_ns: Mapping[int, int]
    now_ns: Callable[[], int]
    begun_ns: int
    ended: set[int] = field(default_factory=set)

    @property
    def peers(self) -> frozenset[int]:
        """Whom they are from."""
        return frozenset(self.answers) - self.ended

    def drop(self, peer: int) -> None:
        """End the transfer from `peer`, if there is one."""
        self.ended.add(peer)

    def collect(self, agent: Agent, patience_s: float) -> Steps[Arrived]:
        """What has come by now, or comes within `patience_s` seconds from the beginning; ends the others."""
        elapsed_ns = self.now_ns() - self.begun_ns
        limit_ns = max(math.ceil(patience_s * NS), elapsed_ns)
        answers = {peer: self.answers[peer] for peer in sorted(self.peers)}
        longest_ns = max((min(self.lasts_ns.get(peer, 0), limit_ns) for peer in answers), default=0)
        wait_ns = max(0, longest_ns - elapsed_ns)
        if wait_ns:
            yield Wait("hosted", (), "fetch", agent.status.round, wait_ns / NS)
        came = in_time(answers, self.lasts_ns, limit_ns)
        took_s = {peer: min(self.lasts_ns.get(peer, 0), limit_ns) / NS for peer in came}
        in_full = [peer for peer in came if came[peer] is answers[peer]]
        num_bytes = {peer: self.num_bytes.get(peer, 0) for peer in in_full}
        self.ended.update(came.keys() - in_full)  # the publisher may still have to be told of what has come just now
        hidden_s = min(longest_ns / NS, patience_s) - wait_ns / NS  # a round would not have waited longer for it
        return Arrived(came, num_bytes, took_s, max(0.0, hidden_s))

    def close(self) -> None:
        """End all that are left; a second call does nothing."""
        self.ended.update(self.answers)
