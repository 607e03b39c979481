"""Tables made by hand, so that what the report says of them can be worked out on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from benchmarks.decentralized.cells import Cell, Setting
from benchmarks.decentralized.table import NUMBERS, Row


class Tables:
    """Makes rows; what is not said is zero."""

    setting = Setting("digits", "cnn", "iid", "ring", 5, "different", 4)

    def rows(
        self, method: str, seed: int, accuracies: Sequence[float], *, setting: Setting | None = None, **numbers: float
    ) -> list[Row]:
        cell = Cell(setting or self.setting, method, seed)
        made = dict.fromkeys(NUMBERS, 0.0) | {"accuracy_averaged": math.nan} | numbers
        return [
            Row(cell, number, {**made, "accuracy": accuracy, "accuracy_min": accuracy})
            for number, accuracy in enumerate(accuracies, 1)
        ]


@pytest.fixture
def tables() -> Tables:
    return Tables()
