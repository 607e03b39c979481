"""The table of a suite: one row per cell, seed and round, as CSV. It is what a later run resumes from.

dataset model partition graph agents start rounds epochs pretrain method seed    which cell
round                                                                            from 1
accuracy_before, accuracy_before_min     on the test samples, after local training and before the merge: mean and
                                         minimum over the agents
accuracy, accuracy_min                   the same right after merge and calibration
accuracy_averaged                        of the mean of all agents' models (averaged.py says how and in which rounds)
consensus_before, consensus              distance of the agents from their mean, before and after the merge
bytes                                    payload received by all agents together in the round
s_train, s_gather, ...                   mean seconds of an agent by phase; s_wait is the others' work here
"""

from __future__ import annotations

import csv
import fcntl
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from benchmarks.decentralized.cells import SETTING_COLUMNS, Cell, Setting
from dimat.errors import UsageError
from dimat.files import write_atomically

PHASES = (
    "train", "wait", "publish", "gather", "align", "check", "fold", "calibrate", "gate", "evaluate", "sketch",
    "checkpoint",
)  # fmt: skip
NUMBERS = (
    "accuracy_before", "accuracy_before_min", "accuracy", "accuracy_min", "accuracy_averaged",
    "consensus_before", "consensus", "bytes", *(f"s_{phase}" for phase in PHASES), "s_other",
)  # fmt: skip
COLUMNS = (*SETTING_COLUMNS, "method", "seed", "round", *NUMBERS)


@dataclass(frozen=True, slots=True)
class Row:
    """One round of one cell."""

    cell: Cell
    round: int
    numbers: Mapping[str, float]
    """By the names in `NUMBERS`; NaN where there is none."""


def to_csv(rows: Iterable[Row]) -> str:
    """The rows as text, in the order given."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        numbers = [_number(row.numbers.get(name, math.nan)) for name in NUMBERS]
        writer.writerow([*astuple(row.cell.setting), row.cell.method, row.cell.seed, row.round, *numbers])
    return out.getvalue()


def from_csv(text: str, source: str = "the table") -> list[Row]:
    """The rows behind the text.

    Raises:
        UsageError: the columns are other ones, or a value is no number.
    """
    reader = csv.reader(io.StringIO(text))
    header = tuple(next(reader, ()))
    if header != COLUMNS:
        odd = sorted(set(header) ^ set(COLUMNS)) or ["their order"]
        raise UsageError(
            f"{source} has other columns than this version writes: {', '.join(odd)}",
            hint="move the file away to begin a new table",
        )
    rows = []
    for number, values in enumerate(reader, 2):
        try:
            rows.append(_row(dict(zip(COLUMNS, values, strict=True))))
        except ValueError as error:
            raise UsageError(f"{source}, line {number}: {error}") from None
    return rows


def read(path: Path) -> list[Row]:
    """The rows of the file; none where there is no file.

    Raises:
        UsageError: it is not such a table.
    """
    return from_csv(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else []


def add(path: Path, rows: Sequence[Row]) -> None:
    """Put a finished cell's rows at the end, in place of those it may have had; whole or not at all.

    Several processes may add to one table: each reads it again under a lock.
    """
    cells = {row.cell for row in rows}
    with locked(path):
        kept = [row for row in read(path) if row.cell not in cells]
        write_atomically(path, to_csv([*kept, *rows]))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder of a table against other processes that write to it; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def finished(rows: Iterable[Row]) -> set[Cell]:
    """The cells that have all their rounds."""
    rounds: dict[Cell, set[int]] = {}
    for row in rows:
        rounds.setdefault(row.cell, set()).add(row.round)
    return {cell for cell, done in rounds.items() if done >= set(range(1, cell.setting.rounds + 1))}


def _number(value: float) -> str:
    """Five digits are more than any of these numbers is worth; whole numbers keep all of theirs.

    >>> _number(0.123456), _number(1234567.0), _number(math.nan)
    ('0.12346', '1234567', '')
    """
    if math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) else f"{value:.5g}"


def _row(values: Mapping[str, str]) -> Row:
    text = {"dataset", "model", "partition", "graph", "start"}
    setting = Setting(**{name: values[name] if name in text else int(values[name]) for name in SETTING_COLUMNS})  # type: ignore[arg-type]
    numbers = {name: float(values[name]) if values[name] else math.nan for name in NUMBERS}
    return Row(Cell(setting, values["method"], int(values["seed"])), int(values["round"]), numbers)
