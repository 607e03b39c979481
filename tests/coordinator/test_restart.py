"""A coordinator that dies and is started again has lost nothing that it acknowledged; a run that ended goes on."""

from __future__ import annotations

import json

import pytest

from dimat.coordinator import Coordinator
from dimat.errors import DimatError
from dimat.messages import Report


def test_views_members_rounds_and_numbers_are_restored(stage) -> None:
    run = stage()
    run.join_all()
    run.report_all(1, 0.4)
    run.report(0, 2, 0.8)
    before = run.coordinator.view()
    run.crash()
    after = run.coordinator.view()
    assert after.number > before.number
    assert (after.state, after.reason, after.newest.round) == (before.state, before.reason, 1)
    for then, now in zip(before.members, after.members, strict=True):
        assert (now.address, now.state, now.round, now.metrics) == (then.address, then.state, then.round, then.metrics)
        assert (now.num_samples, now.histogram) == (then.num_samples, then.histogram)
    # Agents go on as if nothing had happened; the report that was acknowledged before counts.
    run.report(1, 2, 0.8)
    assert run.coordinator.view().newest.round == 1
    run.report(2, 2, 0.8)
    # Nothing is concluded before everybody was heard again: somebody may be rounds ahead of what it has handed in.
    assert run.coordinator.view().newest.round == 1
    run.beat(0, 3)
    assert (run.coordinator.view().newest.round, run.coordinator.view().newest.num_agents) == (2, 3)


def test_a_report_whose_answer_was_lost_is_one_report(stage) -> None:
    run = stage()
    run.join_all()
    run.report_all(1)
    run.crash()
    run.report_all(1, accuracy=0.9)
    assert len(run.store.reports()) == 3
    assert run.coordinator.view().newest.mean_accuracy == 0.5
    assert run.kinds().count("round") == 1


@pytest.mark.parametrize("wish", [False, True])
def test_a_named_round_stays_named(stage, wish: bool) -> None:
    run = stage(diameter=2, target_accuracy=None if wish else 0.9)
    run.join_all()
    run.report_all(1, 0.95)
    if wish:
        run.coordinator.request_stop("the user stopped the run (SIGINT)")
    before = run.coordinator.view()
    run.crash()
    view = run.coordinator.view()
    assert (view.state, view.stop_after, view.reason) == ("stopping", before.stop_after, before.reason)
    assert run.beat(0, 2).stop_after == before.stop_after
    for round in range(2, before.stop_after + 1):
        assert {answer.stop_after for answer in run.report_all(round, 0.95)} == {before.stop_after}
    run.leave_all(before.stop_after)
    assert run.coordinator.outcome.exit_code == (130 if wish else 0)


def test_agents_have_a_lease_to_be_heard_by_the_new_coordinator(stage) -> None:
    run = stage()
    run.join_all()
    run.crash()
    run.pass_time(14)
    assert run.states() == ["running"] * 3
    run.beat(0, 1)
    run.pass_time(2)
    assert run.states() == ["running", "lost", "lost"]


def test_goodbyes_are_remembered(stage) -> None:
    run = stage(agents=2, rounds=1)
    run.join_all()
    run.report_all(1)
    run.beat(0, 1, done=True)
    run.crash()
    assert run.states() == ["done", "running"]
    run.beat(1, 1, done=True)
    assert not run.coordinator.finished  # perhaps agent 0 was started again with everything else
    run.pass_time(16)
    assert run.coordinator.outcome.kind == "rounds"


def test_agents_that_waited_to_begin_join_again(stage) -> None:
    run = stage()
    run.join(0), run.join(1)
    run.crash()
    assert run.states() == ["absent"] * 3
    assert run.join(2).state == "forming"
    run.join(0)
    assert run.join(1).state == "running"


def test_everything_was_killed_and_starts_again(stage) -> None:
    """No agent of the time before is heard, so nobody begins before all are back."""
    run = stage()
    run.join_all()
    for round in (1, 2, 3):
        run.report_all(round)
    run.report(0, 4)
    run.crash()
    assert run.join(0, "b", checkpoints=(2, 3, 4)).state == "forming"
    assert run.join(1, "b", checkpoints=(2, 3)).state == "forming"
    run.pass_time(60)
    assert run.coordinator.view().state == "forming"
    view = run.join(2, "b", checkpoints=(2, 3))
    assert (view.state, view.start_round, view.newest.round) == ("running", 3, 3)
    assert len(run.store.reports()) == 9


