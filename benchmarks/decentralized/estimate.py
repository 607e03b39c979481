"""How long cells will take on one core: from those that are in the table, else from a guess by data and model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.decentralized.cells import Cell
from benchmarks.decentralized.methods import METHODS
from benchmarks.decentralized.table import PHASES, Row

GUESS_S: Mapping[tuple[str, str], float] = {
    ("digits", "tiny"): 1.0,
    ("digits", "cnn"): 0.6,
    ("mnist", "cnn"): 4.0,
    ("fashion_mnist", "cnn"): 4.0,
    ("har", "cnn"): 8.0,
    ("cifar10", "resnet20"): 68.0,
}
"""Seconds of a round of all agents together, on one core of a server of 2024."""
GRADIENT_FACTOR = 2.0
PRETRAIN_SHARE = 0.6
"""Of a round's seconds an epoch of all agents, two to a round, without evaluation."""


def seconds_of(cells: Sequence[Cell], rows: Iterable[Row]) -> dict[Cell, float]:
    """Seconds of one core for each cell; those that share pre-trained agents pay for them once."""
    measured: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        measured.setdefault(_kind(row.cell), []).append(round_seconds(row))
    paid: set[str] = set()
    estimate = {}
    for cell in cells:
        each = median(measured[_kind(cell)]) if _kind(cell) in measured else _guess(cell)
        estimate[cell] = each * cell.setting.rounds
        key = f"{cell.setting.name.replace(cell.setting.graph, '')} {cell.seed}"
        if cell.setting.start == "apart" and key not in paid:
            paid.add(key)
            estimate[cell] += _guess(cell, merging=False) * PRETRAIN_SHARE * cell.setting.pretrain
    return estimate


def round_seconds(row: Row) -> float:
    """What all agents together worked in the round; waiting is the others' work."""
    phases = [f"s_{phase}" for phase in PHASES if phase != "wait"]
    return row.cell.setting.agents * sum(row.numbers[name] for name in (*phases, "s_other"))


def _kind(cell: Cell) -> tuple[str, ...]:
    setting = cell.setting
    return (setting.dataset, setting.model, str(setting.agents), str(setting.epochs), cell.method)


def _guess(cell: Cell, *, merging: bool = True) -> float:
    base = GUESS_S.get((cell.setting.dataset, cell.setting.model), 10.0) * cell.setting.epochs / 2
    return base * (GRADIENT_FACTOR if merging and METHODS[cell.method].gradient else 1.0)
