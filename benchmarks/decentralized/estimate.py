"""How long cells will take on one core: from those that are in the table, else from a guess by data and model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.decentralized import pretrain
from benchmarks.decentralized.cells import Cell
from benchmarks.decentralized.methods import METHODS
from benchmarks.decentralized.table import PHASES, Row

GUESS_S: Mapping[tuple[str, str], tuple[float, float]] = {
    ("digits", "tiny"): (0.05, 0.2),
    ("digits", "cnn"): (0.2, 0.25),
    ("mnist", "cnn"): (1.6, 2.8),
    ("fashion_mnist", "cnn"): (1.6, 2.8),
    ("har", "cnn"): (1.8, 3.1),
    ("cifar10", "resnet20"): (19.0, 15.0),
    ("cifar10", "vgg16_bn_quarter"): (20.0, 15.0),
}
"""On one core of a server: seconds of a local epoch of all agents together, and of the rest of a round."""
UNKNOWN_S = (10.0, 10.0)
GRADIENT_FACTOR = 2.0
"""Rounds of gradient methods, which exchange at every step, against those of the others."""


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
        start = pretrain.key(cell)
        if start and start not in paid:
            paid.add(start)
            estimate[cell] += _epoch_and_rest(cell)[0] * cell.setting.pretrain
    return estimate


def round_seconds(row: Row) -> float:
    """What all agents together worked in the round; waiting is the others' work."""
    phases = [f"s_{phase}" for phase in PHASES if phase != "wait"]
    return row.cell.setting.agents * sum(row.numbers[name] for name in (*phases, "s_other"))


def _kind(cell: Cell) -> tuple[str, ...]:
    setting = cell.setting
    return (setting.dataset, setting.model, str(setting.agents), str(setting.epochs), cell.method)


def _guess(cell: Cell) -> float:
    epoch, rest = _epoch_and_rest(cell)
    return (epoch * cell.setting.epochs + rest) * (GRADIENT_FACTOR if METHODS[cell.method].gradient else 1.0)


def _epoch_and_rest(cell: Cell) -> tuple[float, float]:
    return GUESS_S.get((cell.setting.dataset, cell.setting.model), UNKNOWN_S)
