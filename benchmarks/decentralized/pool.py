"""Cells in parallel, each in a worker process, in their order, until all are done or the time is over.

A cell whose start another one is just making waits for it and lets those behind it pass.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.decentralized import pretrain
from benchmarks.decentralized.cells import Cell
from benchmarks.decentralized.table import Row
from benchmarks.decentralized.work import Places, run_cell
from dimat.errors import DimatError

Run = Callable[[Cell, Places], list[Row]]
Done = Callable[[Cell, list[Row]], None]
Failed = Callable[[Cell, DimatError], None]


def run_all(
    cells: Sequence[Cell],
    places: Places,
    num_cores: int,
    done: Done,
    failed: Failed,
    until: float = float("inf"),
    run: Run = run_cell,
) -> list[Cell]:
    """Run cells and tell of each when it has ended; returns those that were not begun in time.

    Args:
        cells: in the order in which they begin.
        places: for `run`.
        num_cores: worker processes; with one, everything happens in this process.
        done: told the rows of each cell, in this process.
        failed: told what is wrong with a cell that cannot be run; the others go on.
        until: `time.monotonic()` after which no cell begins.
        run: makes the rows of one cell.

    Raises:
        DimatError: a worker died.
        What `run` raises beside a `DimatError`; the other workers are ended.
    """
    left = list(cells)
    if num_cores == 1:
        while left and time.monotonic() < until:
            cell = left.pop(0)
            _settle(cell, partial(run, cell, places), done, failed)
        return left
    with _workers(num_cores, places.scratch) as pool:
        going: dict[Future[list[Row]], Cell] = {}
        while left or going:
            while len(going) < num_cores and time.monotonic() < until:
                begun = next_cell(left, list(going.values()), places)
                if begun is None:
                    break
                left.remove(begun)
                going[pool.submit(run, begun, places)] = begun
            if not going:
                break
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                try:
                    _settle(going.pop(future), future.result, done, failed)
                except BrokenExecutor:
                    hint = "if memory ran out: fewer --cores; the same command goes on with what is left"
                    raise DimatError("a worker process died in the middle of a cell", hint=hint) from None
    return left


def _settle(cell: Cell, result: Callable[[], list[Row]], done: Done, failed: Failed) -> None:
    try:
        rows = result()
    except DimatError as error:
        failed(cell, error)
    else:
        done(cell, rows)


def next_cell(left: Sequence[Cell], going: Sequence[Cell], places: Places) -> Cell | None:
    """The first cell whose start is there, or is not being made at this moment; None when there is none."""
    being_made = {
        pretrain.key(cell)
        for cell in going
        if pretrain.key(cell) and not pretrain.folder_of(cell, places.cache).is_dir()
    }
    return next((cell for cell in left if pretrain.key(cell) not in being_made), None)


@contextmanager
def _workers(num: int, scratch: Path) -> Iterator[ProcessPoolExecutor]:
    # Spawn: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(
        num, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(), scratch)
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():  # in the middle of cells that nobody waits for any more
            child.kill()
        raise
    pool.shutdown()


def _begin(parent: int, scratch: Path) -> None:
    """Set up a worker: it ends when its parent has, however that came, and clears up what that one cannot any more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
