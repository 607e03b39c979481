"""One line on stderr that says how far a suite is; where stderr is no terminal, a line per cell."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from benchmarks.decentralized.cells import Cell


class Progress:
    """Cells done, and the time left as the cells so far bear out the estimate.

    Args:
        estimate: seconds of one core by cell, of all that are to run.
        num_cores: cells at once.
    """

    def __init__(self, estimate: Mapping[Cell, float], num_cores: int) -> None:
        self._estimate = estimate
        self._num_cores = num_cores
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("cells", total=len(estimate), left="")
        self._began = time.monotonic()
        self._done_s = 0.0
        self._num_done = 0

    def advance(self, cell: Cell) -> None:
        """One more cell is done."""
        self._num_done += 1
        self._done_s += self._estimate[cell]
        left = words(self.left_s(time.monotonic() - self._began))
        self._bar.update(self._task, completed=self._num_done, description=cell.name, left=left)
        if not self._console.is_terminal:
            self._console.print(f"{self._num_done}/{len(self._estimate)} {cell.name}, {left}", soft_wrap=True)

    def left_s(self, elapsed_s: float) -> float:
        """Seconds to the end, when what is left goes on as what is done did."""
        whole_s = sum(self._estimate.values())
        return elapsed_s / self._done_s * (whole_s - self._done_s) if self._done_s else whole_s / self._num_cores

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


def words(seconds: float) -> str:
    """A time to go, rounded.

    >>> words(40), words(4000)
    ('about 40 s left', 'about 67 min left')
    """
    return f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left"
