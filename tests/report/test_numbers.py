"""Every number of the report against a few independent lines on a run whose mathematics is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dimat.messages import Report, RoundSummary
from dimat.report import numbers, summary, words
from dimat.report.record import RunRecord

MODEL_BYTES = 154_920
Make = Callable[..., RunRecord]
Lose = Callable[[RunRecord, int, int], RunRecord]


def ring_matrix(n: int) -> np.ndarray:
    return sum(np.roll(np.eye(n), shift, axis=1) for shift in (-1, 0, 1)) / 3


def test_summary_is_the_object_that_json_users_get(record: RunRecord) -> None:
    result = summary(record)
    assert list(result) == ["run", "reason", "rounds", "seconds", "mean_accuracy", "min_accuracy", "history"]
    assert (result["run"], result["rounds"], result["seconds"]) == ("runs/digits-ring-0f0e0d0c", 20, 41.7)
    assert result["reason"] == "all 20 rounds are done"
    last = [report.metrics["accuracy"] for report in record.reports if report.round == 20]
    assert result["mean_accuracy"] == pytest.approx(sum(last) / 5)
    assert result["min_accuracy"] == min(last)
    assert [each["round"] for each in result["history"]] == list(range(1, 21))
    assert set(result["history"][0]) == {
        "round", "mean_accuracy", "min_accuracy", "mean_accuracy_before_merge", "consensus_distance",
    }  # fmt: skip
    assert result["history"][6]["consensus_distance"] == record.summaries[6].consensus_distance


def test_numbers_that_there_are_not_are_null(make_record: Make) -> None:
    nan = math.nan
    record = replace(make_record(3, 1), summaries=(RoundSummary(1, 0.5, 0.4, nan, nan),))
    result = json.loads(json.dumps(summary(record), allow_nan=False))
    assert result["history"] == [
        {
            "round": 1,
            "mean_accuracy": 0.5,
            "min_accuracy": 0.4,
            "mean_accuracy_before_merge": None,
            "consensus_distance": None,
        }
    ]
    empty = summary(replace(record, summaries=(), reports=()))
    assert (empty["rounds"], empty["mean_accuracy"], empty["history"]) == (0, None, [])


def test_seconds_are_those_of_the_slowest_when_none_are_recorded(make_record: Make) -> None:
    reports = tuple(
        Report(agent, "s", number, {}, seconds={"train": 1.0 + agent, "wait": 0.5})
        for agent in (0, 1)
        for number in (1, 2)
    )
    record = replace(make_record(3, 1), reports=reports, seconds=math.nan)
    assert summary(record)["seconds"] == 2 * 2.5


def test_a_round_done_twice_counts_as_done_last(record: RunRecord) -> None:
    again = Report(2, "later", 20, {"accuracy": 0.125})
    twice = replace(record, reports=(*record.reports, again))
    assert numbers.by_round(twice)[20][2] is again
    assert numbers.metric(twice, "accuracy")[2, 19] == 0.125


def test_bound_is_that_of_the_matrix_really_used(record: RunRecord, lose_agent: Lose) -> None:
    second = np.sort(np.abs(np.linalg.eigvalsh(ring_matrix(5))))[-2]
    rounds = numbers.by_round(record)
    assert numbers.contraction_bound(rounds[7]) == pytest.approx(second)
    # Every observed and predicted factor lies below it: the run obeys the mathematics.
    assert all(each.predicted_contraction <= second + 1e-12 for each in record.summaries)

    lost = numbers.by_round(lose_agent(record, 3, 9))
    path = (
        np.array([[2, 1, 0, 0], [1, 1, 1, 0], [0, 1, 2, 0], [0, 0, 0, 0]]) / 3
    )  # agents 0, 1, 2 and 4 in a row: 4-0-1-2
    path[0, 0], path[0, 3], path[3, 0], path[3, 3] = 1 / 3, 1 / 3, 1 / 3, 2 / 3
    assert numbers.contraction_bound(lost[10]) == pytest.approx(np.sort(np.abs(np.linalg.eigvalsh(path)))[-2])
    assert numbers.contraction_bound(lost[9]) == pytest.approx(second)


def test_no_bound_without_a_merge() -> None:
    alone = {agent: Report(agent, "s", 1, {}, weights={agent: 1.0}) for agent in range(3)}
    assert math.isnan(numbers.contraction_bound(alone))
    assert math.isnan(numbers.contraction_bound({}))


def test_cost_of_merging_leaves_waiting_out(make_record: Make) -> None:
    seconds = {
        "train": 6.0,
        "wait": 100.0,
        "gather": 1.0,
        "align": 2.0,
        "fold": 0.5,
        "calibrate": 0.25,
        "evaluate": 0.25,
    }
    record = replace(make_record(3, 1), reports=(Report(0, "s", 1, {}, seconds=seconds),))
    assert numbers.merge_share(record) == pytest.approx(3.75 / 10)
    assert list(numbers.phase_seconds(record)[0]) == [
        "train", "wait", "gather", "align", "fold", "calibrate", "evaluate",
    ]  # fmt: skip


def test_bytes_by_edge_knows_edges_that_were_never_used(record: RunRecord, lose_agent: Lose) -> None:
    edges = numbers.bytes_by_edge(lose_agent(record, 3, 9))
    assert edges[0, 1] == 20 * MODEL_BYTES
    assert edges[3, 2] == 9 * MODEL_BYTES
    never = replace(record, reports=(Report(0, "s", 1, {}, missing={1: "not heard"}),))
    assert numbers.bytes_by_edge(never) == {(1, 0): 0}


def test_agent_rows_tell_who_was_missed_and_how_often(record: RunRecord, lose_agent: Lose) -> None:
    rows = {row.agent: row for row in numbers.agent_rows(lose_agent(record, 3, 9))}
    assert rows[3].state == "lost"
    assert rows[3].last_round == 9
    assert rows[2].missing == {3: 11}
    assert rows[1].missing == {}
    assert rows[2].bytes_received == (20 + 9) * MODEL_BYTES
    assert rows[0].num_samples == sum(record.members[0].histogram.values())


def test_an_agent_that_never_came_has_a_row(record: RunRecord) -> None:
    gone = replace(
        record,
        members=record.members[:4],
        reports=tuple(report for report in record.reports if report.agent != 4),
    )
    row = numbers.agent_rows(gone)[4]
    assert (row.state, row.last_round, row.num_samples) == ("absent", 0, 0)
    assert math.isnan(row.accuracy)


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.05, 0.999, 9.96, 10.0, 99.5, 12345.0])
def test_plain_numbers_keep_two_digits(value: float) -> None:
    assert float(words.plain(value)) == pytest.approx(value, rel=0.05)
