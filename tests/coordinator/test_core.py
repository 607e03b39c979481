"""A run from the first join to the last goodbye, as agents see it."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dimat.errors import UsageError
from dimat.messages import Heartbeat, Report, View


def test_a_run_from_beginning_to_end(stage) -> None:
    run = stage(agents=3, rounds=3)
    assert [run.join(agent).state for agent in range(3)] == ["forming", "forming", "running"]
    for round in (1, 2):
        answers = run.report_all(round, accuracy=0.2 * round)
        assert {answer.stop_after for answer in answers} == {None}
    view = run.coordinator.view()
    assert (view.state, view.newest.round, view.newest.num_agents) == ("running", 2, 3)
    assert view.newest.mean_accuracy == pytest.approx(0.4)
    assert [member.metrics["accuracy"] for member in view.members] == [0.4] * 3
    assert run.report_all(3)[-1].stop_after == 3
    assert run.coordinator.view().state == "stopping"
    assert not run.coordinator.finished
    run.leave_all(3)
    assert (run.coordinator.view().state, run.coordinator.outcome.kind) == ("done", "rounds")
    assert run.store.outcome() == run.coordinator.outcome
    assert [summary.round for summary in run.store.summaries()] == [1, 2, 3]
    assert len(run.store.reports()) == 9
    assert run.kinds() == [
        *("joined", "forming") * 2, "joined", "started", "round", "round", "round", "stop", *["left"] * 3, "ended"
    ]  # fmt: skip


def test_the_view_has_everything_that_agents_need(stage) -> None:
    view = stage().join_all()
    assert [member.address for member in view.members] == ["127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002"]
    assert [member.num_samples for member in view.members] == [0, 10, 20]
    assert view.members[2].histogram == {"seven": 2}


def test_a_target_names_a_round_that_nobody_has_passed(stage) -> None:
    run = stage(agents=3, diameter=2, target_accuracy=0.9)
    run.join_all()
    run.report_all(1, 0.5)
    run.report(0, 2, 0.95)
    run.report(0, 3, 0.95)  # agent 0 is a round ahead
    assert run.report(1, 2, 0.95).stop_after is None
    answer = run.report(2, 2, 0.95)
    assert answer.stop_after == 4
    assert answer.reason == "mean accuracy 0.950 reached the target 0.9 in round 2"
    assert run.beat(0, 4).stop_after == 4
    # What comes after changes neither the round nor the reason.
    for round in (3, 4):
        assert {directive.stop_after for directive in run.report_all(round, 0.2)} == {4}
    run.leave_all(4)
    assert (run.coordinator.outcome.kind, run.coordinator.outcome.exit_code) == ("target", 0)
    assert run.kinds().count("stop") == 1


def test_divergence_on_the_way_to_the_last_round_is_not_hidden(stage) -> None:
    run = stage(diameter=2, target_accuracy=0.9)
    run.join_all()
    assert run.report_all(1, 0.95)[-1].stop_after == 3
    run.report_all(2, 0.95)
    run.report(1, 3, metrics={"loss": math.nan})
    run.report(0, 3)
    assert run.report(2, 3).stop_after == 3
    run.leave_all(3)
    assert run.coordinator.outcome.exit_code == 1
    assert run.coordinator.outcome.reason == "agent 1 diverged: its loss is nan in round 3"


def test_the_users_wish_through_an_agent_or_through_the_coordinator(stage) -> None:
    through_agent, through_coordinator = stage(), stage()
    for run in (through_agent, through_coordinator):
        run.join_all()
        run.report_all(1)
        run.report(0, 2)
    directive = through_agent.beat(1, 2, wants_stop=True)
    through_coordinator.coordinator.request_stop("the user stopped the run (SIGINT)")
    assert directive.stop_after == through_coordinator.beat(0, 3).stop_after == 3
    assert directive.reason == "agent 1 was asked to stop: stopping after round 3 of 10"
    for run in (through_agent, through_coordinator):
        assert run.beat(2, 2, wants_stop=True).stop_after == 3  # a second wish changes nothing
        run.report_all(2)
        run.report_all(3)
        run.leave_all(3)
        assert run.coordinator.outcome.exit_code == 130


def test_a_stop_before_everybody_is_here_ends_the_run_at_once(stage) -> None:
    run = stage()
    run.join(0)
    run.coordinator.request_stop("the user stopped the run (SIGINT)")
    view = run.coordinator.view()
    assert (view.state, view.stop_after) == ("done", 0)
    assert run.coordinator.outcome.exit_code == 130
    assert run.join(1).state == run.join(2).state == "done"  # it does not begin after all


def test_rounds_do_not_wait_for_the_lost_and_take_them_back(stage) -> None:
    run = stage()
    run.join_all()
    run.report_all(1)
    run.report(0, 2, 0.4)
    run.report(1, 2, 0.6)
    run.pass_time(10)
    assert run.coordinator.view().newest.round == 1
    run.beat(0, 3), run.beat(1, 3)
    run.pass_time(10)
    assert run.states() == ["running", "running", "lost"]
    newest = run.coordinator.view().newest
    assert (newest.round, newest.num_agents) == (2, 2)
    assert newest.mean_accuracy == pytest.approx(0.5)
    run.report(2, 2, 0.9)  # late, but kept; the summary stands
    assert run.states() == ["running"] * 3
    assert len(run.store.reports()) == 6
    assert run.coordinator.view().newest.mean_accuracy == pytest.approx(0.5)
    run.report(0, 3), run.report(1, 3)
    assert run.coordinator.view().newest.round == 2  # now agent 2 is waited for again
    run.report(2, 3)
    assert run.coordinator.view().newest.round == 3
    assert [kind for kind in run.kinds() if kind in ("lost", "back")] == ["lost", "back"]


def test_rounds_do_not_wait_for_the_failed_and_those_left_may_finish(stage) -> None:
    run = stage(rounds=2)
    run.join_all()
    run.report_all(1)
    run.beat(1, 2, done=True, error="out of memory")
    run.report(0, 2), run.report(2, 2)
    assert run.coordinator.view().newest.num_agents == 2
    run.beat(0, 2, done=True), run.beat(2, 2, done=True)
    assert (run.coordinator.outcome.kind, run.coordinator.outcome.exit_code) == ("rounds", 0)
    assert run.states() == ["done", "failed", "done"]
    assert "agent 1 failed: out of memory" in [event.text for event in run.store.events()]


def test_when_all_fail_the_run_has_failed_and_says_why(stage) -> None:
    run = stage(agents=2)
    run.join_all()
    run.beat(0, 1, done=True, error="no data")
    assert not run.coordinator.finished
    run.beat(1, 1, done=True, error="no memory")
    assert run.coordinator.outcome.exit_code == 1
    assert run.coordinator.outcome.reason == "no agent came to the end: agent 0: no data; agent 1: no memory"


def test_an_agent_that_comes_back_alone_starts_after_its_own_newest_round(stage) -> None:
    run = stage()
    run.join_all()
    for round in (1, 2, 3):
        run.report_all(round)
    assert run.join(1, "b", checkpoints=(1, 2)).state == "forming"
    run.beat(0, 4)
    view = run.coordinator.view()
    assert (view.state, view.start_round) == ("running", 2)
    assert run.join(1, "b", checkpoints=(1, 2)).start_round == 2  # asked once more, its answer was lost
    assert len(run.store.reports()) == 9  # nothing that the others reported is void
    run.report(0, 4), run.report(2, 4)
    assert run.coordinator.view().newest.round == 3
    run.report(1, 3), run.report(1, 4)
    assert run.coordinator.view().newest.num_agents == 3
    assert len(run.store.reports()) == 12


def test_the_former_process_of_an_agent_is_not_heard_any_more(stage) -> None:
    run = stage()
    run.join_all()
    run.join(1, "b")
    run.beat(0, 1)
    old = run.coordinator.report(Report(1, "a", 1, {"loss": 1.0}))
    assert "not joined as this process" in old.reason
    assert run.store.reports() == []
    assert "not joined as this process" in run.coordinator.heartbeat(Heartbeat(1, "a", 1, "", done=True)).reason
    assert run.states() == ["running"] * 3
    assert "not joined" in run.coordinator.heartbeat(Heartbeat(7, "a", 1, "")).reason


def test_all_agents_restarted_at_once_go_on_from_the_newest_common_round(stage) -> None:
    """As torchrun restarts them: one after the other, the first while the others still look alive."""
    run = stage()
    run.join_all()
    for round in (1, 2, 3):
        run.report_all(round)
    run.report(0, 4)
    assert run.join(0, "b", checkpoints=(2, 3, 4)).state == "forming"
    assert run.join(1, "b", checkpoints=(2, 3)).state == "forming"
    view = run.join(2, "b", checkpoints=(1, 2))
    assert (view.state, view.start_round) == ("running", 2)
    assert [report.round for report in run.store.reports()] == [1, 1, 1, 2, 2, 2]
    assert [summary.round for summary in run.store.summaries()] == [1, 2]
    assert "rounds 3 to 4 are done again; what was reported of them is dropped" in [
        event.text for event in run.store.events()
    ]
    run.report_all(3, 0.7)
    assert [summary.round for summary in run.store.summaries()] == [1, 2, 3]
    assert run.coordinator.view().newest.mean_accuracy == pytest.approx(0.7)


def test_a_decision_on_rounds_that_are_done_again_is_void(stage) -> None:
    run = stage(target_accuracy=0.9, diameter=2)
    run.join_all()
    run.report_all(1, 0.5)
    assert run.report_all(2, 0.95)[-1].stop_after == 4
    assert run.join_all("b", checkpoints=(1,)).stop_after is None
    assert run.report_all(2, 0.95)[-1].stop_after == 4


def test_a_wish_to_stop_survives_a_restart_of_all_agents(stage) -> None:
    run = stage()
    run.join_all()
    for round in (1, 2):
        run.report_all(round)
    run.coordinator.request_stop("the user stopped the run (SIGINT)")
    assert run.beat(0, 3).stop_after == 3
    view = run.join_all("b", checkpoints=(1,))
    assert (view.start_round, view.stop_after) == (1, 1)
    run.leave_all(1)
    assert run.coordinator.outcome.exit_code == 130


def test_nonsense_is_refused(stage) -> None:
    run = stage(rounds=10)
    run.join_all()
    for agent, round in ((0, 0), (0, 11), (3, 1), (-1, 1)):
        with pytest.raises(
            UsageError, match=rf"agent {agent} reported round {round}; .* agents 0 to 2 and rounds 1 to 10"
        ):
            run.coordinator.report(Report(agent, "a", round, {}))
    for sketch in (b"123", bytes(1 << 20)):
        with pytest.raises(UsageError, match="not a row of at most 16384 float32"):
            run.report(0, 1, sketch_after=sketch)
    assert run.store.reports() == []


def test_a_round_that_nobody_can_report_any_more_is_left_out(stage) -> None:
    """Round 1 of both agents was lost with them before it was handed in; they hold it all the same."""
    run = stage(agents=2)
    run.join_all()
    run.join_all("b", checkpoints=(1,))
    run.report_all(2)
    assert [summary.round for summary in run.store.summaries()] == [2]


def test_kept_reports_may_come_after_the_goodbye(stage) -> None:
    run = stage(agents=2, rounds=2)
    run.join_all()
    run.report_all(1)
    run.report(0, 2, 0.2)
    run.beat(0, 2, done=True)
    run.beat(1, 2, done=True)  # its report of round 2 is still on the way
    assert not run.coordinator.finished
    run.report(1, 2, 0.6)
    assert run.coordinator.view().newest.mean_accuracy == pytest.approx(0.4)
    assert run.coordinator.outcome.kind == "rounds"


def test_kept_reports_that_never_come_do_not_keep_the_run_open(stage) -> None:
    run = stage(agents=2, rounds=2)
    run.join_all()
    run.report_all(1)
    run.beat(0, 2, done=True), run.beat(1, 2, done=True)
    run.pass_time(16)
    assert (run.coordinator.outcome.kind, run.coordinator.outcome.round) == ("rounds", 1)


def test_an_agent_heard_again_after_the_end_reopens_it(stage) -> None:
    run = stage(agents=2)
    run.join_all()
    for _ in range(2):
        run.pass_time(10)
        run.beat(0, 1)
    run.report(0, 1)
    run.beat(0, 10, done=True)
    run.pass_time(16)
    assert run.coordinator.finished
    run.beat(1, 1)
    assert not run.coordinator.finished
    assert run.store.outcome() is None


def test_waiting_for_a_change_ends_with_it_or_with_the_time(stage) -> None:
    run = stage()
    before = run.coordinator.view()
    assert run.coordinator.changed(before.number, 0.01).number == before.number
    seen: list[View] = []
    onlooker = threading.Thread(target=lambda: seen.append(run.coordinator.changed(before.number, 30.0)))
    onlooker.start()
    run.join(0)
    onlooker.join(10.0)
    assert seen[0].number > before.number
    assert seen[0].members[0].state == "joined"


def test_what_agents_are_doing_is_shown_but_not_at_every_heartbeat(stage) -> None:
    run = stage()
    number = run.join_all().number
    run.now += 1.0
    run.beat(0, 1, waiting="for agent 1")
    assert (run.coordinator.view().number, run.coordinator.view().members[0].waiting) == (number + 1, "for agent 1")
    for seconds in range(20):
        run.beat(0, 1, waiting=f"for agent 1, {seconds} s")
    assert run.coordinator.view().number == number + 1
    run.pass_time(0.5)
    assert run.coordinator.view().number == number + 2


def test_a_clock_that_stands_still_loses_nobody(stage) -> None:
    run = stage()
    run.join_all()
    run.now = 0.0
    for round in range(1, 11):
        for agent in range(3):
            run.coordinator.report(Report(agent, "a", round, {"accuracy": 0.5}))
    for agent in range(3):
        run.coordinator.heartbeat(Heartbeat(agent, "a", 10, "", done=True))
    assert run.coordinator.outcome.kind == "rounds"


actions = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.integers(0, 2)),
        st.tuples(st.just("again"), st.integers(0, 2)),
        st.tuples(st.just("beat"), st.integers(0, 2)),
        st.tuples(st.just("rejoin"), st.integers(0, 2)),
        st.tuples(st.just("time"), st.integers(1, 20)),
        st.tuples(st.just("crash"), st.just(0)),
        st.tuples(st.just("stop"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions)
def test_whatever_happens_numbers_grow_rows_are_single_and_no_round_named_has_passed(stage, script) -> None:
    run = stage(agents=3, rounds=8, diameter=1)
    done, process = [0, 0, 0], [0, 0, 0]
    number, num_stops = run.join_all().number, 0
    for action, value in script:
        if action == "report" and done[value] < 8 and run.states()[value] == "running":
            done[value] += 1
            run.report(value, done[value])
        elif action == "again" and done[value]:
            run.report(value, done[value], accuracy=0.9)
        elif action == "beat":
            run.beat(value, min(done[value] + 1, 8))
        elif action == "rejoin":
            process[value] += 1
            run.join(value, f"p{process[value]}", tuple(range(1, done[value] + 1)))
        elif action == "time":
            run.pass_time(value)
        elif action == "crash":
            run.crash()
        elif action == "stop":
            run.coordinator.request_stop("enough")
        view = run.coordinator.view()
        assert view.number >= number
        number = view.number
        reports = [(report.round, report.agent) for report in run.store.reports()]
        assert len(reports) == len(set(reports))
        rounds = [summary.round for summary in run.store.summaries()]
        assert rounds == sorted(set(rounds))
        stops = [event.round for event in run.store.events() if event.kind == "stop"]
        for named in stops[num_stops:]:
            assert 0 <= named <= 8
            assert named == 8 or named > max(reports, default=(0, 0))[0] or "running" not in run.states()
        num_stops = len(stops)
