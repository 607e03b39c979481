"""What is written of a round can be read back, and a line cut short by a kill does no harm."""

import dataclasses
from pathlib import Path

from dimat.messages import Report
from dimat.telemetry.metrics import append_metrics, read_reports


def report(round: int) -> Report:
    return Report(
        agent=3, session="old", round=round, metrics={"loss": 0.5, "accuracy": 0.25}, seconds={"train": 1.5},
        weights={3: 0.75, 10: 0.25}, bytes_received={10: 4840}, missing={2: "is not there"}, moved={"fc1": 0.5},
        sketch_before=b"1234", sketch_after=b"5678",
    )  # fmt: skip


def test_reports_come_back_without_their_sketches_as_of_the_process_that_reads(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "3.jsonl"
    for number in (1, 2):
        append_metrics(path, report(number))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"time": 1.0, "agent": 3, "rou')
    expected = dataclasses.replace(report(1), session="new", sketch_before=b"", sketch_after=b"")
    assert read_reports(path, "new") == [expected, dataclasses.replace(expected, round=2)]


def test_an_agent_that_has_written_nothing_has_nothing_to_tell(tmp_path: Path) -> None:
    assert read_reports(tmp_path / "3.jsonl", "new") == []
