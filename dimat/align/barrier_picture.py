"""Curves of barriers as one picture: light, quiet, without pyplot. matplotlib is imported when it is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimat.errors import UsageError
from dimat.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dimat.align.barriers import Barrier

# Okabe and Ito's palette, distinguishable with any colour vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#6B7785")
_DASHES = ("-", "--", ":")
_INK, _MUTED, _FAINT = "#1F2933", "#6B7785", "#E4E7EB"
# Any: matplotlib's own type for this is a literal of all its settings, another one in each version.
_SETTINGS: Any = {"text.color": _INK, "text.parse_math": False, "font.size": 10, "axes.labelcolor": _INK}


def plot_barriers(
    curves: Mapping[str, Barrier], path: Path | str, *, title: str = "", metric: str = "accuracy"
) -> None:
    """Write the curves as a PNG: loss over α, and beside it the metric when every curve has one.

    The legend gives each curve's barrier. The same curves give the same bytes.

    Args:
        curves: label -> `Barrier`, in the order of the legend.
        path: the file; it appears whole or not at all.
        title: what the picture shows, in a sentence.
        metric: name of the metric's axis.

    Raises:
        UsageError: there are no curves, or the file cannot be written.
    """
    if not curves:
        raise UsageError("there are no curves to draw")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(9.0, 4.0), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        _draw(figure, curves, title, metric)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
    try:
        write_atomically(Path(path), image.getvalue())
    except OSError as error:
        raise UsageError(f"the picture {str(path)!r} cannot be written: {error}") from error


def _draw(figure: Figure, curves: Mapping[str, Barrier], title: str, metric: str) -> None:
    with_metric = all(curve.metrics for curve in curves.values())
    panels = figure.subplots(1, 2 if with_metric else 1, squeeze=False)[0]
    for number, (label, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {
            "color": _COLORS[number % len(_COLORS)],
            "linestyle": _DASHES[number // len(_COLORS) % len(_DASHES)],
            "marker": "o",
            "markersize": 3.5,
            "linewidth": 2.0,
        }
        panels[0].plot(curve.alphas, curve.losses, label=f"{label}: {curve.height:.3g}", **style)
        if with_metric:
            panels[1].plot(curve.alphas, curve.metrics, **style)
    _dress(panels[0], "loss")
    if with_metric:
        _dress(panels[1], metric)
    figure.legend(title="barrier", loc="outside right center", frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold")


def _dress(axes: Axes, name: str) -> None:
    axes.set_xlabel("α, from A to B")
    axes.set_ylabel(name)
    axes.set_axisbelow(True)
    axes.grid(color=_FAINT, linewidth=0.8)
    axes.tick_params(colors=_MUTED, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#9AA5B1")
