from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dimat.continual.picture import Panel, plot_accuracies
from dimat.errors import UsageError

PANEL = Panel(["a", "b"], {"A": [0.9, 0.7], "B": [math.nan, 0.8]})


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))


def test_the_mean_is_over_the_tasks_that_were_measured() -> None:
    assert PANEL.means() == pytest.approx([0.9, 0.75])
    assert math.isnan(Panel(["a"], {"A": [math.nan]}).means()[0])


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_the_same_numbers_give_the_same_bytes_and_others_do_not(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one.png", "two.png", "other.png"))
    plot_accuracies({"mean": PANEL}, one, title="T $1")
    plot_accuracies({"mean": PANEL}, two, title="T $1")
    plot_accuracies({"mean": Panel(["a", "b"], {"A": [0.9, 0.2], "B": [math.nan, 0.8]})}, other, title="T $1")
    assert one.read_bytes() == two.read_bytes()
    assert not np.array_equal(pixels(one), pixels(other))


def test_many_panels_tasks_and_steps_are_drawn(tmp_path: Path) -> None:
    lines = {f"task {i}": list(np.linspace(i / 40, 1, 30)) for i in range(20)}
    panels = {f"method {i}": Panel([f"model number {k}" for k in range(30)], lines) for i in range(4)}
    plot_accuracies(panels, tmp_path / "all.png")
    assert min(pixels(tmp_path / "all.png").shape[:2]) > 600


def test_nothing_to_draw_and_nowhere_to_draw_it(tmp_path: Path) -> None:
    for nothing in ({}, {"mean": Panel([], {})}):
        with pytest.raises(UsageError, match="no accuracies to draw"):
            plot_accuracies(nothing, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        plot_accuracies({"mean": PANEL}, tmp_path / "file" / "x.png")


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, dimat.cli.continual_evaluate; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
