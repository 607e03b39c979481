"""`metrics/<agent>.jsonl`: one flushed line per round and agent; the coordinator has a copy of its own."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

from dimat.files import write_atomically
from dimat.messages import Report


def append_metrics(path: Path, report: Report, time_s: float | None = None) -> None:
    """One flushed line per round, for people and scripts; the coordinator has its own copy.

    `time_s` is the line's time, now where nothing is said.

    Raises:
        OSError: the disk refused; the file is as it was.
    """
    row = {
        "time": time.time() if time_s is None else time_s,
        "agent": report.agent,
        "round": report.round,
        **report.metrics,
        "seconds": dict(report.seconds),
        "weights": dict(report.weights),
        "bytes_received": dict(report.bytes_received),
        "missing": dict(report.missing),
        "moved": dict(report.moved),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError:
        if path.is_file():
            os.truncate(path, size)  # part of a line would spoil the next one, too
        raise


def read_reports(path: Path, session: str) -> list[Report]:
    """The reports behind the lines, as of process `session`, ascending by round; sketches are not kept in lines.

    A line cut short by a kill is left out.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    reports: list[Report] = []
    for line in sorted((line for line in lines if math.isfinite(_round_of(line))), key=_round_of):
        row = json.loads(line)
        del row["time"]
        agent, number, seconds, moved = (row.pop(name) for name in ("agent", "round", "seconds", "moved"))
        weights, received, missing = (
            {int(other): value for other, value in row.pop(name).items()}
            for name in ("weights", "bytes_received", "missing")
        )
        reports.append(Report(agent, session, number, row, seconds, weights, received, missing, moved))
    return reports


def drop_rounds_after(path: Path, round: int) -> None:
    """Forget the lines of rounds that will be done again."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _round_of(line) <= round]
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def _round_of(line: str) -> float:
    try:
        return float(json.loads(line)["round"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill
