"""What deadlines do to a whole graph: synchronous rounds by a clock of events, with the real deadline functions.

No threads, no network, no models: an agent is busy for a while, publishes, waits as `dimat.agent.gather` does, and
goes on. The policy has to hold a graph together when one agent dies, stalls or is slow.
"""

import random
from collections.abc import Callable, Iterator

import pytest

import dimat.agent.deadline as policy
from dimat.agent.deadline import Limits, Past, came, deadline_s, expired, is_late, looked_at
from dimat.transport.base import HISTORY

Busy = Callable[[int, int], float]
SICK = 1


class Ring:
    """`run` plays all rounds; afterwards `ends` has when agent i ended round r and `lost` the edges it did not use."""

    def __init__(self, size: int, rounds: int, busy: Busy, limits: Limits, *, closes: bool = True) -> None:
        self.size, self.rounds, self.busy, self.limits, self.closes = size, rounds, busy, limits, closes
        self.now = 0.0
        self.num_events = 0
        self.training = [True] * size
        """Nothing that others do concerns an agent that trains; one that waits is woken whenever anything happens."""
        self.newest = [0] * size
        self.closed = [0] * size
        self.read: list[dict[int, set[int]]] = [{} for _ in range(size)]
        self.past = [Past() for _ in range(size)]
        self.ends: dict[tuple[int, int], float] = {}
        self.lost: dict[tuple[int, int], set[int]] = {}

    def run(self) -> "Ring":
        agents = [self.agent(i) for i in range(self.size)]
        wakes: list[float | None] = [next(agent) for agent in agents]
        while any(wake is not None for wake in wakes):
            before = -1
            while before != self.num_events:  # until nobody has anything to do at this instant
                before = self.num_events
                for i, agent in enumerate(agents):
                    wake = wakes[i]
                    if wake is not None and (wake <= self.now or not self.training[i]):
                        wakes[i] = next(agent, None)
            self.now = min((wake for wake in wakes if wake is not None), default=self.now)
        return self

    def agent(self, i: int) -> Iterator[float]:
        """Yields until when it sleeps at most."""
        neighbours = ((i - 1) % self.size, (i + 1) % self.size)
        for number in range(1, self.rounds + 1):
            self.training[i] = True
            yield self.now + self.busy(i, number)
            self.training[i] = False
            self.newest[i], begun = number, self.now
            self.num_events += 1
            self.read[i][number] = set()
            ready: set[int] = set()
            late = [peer for peer in neighbours if is_late(self.past[i], "published", peer)]
            for peer in late:
                self.past[i] = looked_at(self.past[i], peer, self.newest[peer])
            behind = [peer for peer in late if self.newest[peer] < number]
            for peers in ([peer for peer in neighbours if peer not in behind], behind):
                end = begun + max(
                    (deadline_s(self.past[i], "published", peer, self.limits) for peer in peers), default=0
                )
                arrived: dict[int, float] = {}
                while True:
                    for peer in peers:
                        if self.newest[peer] >= number:
                            arrived.setdefault(peer, self.now - begun)
                    if len(arrived) == len(peers) or self.now >= end:
                        break
                    yield end
                for peer in peers:
                    if peer in arrived:
                        self.past[i] = came(self.past[i], "published", peer, arrived[peer])
                    else:
                        self.past[i] = expired(self.past[i], "published", peer)
                ready |= arrived.keys()
            held = {peer for peer in ready if self.newest[peer] - number < HISTORY}
            for peer in held:
                self.read[peer][number].add(i)
                self.num_events += 1
            if self.closes:
                self.closed[i] = number
                self.num_events += 1
            end = self.now + 2 * self.limits.ceiling_s
            while not all(self.settled(i, peer, number) for peer in held) and self.now < end:
                yield end
            self.ends[i, number] = self.now
            self.lost[i, number] = set(neighbours) - (held & self.read[i][number])

    def settled(self, i: int, peer: int, number: int) -> bool:
        return peer in self.read[i][number] or self.newest[peer] > number or self.closed[peer] >= number

    def lost_between_healthy(self) -> int:
        return sum(len(peers - {SICK}) for (i, _), peers in self.lost.items() if i != SICK)

    def mean_round(self, *, after: int) -> float:
        rounds = self.rounds - after
        healthy = [i for i in range(self.size) if i != SICK]
        return sum((self.ends[i, self.rounds] - self.ends[i, after]) / rounds for i in healthy) / len(healthy)


