"""One cell, from its name to its rows. What runs in a worker process."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.decentralized import data, pretrain
from benchmarks.decentralized.cells import Cell
from benchmarks.decentralized.table import NUMBERS, PHASES, Row

if TYPE_CHECKING:
    from dimat.messages import Report, RoundSummary, View

UNKNOWN = dict.fromkeys(("consensus_before", "consensus"), math.nan)


@dataclass(frozen=True, slots=True)
class Places:
    """Folders: where data files are, where subsets and checkpoints are kept, where runs are made and deleted again."""

    data: Path
    cache: Path
    scratch: Path


def run_cell(cell: Cell, places: Places) -> list[Row]:
    """Simulate the cell's run; one row per round.

    Raises:
        DimatError: as the run does, and where it ended before its last round.
        KeyboardInterrupt: the user stopped it.
    """
    from benchmarks.decentralized.averaged import Averaged
    from dimat.agent.build import build_task
    from dimat.config import load_config
    from dimat.coordinator import Store
    from dimat.errors import DimatError, Interrupted
    from dimat.runfolder import prepare
    from dimat.simulate import simulate

    task = data.task_settings(cell.setting.dataset, cell.seed, places.data, places.cache)
    init = cell.setting.start
    if init == "apart":
        init = str(pretrain.checkpoints(cell, task, places.cache, places.scratch))
    config = load_config(None, cell.settings(task, init))
    with tempfile.TemporaryDirectory(dir=places.scratch) as scratch:
        folder = prepare(config, Path(scratch) / "run")
        averaged = Averaged(build_task(config), folder, config.agents, config.rounds)

        def on_view(view: View) -> None:
            if view.newest is not None:
                averaged.up_to(view.newest.round)

        try:
            simulate(config, folder, on_view)
        except Interrupted:
            raise KeyboardInterrupt from None
        with Store.open(folder, read_only=True) as store:
            summaries, reports, outcome = store.summaries(), store.reports(sketches=False), store.outcome()
    if outcome is not None and outcome.kind == "interrupted":
        raise KeyboardInterrupt
    rows = rows_of(cell, summaries, reports, averaged.accuracy)
    if len(rows) == config.rounds:
        return rows
    reason = outcome.reason if outcome is not None else "nobody said why"
    if outcome is None or outcome.kind != "diverged" or not rows:
        raise DimatError(f"the run of {cell.name} ended after round {len(rows)} of {config.rounds}: {reason}")
    return [*rows, *(standing_still(rows[-1], number) for number in range(len(rows) + 1, config.rounds + 1))]


def standing_still(last: Row, number: int) -> Row:
    """A round that a run did not come to because it had diverged: it is a result, and keeps its last accuracy.

    Nothing is spent in it and its distances are unknown, which is what `measures.diverged` knows it by.
    """
    kept = {name: value for name, value in last.numbers.items() if name.startswith("accuracy")}
    return Row(last.cell, number, {**dict.fromkeys(NUMBERS, 0.0), **UNKNOWN, **kept})


def rows_of(
    cell: Cell, summaries: Sequence[RoundSummary], reports: Sequence[Report], averaged: Mapping[int, float]
) -> list[Row]:
    """The numbers of a run that has ended, round by round."""
    rows = []
    for summary in sorted(summaries, key=lambda each: each.round):
        mine = [report for report in reports if report.round == summary.round]
        before = [report.metrics["accuracy_before"] for report in mine]
        numbers = {
            "accuracy_before": summary.mean_accuracy_before_merge,
            "accuracy_before_min": min(before),
            "accuracy": summary.mean_accuracy,
            "accuracy_min": summary.min_accuracy,
            "accuracy_averaged": averaged.get(summary.round, math.nan),
            "consensus_before": summary.consensus_distance_before,
            "consensus": summary.consensus_distance,
            "bytes": float(sum(sum(report.bytes_received.values()) for report in mine)),
        }
        rows.append(Row(cell, summary.round, {**numbers, **_seconds(mine)}))
    return rows


def _seconds(reports: Sequence[Report]) -> dict[str, float]:
    """Mean seconds of an agent by phase; phases that the table has no column for are `s_other`."""
    spent = dict.fromkeys((*(f"s_{phase}" for phase in PHASES), "s_other"), 0.0)
    for report in reports:
        for phase, seconds in report.seconds.items():
            column = "calibrate" if phase == "statistics" else phase  # what is measured, and its exchange
            spent[f"s_{column}" if column in PHASES else "s_other"] += seconds / len(reports)
    return spent
