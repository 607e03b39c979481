"""The look that all figures share: light, quiet, readable at the width of a README, safe for colour-blind eyes.

matplotlib is imported when the first figure is drawn, never before, and without pyplot: no window, no global state.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguishable with any colour vision; roles instead of names so that figures agree.
AFTER, BEFORE, PREDICTED = "#0072B2", "#D55E00", "#009E73"
INK, MUTED, FAINT = "#1F2933", "#6B7785", "#E4E7EB"
WIDTH_INCHES, DOTS_PER_INCH = 9.0, 150

# Any: matplotlib's own type for this is a literal of all its settings, another one in each version.
_SETTINGS: Any = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # names of agents, classes and groups may hold dollar signs
    "axes.edgecolor": "#9AA5B1",
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titlecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "legend.fontsize": 9,
    "lines.solid_capstyle": "round",
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run `draw` under the shared settings; the caller's own matplotlib settings are left as they were."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(_SETTINGS):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(title: str, *, height: float) -> Figure:
    """An empty figure of README width, `height` inches high, whose title tells what it shows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height))
    figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold")
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # A class label in a script that the bundled font lacks is drawn as boxes; that is no reason to end a report.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def round_axis(axes: Axes, rounds: Sequence[int]) -> None:
    """The x axis of everything that goes by rounds: whole numbers, and room for a single one."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    axes.set_xlabel("round")
    first, last = min(rounds), max(rounds)
    every = range(first, last + 1)
    axes.xaxis.set_major_locator(FixedLocator(every) if len(every) <= 10 else MaxNLocator(integer=True, nbins=10))
    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - margin, last + margin)


def line(axes: Axes, x: Sequence[int], y: Any, *, label: str, color: str, **options: Any) -> None:
    """A line with dots as long as the dots do not run together."""
    few = len(x) <= 40
    settings = {"marker": "o" if few else None, "markersize": 4.5, "linewidth": 2.2, **options}
    axes.plot(x, y, label=label, color=color, **settings)


def heat_map(
    axes: Axes,
    values: NDArray[np.float64],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    write: Callable[[float], str],
    highest: float | None = None,
) -> None:
    """`values` (rows, columns) as shades of blue; numbers are written in the cells as long as there is room for them.

    NaN is left white. At most 40 rows and 24 columns keep their labels; of more, every n-th does.
    """
    finite = values[np.isfinite(values)]
    top = highest if highest is not None else float(finite.max(initial=0.0))
    top = top if top > 0 else 1.0
    axes.imshow(values, cmap="Blues", vmin=0.0, vmax=top * 1.15, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for axis, labels, most in ((axes.yaxis, rows, 40), (axes.xaxis, columns, 24)):
        step = math.ceil(len(labels) / most)
        axis.set_ticks(range(0, len(labels), step), labels=[shorten(label) for label in labels[::step]])
    if len(rows) <= 24 and len(columns) <= 16:
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                shade = "white" if value > 0.55 * top else INK
                axes.text(column, row, write(float(value)), ha="center", va="center", color=shade, fontsize=8)
    # White seams between the cells, as long as cells are wider than seams.
    if len(rows) <= 64 and len(columns) <= 64:
        axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
        axes.grid(visible=True, which="minor", color="white", linewidth=1.2)
        axes.tick_params(which="minor", length=0)


def shorten(label: str, most: int = 26) -> str:
    """The label, its middle left out when it is longer than `most` characters.

    >>> shorten("layers.0.block.conv1.weight", 15)
    'layers.….weight'
    """
    if len(label) <= most:
        return label
    kept = most - 1
    return f"{label[: kept - kept // 2]}…{label[len(label) - kept // 2 :]}"
