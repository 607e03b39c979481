"""Who is in the graph, from which round on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dimat.coordinator.changes import after_restart, away_now, next_change
from dimat.coordinator.membership import Group, Seat
from dimat.errors import UsageError
from dimat.messages import Change, Drain

RUNNING = replace(Group(tuple(Seat(agent, "running", at=7, round=6) for agent in range(4))), forming=False)
LAST, LEASE_S = 40, 15.0


def change_of(group: Group, changes: tuple[Change, ...] = (), newest: int = 6) -> Change | None:
    return next_change(group, changes, newest, LAST)


def test_nothing_changes_while_everybody_is_there() -> None:
    assert change_of(RUNNING) is None
    assert change_of(RUNNING.with_seat(Seat(2, "joined"))) is None


def test_a_lost_or_failed_agent_leaves_from_a_round_that_nobody_has_begun() -> None:
    for state in ("lost", "failed"):
        change = change_of(RUNNING.with_seat(Seat(2, state)))
        assert change is not None
        assert (change.number, change.from_round, change.away) == (1, 8, (2,))
        assert state in change.reason
    ahead = RUNNING.with_seat(Seat(2, "lost")).with_seat(Seat(0, "running", at=9, round=6))
    assert change_of(ahead).from_round == 10
    reported = RUNNING.with_seat(Seat(2, "lost"))
    assert change_of(reported, newest=11).from_round == 13  # whoever reported 11 is in 12


def test_an_agent_that_left_early_is_away_and_one_that_is_done_is_not() -> None:
    assert change_of(RUNNING.with_seat(Seat(2, "done", at=6, round=6))).away == (2,)
    assert change_of(RUNNING.with_seat(Seat(2, "done", at=LAST, round=LAST))) is None


def test_whoever_comes_back_is_in_the_graph_once_it_is_about_as_far_as_the_others() -> None:
    out = (Change(1, 8, (2,), "lost"),)
    back = RUNNING.with_seat(Seat(2, "running", rejoined=True, at=5))
    assert change_of(back, out, newest=20) is None
    arrived = back.with_seat(Seat(2, "running", rejoined=True, at=19))
    assert change_of(arrived, out, newest=20) == Change(2, 22, (), "with agent 2")
    assert next_change(back, out, 20, LAST, most_behind=15) == Change(2, 22, (), "with agent 2")


def test_a_slow_agent_stays_in_the_graph_also_when_it_was_restarted() -> None:
    assert change_of(RUNNING.with_seat(Seat(2, "running", rejoined=True, at=1)), newest=20) is None


def test_nothing_is_decided_before_every_running_agent_was_heard_nor_for_rounds_that_do_not_come() -> None:
    lost = RUNNING.with_seat(Seat(2, "lost"))
    assert change_of(lost.with_seat(Seat(0, "running", presumed=True))) is None
    assert change_of(replace(lost, forming=True)) is None
    assert next_change(lost, (), 6, last_round=7) is None


def test_a_restart_of_all_begins_with_everybody() -> None:
    changes = (Change(1, 8, (2,), ""), Change(2, 15, (2, 3), ""))
    assert away_now(after_restart(changes, 10)) == frozenset()
    assert [change.number for change in after_restart(changes, 10)] == [1, 3]
    assert after_restart(changes, 10)[-1].from_round == 11
    assert after_restart((), 3) == ()


def test_agents_are_told_and_a_restarted_coordinator_remembers(stage: Callable[..., Any]) -> None:
    run = stage(agents=3, rounds=30)
    run.join_all()
    run.report_all(1)
    run.now += LEASE_S - 1
    for agent in (1, 2):
        run.beat(agent, 2)
    run.pass_time(2)
    told = run.beat(1, 2)
    assert [(change.from_round, change.away) for change in told.changes] == [(3, (0,))]
    assert run.coordinator.view().changes == told.changes
    assert not told.addresses
    for round in range(2, 15):
        run.report(1, round)
        run.report(2, round)
    run.join(0, "b", checkpoints=(1,))
    run.beat(1, 15)
    where = {0: "127.0.0.1:7000"}
    assert run.beat(2, 15).addresses == where
    assert run.beat(0, 1).changes[-1].away == (0,)
    assert run.beat(0, 14).changes[-1] == Change(2, 16, (), "with agent 0")
    run.crash()
    assert [change.away for change in run.coordinator.view().changes] == [(0,), ()]
    assert run.beat(1, 15).addresses == where


def test_a_round_is_complete_without_one_that_began_with_a_neighbours_model(stage: Callable[..., Any]) -> None:
    run = stage(agents=3)
    run.join_all()
    run.report_all(1)
    run.now += LEASE_S - 1
    for agent in (1, 2):
        run.beat(agent, 2)
    run.pass_time(2)
    for round in (2, 3, 4):
        for agent in (1, 2):
            run.report(agent, round)
    run.join(0, "b")
    run.beat(1, 5)
    for agent in (1, 2):
        run.report(agent, 5)
    newest = run.coordinator.view().newest
    assert newest is not None
    assert newest.round == 4  # it may still report round 5
    run.report(0, 6)  # its first: it took over a model of round 5
    newest = run.coordinator.view().newest
    assert newest is not None
    assert newest.round == 5


def test_an_agent_that_is_asked_to_leave_knows_its_last_round_and_so_do_the_others(stage: Callable[..., Any]) -> None:
    run = stage(agents=3)
    run.join_all()
    run.report_all(1)
    told = run.coordinator.drain(Drain(1))
    assert told.stop_after == 2
    assert run.coordinator.drain(Drain(1)).stop_after == 2  # asked twice is once
    others = run.beat(0, 2)
    assert (others.stop_after, others.changes[-1].from_round, others.changes[-1].away) == (None, 3, (1,))
    assert "leaving" in others.changes[-1].reason
    assert others.changes[-1].leaving == (1,)  # waited for until then
    run.crash()
    assert run.beat(0, 2).changes[-1] == others.changes[-1]
    run.beat(2, 2)
    assert run.beat(1, 2).stop_after == 2
    run.report_all(2)
    run.beat(1, 2, done=True)
    assert run.beat(0, 3).changes[-1].number == 1  # nothing new: it is gone as announced
    for round in range(3, 11):
        run.report(0, round)
        run.report(2, round)
    run.beat(0, 10, done=True)
    run.beat(2, 10, done=True)
    run.pass_time(LEASE_S + 1)
    assert run.coordinator.outcome.kind == "rounds"


def test_where_callers_prove_who_they_are_an_agents_wish_to_stop_is_its_own(stage: Callable[..., Any]) -> None:
    run = stage(agents=3)
    run.members_stop = False
    run.crash()
    run.join_all()
    run.report_all(1)
    assert run.beat(1, 2, wants_stop=True).stop_after == 2
    run.beat(1, 2, wants_stop=True)
    others = run.beat(0, 2)
    assert (others.stop_after, others.changes[-1].away) == (None, (1,))
    assert run.kinds().count("drain") == 1
    run.report_all(2)
    run.beat(1, 2, done=True)
    for round in range(3, 11):
        run.report(0, round)
        run.report(2, round)
    run.beat(0, 10, done=True)
    run.beat(2, 10, done=True)
    run.pass_time(LEASE_S + 1)
    assert run.coordinator.outcome.exit_code == 0


def test_and_when_all_of_them_want_to_stop_the_run_is_over(stage: Callable[..., Any]) -> None:
    run = stage(agents=3)
    run.members_stop = False
    run.crash()
    run.join_all()
    run.report_all(1)
    last = [run.beat(agent, 2, wants_stop=True).stop_after for agent in range(3)]
    assert last == [2, 2, 2]
    run.report_all(2)
    run.leave_all(2)
    assert run.coordinator.outcome is not None
    assert run.coordinator.outcome.exit_code == 130


def test_one_that_was_asked_to_leave_may_come_back(stage: Callable[..., Any]) -> None:
    run = stage(agents=3)
    run.join_all()
    run.report_all(1)
    run.coordinator.drain(Drain(1))
    run.report_all(2)
    run.beat(1, 2, done=True)
    run.join(1, "b", checkpoints=(2,))
    run.beat(0, 3)
    run.beat(1, 3)
    assert run.beat(1, 3).stop_after is None
    assert run.coordinator.view().changes[-1].away == ()


def test_the_time_in_which_the_coordinator_itself_stood_still_counts_for_no_lease(stage: Callable[..., Any]) -> None:
    """Its process is stopped for longer than a lease: when it goes on, one agent is heard first, the others later."""
    run = stage(agents=3)
    run.tick_s = 0.25
    run.crash()
    run.join_all()
    run.report_all(1)
    run.now += 3 * LEASE_S
    run.beat(0, 2)
    run.pass_time(0.25)
    assert run.states() == ["running"] * 3
    for _ in range(int(LEASE_S / 0.25) + 1):  # it runs again: from now on silence is silence
        run.pass_time(0.25)
        run.beat(0, 2)
    assert run.states() == ["running", "lost", "lost"]


def test_who_is_not_in_its_rounds_cannot_be_asked_to_leave(stage: Callable[..., Any]) -> None:
    run = stage(agents=3)
    with pytest.raises(UsageError, match="agent 1 is not in its rounds; no agent is"):
        run.coordinator.drain(Drain(1))
    run.join_all()
    with pytest.raises(UsageError, match="agents 0, 1, 2 are"):
        run.coordinator.drain(Drain(7))


def elastic(stage: Callable[..., Any]) -> Any:
    """Two founders in round 2, and a seat for a third."""
    run = stage(agents=2, num_seats=3)
    run.join(0)
    assert run.join(1).state == "running"  # nobody waits for the newcomer
    run.report(0, 1)
    run.report(1, 1)
    return run


def test_a_newcomer_is_woven_in_once_it_has_caught_up(stage: Callable[..., Any]) -> None:
    run = elastic(stage)
    assert run.beat(0, 2).changes == ()
    run.join(2)
    run.beat(0, 2)
    assert run.states() == ["running", "running", "running"]
    told = run.beat(2, 2)
    assert [(change.from_round, change.away, change.reason) for change in told.changes] == [(3, (), "with agent 2")]
    assert run.beat(0, 2).addresses == {2: "127.0.0.1:7002"}


def test_a_newcomer_that_comes_too_early_waits_for_the_rounds_to_begin(stage: Callable[..., Any]) -> None:
    run = stage(agents=2, num_seats=3)
    run.join(2)
    run.join(0)
    run.join(1)
    assert run.states() == ["running", "running", "joined"]
    run.beat(0, 1)
    assert run.states() == ["running", "running", "running"]
    assert [(change.from_round, change.away) for change in run.coordinator.view().changes] == [(2, ())]


def test_a_run_ends_without_newcomers_that_never_came(stage: Callable[..., Any]) -> None:
    run = elastic(stage)
    for round in range(2, 11):
        run.report(0, round)
        run.report(1, round)
    run.beat(0, 10, done=True)
    run.beat(1, 10, done=True)
    run.pass_time(LEASE_S + 1)
    assert run.coordinator.outcome.kind == "rounds"
    assert run.coordinator.view().changes == ()


def test_a_newcomer_that_is_lost_leaves_the_graph(stage: Callable[..., Any]) -> None:
    run = elastic(stage)
    run.join(2)
    run.beat(0, 2)
    run.beat(2, 2)
    run.now += LEASE_S - 1
    run.beat(0, 3)
    run.beat(1, 3)
    run.pass_time(2)
    assert run.coordinator.view().changes[-1].away == (2,)


def test_agents_are_told_who_has_said_goodbye_unless_the_coordinator_itself_is_new(stage: Callable[..., Any]) -> None:
    """After its restart all may have been restarted, and be about to come back."""
    scene = stage()
    scene.join_all()
    assert scene.beat(0, 1).done == ()
    scene.beat(1, 20, done=True)
    assert scene.beat(0, 1).done == scene.report(0, 1).done == (1,)
    assert scene.coordinator.drain(Drain(0)).done == (1,), "also with one's own last round"
    scene.crash()
    assert scene.beat(0, 2).done == ()
    scene.beat(2, 2)
    scene.pass_time(LEASE_S - 1)
    scene.beat(0, 2)
    scene.pass_time(2)
    assert scene.beat(0, 2).done == (1,), "it has not come back"
    scene.coordinator.request_stop("the user's wish")
    assert scene.beat(2, 2).done == (1,), "also with the round that is the last one"


def test_a_drain_is_remembered_by_who_takes_the_seat_before_it_left(stage: Callable[..., Any]) -> None:
    run = stage(agents=3, rounds=30)
    run.join_all()
    run.report_all(1)
    run.coordinator.drain(Drain(1))
    run.join(1, "b", checkpoints=(1,))
    run.beat(0, 2)
    run.beat(1, 2)
    assert run.beat(1, 2).stop_after == 2


def test_a_coordinator_that_died_while_one_came_back_goes_on_without_it(stage: Callable[..., Any]) -> None:
    """Both are killed at the same moment, and the agent stays away: the others are repaired, and the run ends."""
    run = stage(agents=3)
    run.join_all()
    run.report_all(1)
    run.join(2, "b", checkpoints=(1,))
    run.crash()
    for agent in (0, 1):
        run.beat(agent, 2)
    view = run.coordinator.view()
    assert view.state == "running"
    assert view.changes[-1].away == (2,)
    for round in range(2, 11):
        run.report(0, round)
        run.report(1, round)
    run.beat(0, 10, done=True)
    run.beat(1, 10, done=True)
    run.pass_time(LEASE_S + 1)
    assert run.coordinator.outcome.kind == "rounds"


def test_and_it_may_still_come_back(stage: Callable[..., Any]) -> None:
    run = stage(agents=3)
    run.join_all()
    run.report_all(1)
    run.join(2, "b", checkpoints=(1,))
    run.crash()
    run.beat(0, 2)
    run.beat(1, 2)
    run.join(2, "b", checkpoints=(1,))
    run.beat(0, 2)
    assert run.states() == ["running"] * 3
    assert run.coordinator.view().changes[-1].away == ()


def test_a_process_whose_seat_was_taken_is_told_to_go(stage: Callable[..., Any]) -> None:
    run = stage(agents=3)
    run.join_all()
    run.report_all(1)
    run.join(1, "b", checkpoints=(1,))
    run.sessions[1] = "a"
    assert run.beat(1, 2).superseded
    assert run.report(1, 2).superseded
    run.sessions[1] = "b"
    assert not run.beat(1, 2).superseded


def test_one_that_was_silent_may_leave_out_the_rounds_that_it_missed(stage: Callable[..., Any]) -> None:
    """Its line was cut for longer than a lease: it hears where the others are, and what it missed holds up nothing."""
    run = stage(agents=3)
    run.join_all()
    run.report_all(1)
    run.pass_time(LEASE_S - 1)
    run.report(0, 2)
    run.report(1, 2)
    run.pass_time(2)
    assert run.states() == ["running", "running", "lost"]
    for round in (3, 4, 5):
        run.report(0, round)
        run.report(1, round)
    told = run.beat(2, 2)
    assert told.newest_round == 5
    assert [(change.from_round, change.away) for change in told.changes] == [(4, (2,)), (7, ())]
    run.report(2, 6)
    run.report(0, 6)
    run.report(1, 6)
    assert [summary.round for summary in run.store.summaries()] == [1, 2, 3, 4, 5, 6]
    assert [summary.num_agents for summary in run.store.summaries()] == [3, 2, 2, 2, 2, 3]
