"""Messages as columns and back: numbers as JSON (Python's keeps NaN and every bit of a float), sketches as they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from dimat.messages import Join, Report, RoundSummary

_BY_AGENT = ("weights", "bytes_received", "missing")


def report_columns(report: Report) -> tuple[int, int, str, str, bytes, bytes]:
    """Agent, round, session, numbers, sketch before, sketch after."""
    numbers = {
        name: dict(getattr(report, name))
        for name in ("metrics", "seconds", "weights", "bytes_received", "missing", "moved")
    }
    return (
        report.agent,
        report.round,
        report.session,
        json.dumps(numbers),
        bytes(report.sketch_before),
        bytes(report.sketch_after),
    )


def report_of(row: tuple[int, int, str, str, bytes, bytes]) -> Report:
    """The report behind the columns."""
    agent, round, session, text, before, after = row
    numbers: dict[str, Any] = json.loads(text)
    for name in _BY_AGENT:
        numbers[name] = {int(other): value for other, value in numbers[name].items()}
    return Report(agent, session, round, sketch_before=before, sketch_after=after, **numbers)


def join_columns(join: Join) -> str:
    """What an agent said of itself."""
    return json.dumps({**asdict(join), "histogram": dict(join.histogram)})


def join_of(text: str) -> Join:
    """The introduction behind the column."""
    values = json.loads(text)
    return Join(**{**values, "checkpoints": tuple(values["checkpoints"])})


def summary_columns(summary: RoundSummary) -> tuple[int, str]:
    """Round and numbers."""
    return summary.round, json.dumps(asdict(summary))


def summary_of(row: tuple[int, str]) -> RoundSummary:
    """The summary behind the columns."""
    return RoundSummary(**json.loads(row[1]))
