"""What goes into the store comes out again, also after a crash; `events.jsonl` says the same."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.coordinator import Event, Outcome, Store
from dimat.coordinator.rows import join_columns, join_of, report_columns, report_of, summary_columns, summary_of
from dimat.coordinator.store import StoredMember
from dimat.errors import DimatError, UsageError
from dimat.messages import Join, Report, RoundSummary

agents = st.integers(0, 99)
floats = st.floats(allow_nan=False)
numbers = st.dictionaries(st.text(max_size=5), floats, max_size=3)


@settings(max_examples=50)
@given(
    st.builds(
        Report,
        agent=agents,
        session=st.text(max_size=8),
        round=st.integers(1, 10**6),
        metrics=numbers,
        seconds=numbers,
        weights=st.dictionaries(agents, floats, max_size=3),
        bytes_received=st.dictionaries(agents, st.integers(0, 2**60), max_size=3),
        missing=st.dictionaries(agents, st.text(max_size=5), max_size=3),
        moved=numbers,
        sketch_before=st.binary(max_size=16),
        sketch_after=st.binary(max_size=16),
    )
)
def test_a_report_survives_as_columns(report: Report) -> None:
    assert report_of(report_columns(report)) == report


def test_joins_and_summaries_survive_as_columns() -> None:
    join = Join(3, "s", "host:1", "f", 2**40, (1, 2), 7, {"cat": 3})
    assert join_of(join_columns(join)) == join
    summary = RoundSummary(4, 0.1 + 0.2, 0.1, 0.2, 1e-300, num_agents=5)
    assert repr(summary_of(summary_columns(summary))) == repr(summary)  # fields that are NaN included


def report(agent: int, round: int, session: str = "a", **more: object) -> Report:
    return Report(agent, session, round, {"loss": 1.0}, sketch_after=b"1234", **more)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path)


def test_the_same_report_twice_is_one_and_a_new_process_has_the_last_word(store: Store) -> None:
    with store:
        for loss, session in ((1.0, "a"), (2.0, "a"), (3.0, "b")):
            with store.transaction():
                store.add_report(Report(0, session, 1, {"loss": loss}))
            found = [(kept.session, kept.metrics["loss"]) for kept in store.reports()]
            assert found == [("b", 3.0) if session == "b" else ("a", 1.0)]


def test_reports_come_by_round_and_agent_with_or_without_sketches(store: Store) -> None:
    with store, store.transaction():
        for agent, round in ((2, 1), (0, 2), (1, 1)):
            store.add_report(report(agent, round))
        assert [(kept.round, kept.agent) for kept in store.reports()] == [(1, 1), (1, 2), (2, 0)]
        assert [kept.round for kept in store.reports(after=1)] == [2]
        assert {kept.sketch_after for kept in store.reports()} == {b"1234"}
        assert {kept.sketch_after for kept in store.reports(sketches=False)} == {b""}


def test_members_carry_their_histograms_and_last_numbers(store: Store) -> None:
    with store, store.transaction():
        store.put_member(1, StoredMember(Join(1, "s", "host:1", "f", 8, (), 30, {"cat": 30}), "done", 0, ""))
        store.put_member(0, StoredMember(Join(0, "s", "host:0", "f", 8), "failed", 4, "boom"))
        store.add_report(report(1, 2))
        store.add_report(Report(1, "s", 3, {"loss": 0.5}))
        first, second = store.members()
    assert (first.agent, first.state, first.round, first.metrics) == (0, "failed", 4, {})
    assert (second.address, second.round, second.metrics) == ("host:1", 3, {"loss": 0.5})
    assert (second.num_samples, second.histogram) == (30, {"cat": 30})


def test_dropping_rounds_leaves_the_earlier_ones(store: Store) -> None:
    with store, store.transaction():
        for round in (1, 2, 3):
            store.add_report(report(0, round))
            store.add_summary(RoundSummary(round, 0.5, 0.5, 0.5, 0.0))
        store.drop_rounds_after(2)
        assert [kept.round for kept in store.reports()] == [1, 2]
        assert [kept.round for kept in store.summaries()] == [1, 2]


def test_a_transaction_that_fails_has_not_happened(store: Store, tmp_path: Path) -> None:
    with store:
        with pytest.raises(RuntimeError), store.transaction():
            store.add_report(report(0, 1))
            store.add_event(Event(1.0, "round", "never"))
            raise RuntimeError
        with store.transaction():
            store.add_event(Event(2.0, "round", "once", 1, 0))
        assert store.reports() == []
        assert store.events() == [Event(2.0, "round", "once", 1, 0)]
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(Event(2.0, "round", "once", 1, 0))]


def test_a_disk_that_refuses_is_said_in_plain_words(store: Store) -> None:
    with store:
        store._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(DimatError, match=r"coordinator\.sqlite' cannot be written"), store.transaction():
            store.add_report(report(0, 1))


def test_half_a_line_in_the_event_log_is_mended_when_the_store_is_opened(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store, store.transaction():
        store.add_event(Event(1.0, "joined", "agent 0 joined", agent=0))
    log = tmp_path / "events.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"time_s": 2.0, "ki')
    with Store.open(tmp_path):
        assert log.read_text() == whole
    assert json.loads(whole) == {"time_s": 1.0, "kind": "joined", "text": "agent 0 joined", "agent": 0}


def test_a_reader_reads_while_the_writer_is_at_work_and_makes_nothing(store: Store, tmp_path: Path) -> None:
    with store, Store.open(tmp_path, read_only=True) as reader:
        with store.transaction():
            store.add_report(report(0, 1))
            assert reader.reports() == []
        assert [kept.round for kept in reader.reports()] == [1]
        assert reader.outcome() is None
        with store.transaction():
            store.put_meta("outcome", asdict(Outcome("target", "enough", 7, True)))
        assert reader.outcome() == Outcome("target", "enough", 7, True)
        with pytest.raises(DimatError), reader.transaction():
            reader.put_meta("outcome", None)


def test_what_is_not_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no coordinator has written there yet"):
        Store.open(tmp_path / "coordinator.sqlite", read_only=True)
    (tmp_path / "coordinator.sqlite").write_text("these are not tables" * 100)
    with pytest.raises(UsageError, match="cannot be opened as a coordinator's store"):
        Store.open(tmp_path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UsageError, match="tables of version 99, this dimat reads version 1"):
        Store.open(other)


def test_a_closed_store_is_one_file_that_readers_leave_alone(store: Store, tmp_path: Path) -> None:
    with store, store.transaction():
        store.add_report(report(0, 1))
    with Store.open(tmp_path, read_only=True) as reader:
        assert len(reader.reports()) == 1
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coordinator.sqlite", "events.jsonl"]


def test_commits_reach_the_disk_and_readers_are_not_locked_out(store: Store) -> None:
    with store:
        assert store._one("PRAGMA journal_mode") == "wal"
        assert store._one("PRAGMA synchronous") == 2  # FULL


def test_numbers_that_are_no_numbers_survive(store: Store) -> None:
    with store, store.transaction():
        store.add_report(Report(0, "a", 1, {"loss": math.nan, "loss_after": math.inf}))
        metrics = store.reports()[0].metrics
    assert math.isnan(metrics["loss"])
    assert metrics["loss_after"] == math.inf
