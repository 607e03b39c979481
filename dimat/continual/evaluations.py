"""The table `evaluations` of a ledger's journal: how accurate each version was on each task, and on which samples.

A row, once written, stays: numbers of versions are never used again, so that the rows of a version that was undone
cannot pass for those of another one; they are simply not asked for any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimat.continual.journal import Journal
from dimat.errors import DimatError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (
    version INTEGER NOT NULL, task TEXT NOT NULL, accuracy REAL NOT NULL, num_samples INTEGER, correct BLOB,
    time TEXT NOT NULL, PRIMARY KEY (version, task))
"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """How one version did on one task.

    Attributes:
        version: of the ledger.
        task: its label.
        accuracy: share of the test samples that were right.
        num_samples: how many there are, None when the task does not tell.
        correct: eight samples a byte, the first in the highest bit, 1 for right; None when the task does not tell.
        time: when it was found, UTC.
    """

    version: int
    task: str
    accuracy: float
    num_samples: int | None
    correct: bytes | None
    time: str

    @property
    def right(self) -> NDArray[np.bool_] | None:
        """Which samples were right, (num_samples,)."""
        if self.correct is None or self.num_samples is None:
            return None
        return np.unpackbits(np.frombuffer(self.correct, dtype=np.uint8), count=self.num_samples).astype(np.bool_)


def pack(right: NDArray[np.bool_]) -> bytes:
    """`right` as `Judgement.correct` has it.

    >>> pack(np.array([True, False, True])).hex()
    'a0'
    """
    return np.packbits(right).tobytes()


def read_judgements(journal: Journal) -> dict[tuple[int, str], Judgement]:
    """Every row, by version and task.

    Raises:
        DimatError: the journal is damaged.
    """
    with journal.reading() as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'evaluations'").fetchone():
            return {}
        rows = database.execute(
            "SELECT version, task, accuracy, num_samples, correct, time FROM evaluations ORDER BY version, task"
        )
        found = [Judgement(*row) for row in rows]
    for one in found:
        if one.correct is not None and len(one.correct) != -(-(one.num_samples or 0) // 8):
            raise DimatError(
                f"journal {journal.path} is damaged: version {one.version} on task {one.task!r} has {one.num_samples} "
                f"samples and {len(one.correct)} bytes for them",
                hint="dimat continual evaluate --again measures the current version anew",
            )
    return {(one.version, one.task): one for one in found}


def write_judgements(journal: Journal, judgements: Sequence[Judgement], *, again: bool = False) -> None:
    """Append rows in one transaction.

    Args:
        journal: of the ledger.
        judgements: the rows.
        again: replace rows of the same version and task; else those that are there already stay.
    """
    how = "REPLACE" if again else "IGNORE"
    with journal.writing() as database:
        database.execute(_SCHEMA)
        database.executemany(
            f"INSERT OR {how} INTO evaluations (version, task, accuracy, num_samples, correct, time) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [(one.version, one.task, one.accuracy, one.num_samples, one.correct, one.time) for one in judgements],
        )
