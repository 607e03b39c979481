"""Accuracy by task and step as one picture: a panel for each merge, a line for each task, their mean in black.

Light, quiet, without pyplot. matplotlib is imported when it is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dimat.errors import UsageError
from dimat.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguishable with any colour vision; black is the mean's.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#6B7785")
_DASHES = ("-", "--", ":")
_INK, _MUTED, _FAINT = "#1F2933", "#6B7785", "#E4E7EB"
_COLUMNS = 3
# Any: matplotlib's own type for this is a literal of all its settings, another one in each version.
_SETTINGS: Any = {"text.color": _INK, "text.parse_math": False, "font.size": 10, "axes.labelcolor": _INK}


@dataclass(frozen=True, slots=True)
class Panel:
    """The course of one merge.

    Attributes:
        steps: what each step is called: the model that came.
        accuracies: task -> its accuracy after each step, NaN where it was not measured.
    """

    steps: Sequence[str]
    accuracies: Mapping[str, Sequence[float]]

    def means(self) -> list[float]:
        """The mean over the tasks that were measured, after each step."""
        columns = zip(*self.accuracies.values(), strict=True)
        return [
            float(np.mean(told)) if (told := [a for a in one if not math.isnan(a)]) else math.nan for one in columns
        ]


def plot_accuracies(panels: Mapping[str, Panel], path: Path | str, *, title: str = "") -> None:
    """Write the panels as a PNG. The same numbers give the same bytes.

    Args:
        panels: heading -> panel, in order; a task has the same colour in all of them.
        path: the file; it appears whole or not at all.
        title: what the picture shows, in a sentence.

    Raises:
        UsageError: there is nothing to draw, or the file cannot be written.
    """
    if not any(panel.accuracies and panel.steps for panel in panels.values()):
        raise UsageError("there are no accuracies to draw")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(_SETTINGS):
        size = (7.2 if columns == 1 else 2.0 + 3.6 * columns, 1.2 + 3.2 * rows)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        _draw(figure, panels, rows, columns)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold")
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
    try:
        write_atomically(Path(path), image.getvalue())
    except OSError as error:
        raise UsageError(f"the picture {str(path)!r} cannot be written: {error}") from error


def _draw(figure: Figure, panels: Mapping[str, Panel], rows: int, columns: int) -> None:
    tasks = list(dict.fromkeys(task for panel in panels.values() for task in panel.accuracies))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    handles: dict[str, Any] = {}
    for ax, (heading, panel) in zip(axes, panels.items(), strict=False):
        steps = range(1, len(panel.steps) + 1)
        for number, task in enumerate(tasks):
            if task in panel.accuracies:
                style: dict[str, Any] = {
                    "color": _COLORS[number % len(_COLORS)],
                    "linestyle": _DASHES[number // len(_COLORS) % len(_DASHES)],
                    "marker": "o",
                    "markersize": 3.5,
                    "linewidth": 1.6,
                }
                (handles[task],) = ax.plot(steps, panel.accuracies[task], **style)
        means = panel.means()
        (handles["mean"],) = ax.plot(steps, means, color="black", linewidth=2.6)
        last = f", {means[-1]:.3f} at last" if means and not math.isnan(means[-1]) else ""
        ax.set_title(f"{heading}{last}", loc="left", fontsize=10, color=_MUTED)
        _dress(ax, panel.steps)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[::columns]:
        ax.set_ylabel("accuracy")
    order = [*(task for task in tasks if task in handles), "mean"]
    place: Any = "outside right center"
    figure.legend([handles[task] for task in order], order, loc=place, frameon=False, fontsize=9)


def _dress(ax: Axes, steps: Sequence[str]) -> None:
    """Names on the axis while there is room for them, else numbers."""
    few = len(steps) <= 12
    every = 1 if few else math.ceil(len(steps) / 12)
    ticks = list(range(1, len(steps) + 1, every))
    labels = [_short(steps[tick - 1]) if few else str(tick) for tick in ticks]
    ax.set_xticks(ticks, labels=labels, rotation=45 if few else 0, ha="right" if few else "center")
    ax.set_xlim(0.7, max(len(steps), 1) + 0.3)
    ax.set_ylim(0, 1.02)
    ax.set_axisbelow(True)
    ax.grid(color=_FAINT, linewidth=0.8)
    ax.tick_params(colors=_MUTED, labelsize=8, labelleft=True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#9AA5B1")


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
