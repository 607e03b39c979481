"""Working on several tensors at once: the order, what is held, and what happens when it fails or nobody asks on."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from dimat.merge.in_order import MOST_ENTRIES, in_order


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2, 4])
def num_threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return int(request.param)


def test_answers_come_in_the_order_of_the_items(num_threads: int) -> None:
    sizes = [1, MOST_ENTRIES, 5, MOST_ENTRIES + 1, 7, MOST_ENTRIES, 2]
    assert list(in_order(lambda size: size + 1, sizes, lambda size: size)) == [size + 1 for size in sizes]
    assert list(in_order(lambda size: size, [], lambda size: size)) == []


def test_small_items_are_worked_on_together_by_one_thread_each() -> None:
    both = threading.Barrier(2, timeout=60)  # passes only when two are inside at once

    def work(item: int) -> tuple[int, int]:
        both.wait()
        return item, torch.get_num_threads()

    assert list(in_order(work, range(6), lambda item: 1)) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == 2


def test_a_large_item_has_all_threads_to_itself() -> None:
    inside, most = 0, dict[int, int]()
    mutex = threading.Lock()

    def work(size: int) -> int:
        nonlocal inside
        with mutex:
            inside += 1
            most[size] = max(most.get(size, 0), inside)
        threads = torch.get_num_threads()
        with mutex:
            inside -= 1
        return threads

    large = MOST_ENTRIES + 1
    assert list(in_order(work, [1, 2, large, 3], lambda size: size)) == [1, 1, 2, 1]
    assert most[large] == 1


def test_what_is_held_has_a_limit() -> None:
    started = list[int]()

    def work(item: int) -> int:
        started.append(item)
        return item

    answers = in_order(work, range(20), lambda item: MOST_ENTRIES)
    with closing(answers):
        for taken in range(1, 5):
            next(answers)
            assert len(started) <= taken + 2


def test_a_failure_is_raised_where_its_answer_would_be(num_threads: int) -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    answers = in_order(work, range(9), lambda item: 1)
    assert [next(answers), next(answers)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(answers)


def test_no_thread_is_left_when_nobody_asks_for_the_rest() -> None:
    answers = in_order(lambda item: item, range(100), lambda item: MOST_ENTRIES)
    next(answers)
    answers.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("tensors")]
