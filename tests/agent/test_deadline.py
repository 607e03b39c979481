"""Deadlines against an oracle in numpy, and what must hold for any past."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimat.agent.deadline import (
    LEAST_SHARE,
    MIN_SAMPLES,
    WINDOW,
    Limits,
    Past,
    came,
    deadline_s,
    expired,
    is_late,
    looked_at,
)

seconds = st.floats(0.0, 1e4)
limits = st.builds(
    lambda floor, more, adaptive: Limits(floor + more, floor, adaptive),
    st.floats(0.01, 100.0), st.floats(0.0, 1e3), st.booleans(),
)  # fmt: skip
events = st.lists(st.one_of(seconds, st.just("expired"), st.integers(-1, 50)), max_size=60)


def after(happened: list[float | str | int], past: Past | None = None) -> Past:
    past = past or Past()
    for event in happened:
        if event == "expired":
            past = expired(past, "published", 1)
        elif isinstance(event, int):
            past = looked_at(past, 1, event)
        else:
            assert isinstance(event, float)
            past = came(past, "published", 1, event)
    return past


@given(st.lists(seconds, min_size=MIN_SAMPLES, max_size=3 * WINDOW), st.floats(0.01, 10.0), st.floats(0.0, 1e4))
def test_it_is_the_median_and_four_times_the_median_distance_between_floor_and_ceiling(
    waits: list[float], floor_s: float, more_s: float
) -> None:
    newest = np.array(waits[-WINDOW:])
    oracle = np.median(newest) + 4 * np.median(np.abs(newest - np.median(newest)))
    expected = float(np.clip(oracle, floor_s, floor_s + more_s))
    assert deadline_s(after(list(waits)), "published", 1, Limits(floor_s + more_s, floor_s)) == pytest.approx(expected)


@given(st.lists(seconds, max_size=MIN_SAMPLES - 1), limits)
def test_the_ceiling_holds_until_enough_is_known(waits: list[float], within: Limits) -> None:
    assert deadline_s(after(list(waits)), "published", 1, within) == within.ceiling_s


@given(events, limits)
def test_it_stays_between_its_bounds_whatever_happened(happened: list[float | str | int], within: Limits) -> None:
    past = after(happened)
    deadline = deadline_s(past, "published", 1, within)
    if not within.adaptive:
        assert deadline == within.ceiling_s
    elif is_late(past, "published", 1):
        assert within.floor_s * LEAST_SHARE <= deadline <= within.ceiling_s
    else:
        assert within.floor_s <= deadline <= within.ceiling_s


@given(events, limits)
def test_who_came_is_not_late_any_more_and_has_its_usual_deadline_back(
    happened: list[float | str | int], within: Limits
) -> None:
    past = came(after(happened), "published", 1, 0.0)
    assert not is_late(past, "published", 1)
    assert deadline_s(past, "published", 1, within) >= within.floor_s


@given(events)
def test_peers_and_what_is_awaited_are_told_apart(happened: list[float | str | int]) -> None:
    past = after(happened)
    for what, peer in (("published", 2), ("read", 1), ("fetched", 1)):
        assert deadline_s(past, what, peer, Limits(60.0)) == 60.0  # type: ignore[arg-type]
        assert not is_late(past, what, peer)  # type: ignore[arg-type]


def test_one_that_is_gone_costs_less_each_time_and_one_that_moves_keeps_half_the_floor() -> None:
    within = Limits(60.0, 8.0)
    gone = after([0.1] * MIN_SAMPLES)
    deadlines = []
    for _ in range(6):
        gone = looked_at(expired(gone, "published", 1), 1, newest=7)
        deadlines.append(deadline_s(gone, "published", 1, within))
    assert deadlines == [4.0, 2.0, 1.0, 0.5, 0.5, 0.5]
    moves = looked_at(gone, 1, newest=8)
    assert deadline_s(moves, "published", 1, within) == 4.0
    assert is_late(moves, "published", 1)


def test_one_that_is_regularly_slow_and_missed_once_is_waited_for_as_long_as_it_takes() -> None:
    past = looked_at(expired(after([9.0, 9.5, 9.0, 9.0, 9.5]), "published", 1), 1, newest=7)
    assert deadline_s(past, "published", 1, Limits(60.0, 1.0)) == 9.0


def test_a_transfer_is_never_given_less_than_it_usually_takes() -> None:
    past = Past({("fetched", 1): (30.0,) * MIN_SAMPLES})
    for _ in range(5):
        past = expired(past, "fetched", 1)
    assert deadline_s(past, "fetched", 1, Limits(60.0)) == 30.0


def test_the_floor_is_ten_seconds_or_the_ceiling() -> None:
    assert Limits(60.0).floor_s == 10.0
    assert Limits(3.0).floor_s == 3.0
    assert Limits(60.0, 0.5).floor_s == 0.5