def test_one_agent_crashed_together_with_the_coordinator(stage) -> None:
    run = stage()
    run.join_all()
    run.report_all(1)
    run.crash()
    assert run.join(2, "b", checkpoints=(1,)).state == "forming"
    run.beat(0, 2)
    view = run.coordinator.view()
    assert (view.state, view.start_round) == ("running", 1)
    assert len(run.store.reports()) == 3


def test_an_interrupted_run_is_continued_to_its_end(stage) -> None:
    run = stage(rounds=4)
    run.join_all()
    run.report_all(1)
    run.coordinator.request_stop("the user stopped the run (SIGINT)")
    run.report_all(2)
    run.leave_all(2)
    assert run.store.outcome().kind == "interrupted"
    run.crash()
    assert run.store.outcome().kind == "interrupted"
    assert run.join(0, "b", checkpoints=(1, 2)).stop_after is None
    assert run.beat(0).stop_after is None
    run.join(1, "b", checkpoints=(1, 2))
    view = run.join(2, "b", checkpoints=(1, 2))
    assert (view.state, view.start_round, view.stop_after) == ("running", 2, None)
    assert run.store.outcome() is None
    for round in (3, 4):
        run.report_all(round)
    run.leave_all(4)
    assert run.store.outcome().kind == "rounds"
    assert [summary.round for summary in run.store.summaries()] == [1, 2, 3, 4]


def test_a_wish_of_before_the_crash_does_not_stop_a_run_that_was_started_again(stage) -> None:
    run = stage()
    run.join_all()
    run.report_all(1)
    run.coordinator.request_stop("the user stopped the run (SIGINT)")
    run.crash()
    view = run.join_all("b", checkpoints=(1,))
    assert (view.state, view.stop_after) == ("running", None)
    run.report_all(2)
    assert run.beat(0, 3).stop_after is None


def test_a_wish_to_stop_while_it_is_not_known_who_still_runs(stage) -> None:
    """Agents 1 and 2 may be in round 2: that is the round to name, should they turn out to be."""
    heard, silent = stage(), stage()
    for run in (heard, silent):
        run.join_all()
        run.report_all(1)
        run.crash()
        run.join(0, "b", checkpoints=(1,))
        run.coordinator.request_stop("the user stopped the run (SIGINT)")
    assert heard.beat(1, 2).stop_after == 2
    assert (heard.coordinator.view().start_round, heard.coordinator.view().stop_after) == (1, 2)
    silent.pass_time(16)
    assert silent.coordinator.outcome.exit_code == 130


def test_a_run_that_reached_its_end_is_over_when_asked_again(stage) -> None:
    run = stage(target_accuracy=0.9)
    run.join_all()
    run.report_all(1, 0.5)
    assert run.report_all(2, 0.95)[-1].stop_after == 3
    run.report_all(3, 0.95)
    run.leave_all(3)
    before = run.store.outcome()
    run.crash()
    view = run.join_all("b", checkpoints=(2, 3))
    assert (view.start_round, view.stop_after) == (3, 3)
    run.leave_all(3)
    assert run.store.outcome() == before


def test_what_could_not_be_written_has_not_happened(stage) -> None:
    run = stage()
    run.join_all()
    run.store._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(DimatError, match="cannot be written"):
        run.report_all(1)
    run.store._connection.execute("PRAGMA query_only = OFF")
    assert run.coordinator.view().members[0].round == 0
    run.report_all(1)
    assert run.coordinator.view().newest.num_agents == 3


def test_a_report_is_on_disk_when_it_is_answered(stage) -> None:
    """Read by another connection: nothing is left to be committed later."""
    from dimat.coordinator import Store

    run = stage()
    run.join_all()
    with Store.open(run.folder, read_only=True) as reader:
        run.report(0, 1)
        assert [report.agent for report in reader.reports()] == [0]
        run.report(1, 1), run.report(2, 1)
        assert [summary.round for summary in reader.summaries()] == [1]


def test_the_event_log_goes_on(stage) -> None:
    run = stage()
    run.join_all()
    run.crash()
    run.report_all(1)
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == run.kinds()
    assert lines[-1]["kind"] == "round"


def test_view_numbers_stay_ahead_after_many_changes(stage, monkeypatch) -> None:
    monkeypatch.setattr("dimat.coordinator.core.NUMBERS_RESERVED", 3)
    run = stage()
    assert isinstance(run.coordinator, Coordinator)
    run.join_all()
    for round in range(1, 6):
        run.coordinator.report(Report(0, "a", round, {}))
        before = run.coordinator.view().number
        run.crash()
        assert run.coordinator.view().number > before