def jitter(seed: int, base_s: float, share: float) -> Busy:
    """Busy for `base_s` to `base_s (1 + share)`, drawn for each agent and round apart."""
    return lambda i, number: base_s * (1 + share * random.Random(f"{seed}/{i}/{number}").random())


LIMITS = Limits(60.0, 10.0)


@pytest.mark.parametrize("seed", range(3))
def test_jitter_below_the_floor_never_costs_an_edge(seed: int) -> None:
    ring = Ring(8, 60, jitter(seed, 20.0, 0.4), LIMITS).run()
    assert sum(len(peers) for peers in ring.lost.values()) <= 6, "of 960"
    calm = Ring(8, 60, jitter(seed, 20.0, 0.2), LIMITS).run()
    assert not any(calm.lost.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [5, 8])
def test_the_death_of_one_does_not_part_the_others(size: int, seed: int) -> None:
    healthy = jitter(seed, 20.0, 0.1)
    ring = Ring(size, 60, lambda i, n: 1e9 if i == SICK and n == 20 else healthy(i, n), LIMITS).run()
    assert ring.lost_between_healthy() <= 8
    assert ring.mean_round(after=30) <= 22.0 + 1.0, "in the end it costs next to nothing"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [5, 8])
def test_one_that_is_ten_times_slower_costs_at_most_the_floor_a_round(size: int, seed: int) -> None:
    healthy = jitter(seed, 20.0, 0.1)
    ring = Ring(size, 60, lambda i, n: healthy(i, n) * (10 if i == SICK else 1), LIMITS).run()
    assert ring.lost_between_healthy() <= 12
    assert ring.mean_round(after=10) <= 22.0 + LIMITS.floor_s / 2
    longest = max(ring.ends[i, n] - ring.ends[i, n - 1] for i in range(size) if i != SICK for n in range(2, 61))
    assert longest <= 22.0 + LIMITS.ceiling_s


@pytest.mark.parametrize("seed", range(3))
def test_one_that_stood_still_gets_in_again(seed: int) -> None:
    healthy = jitter(seed, 20.0, 0.1)
    ring = Ring(8, 80, lambda i, n: healthy(i, n) + (100.0 if i == SICK and n == 20 else 0.0), LIMITS).run()
    assert SICK in ring.lost[0, 20]
    assert not any(ring.lost[i, n] for i in range(8) for n in range(60, 81))


def test_without_saying_that_a_round_is_closed_it_never_does() -> None:
    """Who is late waits for acknowledgements that nobody sends any more, and so stays late: the reason for `CLOSED`."""
    healthy = jitter(0, 20.0, 0.1)
    busy: Busy = lambda i, n: healthy(i, n) + (100.0 if i == SICK and n == 20 else 0.0)  # noqa: E731
    ring = Ring(8, 80, busy, LIMITS, closes=False).run()
    assert all(SICK in ring.lost[0, n] for n in range(20, 81))


def test_waiting_less_for_one_that_is_gone_keeps_the_others_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal patience for all, healthy halves stay a round apart, each waiting in vain as long as the other."""

    def lost(seed: int) -> int:
        healthy = jitter(seed, 20.0, 0.4)
        return (
            Ring(8, 80, lambda i, n: 1e9 if i == SICK and n == 20 else healthy(i, n), LIMITS)
            .run()
            .lost_between_healthy()
        )

    real = [lost(seed) for seed in range(12)]
    monkeypatch.setattr(policy, "LEAST_SHARE", 0.5)
    equal = [lost(seed) for seed in range(12)]
    assert sum(real) < sum(equal) / 2
    assert max(real) < max(equal) / 2
