"""The command line of the comparison: run what is missing of a suite, or write the report from the tables."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.decentralized import data, machine, table
from benchmarks.decentralized.cells import Cell, matches
from benchmarks.decentralized.estimate import seconds_of
from benchmarks.decentralized.methods import why_not
from benchmarks.decentralized.pool import run_all
from benchmarks.decentralized.progress import Progress
from benchmarks.decentralized.suites import SUITES, cells_of
from benchmarks.decentralized.work import Places
from dimat.errors import DimatError, UsageError

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / "benchmarks" / "results" / "decentralized"
"""Outside of version control: subsets, checkpoints, and what the smoke suite makes."""

WORKERS = {
    "OMP_NUM_THREADS": "1",  # as many cells as cores, and a thread each
    # Memory that torch gives back stays with the process: a tenth to a quarter of the time went into pages that were
    # handed to the system and fetched again at every layer. glibc reads these when a process starts.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
"""What worker processes inherit."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    docs = options.docs or (SCRATCH / "smoke" if options.suite == "smoke" else ROOT / "docs")
    failures: list[str] = []
    try:
        if options.suite:
            failures = run_suite(options, docs)
        if options.report or (options.suite and not options.dry_run):
            write_report(docs)
    except DimatError as error:
        print(f"error: {error}" + (f"\n  {error.hint}" if getattr(error, "hint", None) else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; finished cells are in the table, the same command goes on from there", file=sys.stderr)
        return 130
    return 1 if failures else 0


def run_suite(options: argparse.Namespace, docs: Path) -> list[str]:
    """Run the cells that the suite's table has not, as far as the time goes; returns the names of those that failed."""
    path = docs / "results" / f"{options.suite}.csv"
    rows = table.read(path)
    wanted = [cell for cell in cells_of(options.suite) if matches(cell, options.only)]
    if not wanted:
        raise UsageError(f"no cell of suite {options.suite} matches {' or '.join(options.only)}")
    able = _without_what_cannot_run(wanted, options.data)
    again = {cell for cell in able if options.again and matches(cell, options.again)}
    left = [cell for cell in able if cell in again or cell not in table.finished(rows)]
    estimate = seconds_of(left, rows)
    hours = sum(estimate.values()) / 3600
    tell(
        f"suite {options.suite}: {len(left)} of {len(wanted)} cells to run, about {hours:.2f} h of one core, "
        f"{hours / options.cores:.2f} h on {options.cores}"
    )
    if options.dry_run:
        for cell in left:
            print(f"{estimate[cell]:8.0f} s  {cell.name}")
        return []
    os.environ.update(WORKERS)
    description, progress = machine.describe(), Progress(estimate, options.cores)
    failures: list[str] = []

    def done(cell: Cell, made: list[table.Row]) -> None:
        table.add(path, made)
        machine.count(path, description, options.cores)
        progress.advance(cell)

    def failed(cell: Cell, error: DimatError) -> None:
        failures.append(cell.name)
        tell(f"FAILED {cell.name}: {error}")
        progress.advance(cell)

    until = time.monotonic() + 60 * options.budget_minutes if options.budget_minutes else float("inf")
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # checkpoints are synced to disk, elsewhere
    with tempfile.TemporaryDirectory(dir=in_memory, prefix="dimat-cells-") as scratch, progress:
        rest = run_all(left, Places(options.data, options.cache, Path(scratch)), options.cores, done, failed, until)
    if rest:
        tell(f"the time is over: {len(rest)} cells are left, the same command goes on with them")
    return failures


def _without_what_cannot_run(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """The cells whose method and data there are; what is left out is said."""
    why: dict[str, list[str]] = {}
    for kind, names, reason_of in (
        ("method", {cell.method for cell in cells}, why_not),
        ("data", {cell.setting.dataset for cell in cells}, lambda name: data.missing(name, folder)),
    ):
        for name in sorted(names):
            if reason := reason_of(name):
                why.setdefault(f"{kind}: {reason}", []).append(name)
    for reason, left_out in why.items():
        tell(f"left out {', '.join(left_out)}, {reason}")
    absent = {name for names in why.values() for name in names}
    return [cell for cell in cells if not {cell.method, cell.setting.dataset} & absent]


def write_report(docs: Path) -> None:
    """Write `results.md` and the figures from the tables of a docs folder."""
    from benchmarks.decentralized.report import write

    for path in write(docs):
        tell(f"wrote {path}")


def tell(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decentralized", description=__doc__)
    parser.add_argument("--suite", choices=[*SUITES], help="run what this suite's table has not yet")
    parser.add_argument("--report", action="store_true", help="write results.md and the figures from the tables")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="cells whose name holds the pattern, such as '*ring*-dimat-'; may repeat",
    )
    parser.add_argument(
        "--again", action="append", default=[], metavar="PATTERN", help="run these again though the table has them"
    )
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="cells at once (default: all cores)")
    parser.add_argument("--budget-minutes", type=float, metavar="M", help="begin no cell after this time")
    parser.add_argument("--dry-run", action="store_true", help="only say which cells, and how long they will take")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="FOLDER", help="where the .npz files are"
    )
    parser.add_argument("--cache", type=Path, default=SCRATCH, metavar="FOLDER", help="for subsets and checkpoints")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FOLDER",
        help="for results.md and results/ (default: docs; smoke: a scratch folder)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
