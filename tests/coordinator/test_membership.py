"""Decisions about who is in the run, on groups built by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimat.coordinator.membership import (
    Group,
    Seat,
    Start,
    apply_start,
    decide_start,
    find_lost,
    has_left,
    is_over,
    may_report,
    note_beat,
    note_report,
    take_seat,
)
from dimat.coordinator.options import Options
from dimat.errors import UsageError
from dimat.messages import Heartbeat, Join, Report

OPTIONS = Options(num_agents=3, rounds=20, diameter=1, lease_s=15.0)
NOW = 100.0


def seat(
    agent: int, state: str, heard_s: float = NOW, joined_s: float = 90.0, held: tuple[int, ...] = (), **more: object
) -> Seat:
    join = Join(agent, f"s{agent}", f"host:{agent}", "f", 8, held)
    return replace(Seat(agent, state, join, joined_s=joined_s, heard_s=heard_s), **more)  # type: ignore[arg-type]


def group(*seats: Seat, forming: bool = False) -> Group:
    return Group(seats, forming)


@pytest.mark.parametrize(
    ("state", "silent_s", "lost"),
    [
        ("running", 14.9, False),
        ("running", 15.1, True),
        ("joined", 1e6, False),
        ("done", 1e6, False),
        ("lost", 1e6, False),
    ],
)
def test_lost_is_who_should_speak_and_does_not(state: str, silent_s: float, lost: bool) -> None:
    agents, reason = find_lost(NOW, group(seat(0, state, NOW - silent_s), seat(1, "running")), OPTIONS)
    assert agents == ((0,) if lost else ())
    assert reason == ("silent: agent 0 for 15 s" if lost else "")


def test_nobody_is_lost_under_an_endless_lease() -> None:
    options = replace(OPTIONS, lease_s=math.inf)
    assert find_lost(1e12, group(seat(0, "running", 0.0)), options)[0] == ()


JOINED = {"joined_s": 99.0, "heard_s": 99.0}

STARTS = {
    "nobody is here": (
        group(Seat(0), Seat(1), Seat(2), forming=True),
        None,
        "waiting for agents 0, 1, 2 to join (0 of 3 are here)",
    ),
    "one is missing": (
        group(seat(0, "joined"), Seat(1), seat(2, "joined"), forming=True),
        None,
        "waiting for agent 1 to join (2 of 3 are here)",
    ),
    "all are here, untrained": (
        group(*(seat(agent, "joined") for agent in range(3)), forming=True),
        Start((0, 1, 2), 0, everyone=True),
        "all 3 agents joined, the newest round they hold is 0",
    ),
    "the newest round that everyone holds, not the newest of any": (
        group(seat(0, "joined", held=(4, 5, 6)), seat(1, "joined", held=(3, 4, 5)), seat(2, "joined", held=(4, 5, 7))),
        Start((0, 1, 2), 5, everyone=True),
        "all 3 agents joined, the newest round they hold is 5",
    ),
    "checkpoints that share nothing but the start": (
        group(seat(0, "joined", held=(4,)), seat(1, "joined", held=(5,)), seat(2, "joined", held=(6,))),
        Start((0, 1, 2), 0, everyone=True),
        "all 3 agents joined, the newest round they hold is 0",
    ),
    "one came back, the others were heard since": (
        group(seat(0, "running", NOW), seat(1, "joined", held=(6, 7), **JOINED), seat(2, "running", 98.0)),
        Start((1,), 7, everyone=False),
        "agent 1 came back, agent 0 went on meanwhile",
    ),
    "two came back together": (
        group(
            seat(0, "running", NOW), seat(1, "joined", held=(6, 7), **JOINED), seat(2, "joined", held=(5, 6), **JOINED)
        ),
        Start((1,), 7, everyone=False),  # each after its own newest round, one after the other
        "agent 1 came back, agent 0 went on meanwhile",
    ),
    "one came back, nobody was heard since: perhaps all were restarted": (
        group(seat(0, "running", 98.9), seat(1, "joined", **JOINED), seat(2, "running", 98.0)),
        None,
        "agent 1 came back; waiting to hear whether agents 0, 2 went on meanwhile",
    ),
    "presence that is only presumed proves nothing": (
        group(seat(0, "running", NOW, presumed=True), seat(1, "joined", **JOINED), seat(2, "lost")),
        None,
        "waiting for agents 0, 2 to join (1 of 3 are here)",
    ),
    "lost and failed agents are waited for": (
        group(seat(0, "lost"), seat(1, "joined"), seat(2, "failed")),
        None,
        "waiting for agents 0, 2 to join (1 of 3 are here)",
    ),
    "agents that are done are not": (
        group(seat(0, "done"), seat(1, "joined", held=(19,)), seat(2, "done")),
        Start((1,), 19, everyone=False),
        "agent 1 joined, the newest round they hold is 19",
    ),
    "agents that were done before the coordinator was restarted may come back": (
        group(seat(0, "done", presumed=True), seat(1, "joined"), seat(2, "done")),
        None,
        "waiting for agent 0 to join (2 of 3 are here)",
    ),
    "nobody waits": (group(*(seat(agent, "running") for agent in range(3))), None, ""),
}


@pytest.mark.parametrize("case", STARTS)
def test_when_rounds_may_begin(case: str) -> None:
    state, start, reason = STARTS[case]
    assert decide_start(NOW, state, OPTIONS) == (start, reason)


def test_a_start_puts_the_joined_in_their_rounds_with_a_fresh_lease() -> None:
    before = group(seat(0, "joined", heard_s=1.0, round=9), seat(1, "joined", heard_s=2.0), forming=True)
    after = apply_start(NOW, before, Start((0, 1), 4, everyone=True))
    assert not after.forming
    assert after.start_round == 4
    assert [(s.state, s.heard_s, s.start_round, s.round) for s in after.seats] == [("running", NOW, 4, 4)] * 2


def test_an_agent_of_another_model_is_let_in_because_its_neighbours_can_name_the_tensor() -> None:
    state = take_seat(NOW, Group.empty(3), Join(0, "s", "host:7000", "aaaa", 22826))
    assert take_seat(NOW, state, Join(2, "s", "host:7002", "bbbb", 22834)).seats[2].state == "joined"


@pytest.mark.parametrize("agent", [-1, 3])
def test_an_agent_that_is_not_in_the_run_is_refused(agent: int) -> None:
    with pytest.raises(UsageError, match=f"agent {agent} is not in this run: it has 3 agents, 0 to 2"):
        take_seat(NOW, Group.empty(3), Join(agent, "s", "host:1", "f", 1))


def test_joining_twice_changes_nothing() -> None:
    join = Join(1, "s", "host:1", "f", 1)
    once = take_seat(NOW, Group.empty(3), join)
    assert take_seat(NOW + 5, once, join) is once


def test_a_new_process_takes_the_seat_and_the_old_one_is_ignored() -> None:
    state = take_seat(NOW, group(seat(0, "running", round=7)), Join(0, "new", "host:9", "f", 1))
    assert state.seats[0].state == "joined"
    assert state.seats[0].round == 7
    assert note_beat(NOW, state, Heartbeat(0, "s0", 8, "train", done=True)) is state
    assert note_report(NOW, state, Report(0, "s0", 8, {})) is state
    assert note_beat(NOW, state, Heartbeat(0, "new", 8, "fold")).seats[0].phase == "fold"


@pytest.mark.parametrize(
    ("before", "beat", "after"),
    [
        ("running", {}, "running"),
        ("joined", {}, "joined"),
        ("absent", {}, "joined"),  # it had joined before the coordinator was restarted
        ("lost", {}, "running"),
        ("done", {}, "done"),
        ("failed", {}, "failed"),
        ("running", {"done": True}, "done"),
        ("running", {"done": True, "error": "boom"}, "failed"),
        ("joined", {"done": True, "error": "boom"}, "failed"),
        ("lost", {"done": True}, "done"),
    ],
)
def test_what_a_heartbeat_makes_of_a_seat(before: str, beat: dict[str, object], after: str) -> None:
    state = note_beat(NOW, group(seat(0, before, heard_s=1.0, presumed=True)), Heartbeat(0, "s0", 3, "train", **beat))  # type: ignore[arg-type]
    assert state.seats[0].state == after
    if before not in ("done", "failed"):
        assert (state.seats[0].heard_s, state.seats[0].presumed) == (NOW, False)


def test_reports_are_signs_of_life_and_never_go_back() -> None:
    state = note_report(NOW, group(seat(0, "lost", heard_s=1.0)), Report(0, "s0", 5, {"loss": 1.0}))
    assert (state.seats[0].state, state.seats[0].heard_s, state.seats[0].round) == ("running", NOW, 5)
    late = note_report(NOW, state, Report(0, "s0", 4, {"loss": 9.0})).seats[0]
    assert (late.round, late.metrics) == (5, {"loss": 1.0})


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (seat(0, "running", start_round=3), True),
        (seat(0, "running", start_round=4), False),
        (seat(0, "joined"), True),
        (seat(0, "lost"), False),
        (seat(0, "failed"), False),
        (seat(0, "absent"), False),
        (seat(0, "done", round=3, at=3), False),
        (seat(0, "done", round=3, at=5), True),
        (seat(0, "done", heard_s=NOW - 16, round=3, at=5), False),
    ],
)
def test_who_may_still_report_round_four(one: Seat, expected: bool) -> None:
    assert may_report(NOW, one, 4, OPTIONS) is expected


@pytest.mark.parametrize(
    ("states", "over"),
    [
        (("done", "done", "done"), True),
        (("done", "failed", "lost"), True),
        (("failed", "failed", "failed"), True),
        (("lost", "lost", "lost"), False),
        (("done", "done", "running"), False),
        (("done", "done", "joined"), False),
        (("done", "done", "absent"), False),
    ],
)
def test_when_nobody_is_left(states: tuple[str, ...], over: bool) -> None:
    seats = [replace(seat(agent, state), at=20, round=20) for agent, state in enumerate(states)]
    assert is_over(NOW, group(*seats), OPTIONS, last_round=20) is over


def test_a_coordinator_that_hears_nobody_does_not_end_the_run_because_one_has_left_before() -> None:
    left = replace(seat(0, "done"), at=8, round=8)
    assert not is_over(NOW, group(left, seat(1, "lost"), seat(2, "lost")), OPTIONS, last_round=20)
    assert is_over(NOW, group(left, left, left), OPTIONS, last_round=20)


def test_who_is_out_of_the_graph_does_not_throw_the_others_back() -> None:
    """Agent 1 was drained in round 9; the others were stopped in round 61, and all are started again."""
    joined = [seat(0, "joined", held=(60, 61)), seat(1, "joined", held=(8, 9)), seat(2, "joined", held=(61,))]
    start, _ = decide_start(NOW, group(*joined), OPTIONS, frozenset({1}))
    assert start == Start((0, 2), 61, everyone=True)
    assert decide_start(NOW, group(*joined), OPTIONS)[0] == Start((0, 1, 2), 0, everyone=True)
    # Where there is a round that all hold, the run goes on from it, to the bits of one in which nobody was away.
    level = [seat(0, "joined", held=(2, 3, 4)), seat(1, "joined", held=(1, 2)), seat(2, "joined", held=(2, 3, 4))]
    assert decide_start(NOW, group(*level), OPTIONS, frozenset({1}))[0] == Start((0, 1, 2), 2, everyone=True)


def test_who_left_before_a_restart_has_a_lease_to_come_back() -> None:
    former = seat(0, "done", heard_s=NOW, presumed=True)
    assert not has_left(NOW + 14, former, OPTIONS)
    assert has_left(NOW + 16, former, OPTIONS)


@given(st.lists(st.frozensets(st.integers(1, 12)), min_size=2, max_size=5))
def test_the_start_round_is_held_by_everyone_and_no_later_one_is(held: list[frozenset[int]]) -> None:
    seats = [seat(agent, "joined", held=tuple(sorted(rounds))) for agent, rounds in enumerate(held)]
    start, _ = decide_start(NOW, Group(tuple(seats)), replace(OPTIONS, num_agents=len(held)))
    assert start is not None
    shared = {round for round in range(13) if all(round == 0 or round in rounds for rounds in held)}
    assert start.round == max(shared)
