"""Reading ahead: in order, no further than allowed, and to an end whatever happens."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dimat.errors import DimatError
from dimat.merge.ahead import BASE, ReadAhead
from dimat.merge.feed import Entries, Step
from dimat.merge.source import TensorInfo

NUM_MODELS = 4
SIZE = 4 * 10
STEPS = [Step(f"t{i}", TensorInfo(torch.float32, (10,)), 0, 10, False) for i in range(30)]


class Recorder:
    """A feed that gives the numbers it was asked for, and keeps how much it was asked for and by whom."""

    def __init__(self, fail: Callable[[int, Step], bool] = lambda *_: False) -> None:
        self.fail = fail
        self.asked: list[tuple[int, str]] = []
        self.threads: dict[int, set[int]] = {}
        self.lock = threading.Lock()

    def answer(self, number: int, step: Step) -> torch.Tensor:
        with self.lock:
            self.asked.append((number, step.name))
            self.threads.setdefault(number, set()).add(threading.get_ident())
        if self.fail(number, step):
            raise DimatError("the file is gone")
        return torch.full((10,), 100.0 * number + int(step.name[1:]))

    def base(self, step: Step) -> torch.Tensor:
        return self.answer(BASE, step)

    def model(self, i: int, step: Step) -> Entries:
        return Entries(self.answer(i, step))


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read ahead"]


def settled(feed: Recorder) -> int:
    """How many entries were read, once no lane reads any more."""
    before = -1
    while before != len(feed.asked):
        before = len(feed.asked)
        time.sleep(0.05)
    return before


@pytest.mark.parametrize("num_lanes", [0, 1, 2, 3, 9])
def test_entries_come_in_the_order_of_the_merge_from_one_thread_per_model(num_lanes: int) -> None:
    feed = Recorder()
    with ReadAhead(feed, STEPS, NUM_MODELS, num_lanes, 5 * SIZE) as ahead:
        for number, step in enumerate(STEPS):
            base = ahead.base(step)
            assert base is not None and base[0] == -100 + number
            for i in range(NUM_MODELS):
                assert ahead.model(i, step).x[0] == 100 * i + number
    assert len(feed.asked) == len(STEPS) * (NUM_MODELS + 1) == len(set(feed.asked))
    assert all(len(threads) == 1 for threads in feed.threads.values())
    own = threading.get_ident()
    assert {own in threads for threads in feed.threads.values()} == {num_lanes == 0}
    assert len(set.union(*feed.threads.values())) == min(max(num_lanes, 1), NUM_MODELS + 1)
    assert not running()


@pytest.mark.parametrize(("allowed", "ready"), [(5 * SIZE, 5), (1, 1)])
def test_a_lane_rests_when_it_holds_enough(allowed: int, ready: int) -> None:
    feed = Recorder()
    with ReadAhead(feed, STEPS, NUM_MODELS, 2, allowed) as ahead:
        assert settled(feed) == 2 * ready
        ahead.base(STEPS[0])
        assert settled(feed) == 2 * ready + 1
    assert not running(), "lanes end although nobody has taken what they hold"


@pytest.mark.parametrize("number", [BASE, 2])
def test_a_failure_is_raised_where_the_entries_are_waited_for(number: int) -> None:
    feed = Recorder(lambda asked, step: asked == number and step.name == "t3")
    taken = 0
    with (
        pytest.raises(DimatError, match="the file is gone"),
        ReadAhead(feed, STEPS, NUM_MODELS, 2, 100 * SIZE) as ahead,
    ):
        for step in STEPS:
            ahead.base(step)
            for i in range(NUM_MODELS):
                ahead.model(i, step)
            taken += 1
    assert taken == 3
    assert not running()


def test_a_base_that_is_not_read_costs_nothing() -> None:
    feed = SimpleNamespace(base=lambda step: None, model=lambda i, step: Entries(torch.zeros(1)))
    with ReadAhead(feed, STEPS, 1, 2, SIZE) as ahead:
        for step in STEPS:
            assert ahead.base(step) is None
            assert ahead.model(0, step).x.tolist() == [0]


@pytest.mark.parametrize("with_stats", [False, True])
def test_a_lane_counts_what_it_really_holds(with_stats: bool) -> None:
    """Twice of what the first model's dtype would be: by a wider dtype, or by statistics."""

    class Wide(Recorder):
        def model(self, i: int, step: Step) -> Entries:
            x = self.answer(i, step)
            return Entries(x, stats={"fisher": x}) if with_stats else Entries(x.double())

    feed = Wide()
    with ReadAhead(feed, STEPS, 1, 2, 8 * SIZE) as ahead:
        settled(feed)
        assert sum(number == 0 for number, _ in feed.asked) == 4
        assert ahead.model(0, STEPS[0]).x.numel() == 10
