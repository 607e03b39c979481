"""The figures of a suite: accuracy against rounds, bytes and seconds, a small panel per partition and graph."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from benchmarks.decentralized import measures
from benchmarks.decentralized.cells import PARTITIONS, Setting
from benchmarks.decentralized.measures import Runs
from benchmarks.decentralized.methods import METHODS
from benchmarks.decentralized.table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPENT = {"round": "rounds", "bytes": "megabytes received by all agents", "seconds": "seconds of one agent"}
COLORS: Mapping[str, str] = {
    "dimat": "#0072B2", "wa": "#D55E00", "wa_own": "#F0A070", "wm": "#009E73", "dimat_local": "#CC79A7",
    "dimat_shared": "#E69F00",
    "dsgd": "#000000", "cdmsgd": "#888888", "sgp": "#7A4A10", "cga": "#56B4E9", "swarm": "#6A3FB5", "choco": "#A8B400",
}  # fmt: skip
_COLORS_OF_A_PNG = 256

Panels = dict[tuple[str, str], Mapping[str, Runs]]
"""Methods by (row, column) of a figure: graph, with the number of agents where it is not the usual, and partition."""
USUAL_AGENTS = 5


def planned(suite: str, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """File name and caption of every figure that the rows give."""
    return [
        (f"{suite}-{family.replace(' ', '-')}-{spent}.png", f"{family}: accuracy against {words}")
        for family in _families(rows)
        for spent, words in SPENT.items()
    ]


def draw_all(suite: str, rows: Sequence[Row]) -> Iterator[tuple[str, bytes]]:
    """File name and PNG of every figure."""
    names = iter(planned(suite, rows))
    for family, panels in _families(rows).items():
        for spent in SPENT:
            yield next(names)[0], draw(family, panels, spent)


def draw(title: str, panels: Panels, spent: str) -> bytes:
    """One figure as PNG: graphs downwards, partitions across, a line per method with its deviation over the seeds."""
    from dimat.report.style import styled

    picture: bytes = styled(_draw)(title, panels, spent)
    return picture


def _draw(title: str, panels: Panels, spent: str) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    down = list(dict.fromkeys(row for row, _ in panels))
    across = sorted({column for _, column in panels}, key=list(PARTITIONS).index)
    width = max(7.0, 2.5 * len(across) + 0.5)  # the title and the legend need seven inches
    figure = Figure(figsize=(width, 2.2 * len(down) + 0.9))
    figure.suptitle(f"{title}: accuracy against {SPENT[spent]}", x=0.012, ha="left", fontsize=10, fontweight="bold")
    grid = figure.subplots(len(down), len(across), squeeze=False, sharey=True)
    labelled: dict[str, Any] = {}
    for (i, row), (j, column) in product(enumerate(down), enumerate(across)):
        axes, methods = grid[i][j], panels.get((row, column))
        if methods is None:
            axes.set_visible(False)
            continue
        axes.set_title(f"{column}, {row}", fontsize=9)
        for name in (name for name in METHODS if name in methods):
            labelled[name] = _line(axes, name, methods[name], spent)
        alone = j == 0 or (row, across[j - 1]) not in panels
        axes.tick_params(labelsize=8, labelleft=alone)
        if spent == "round":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        elif any(METHODS[name].gradient for name in methods):
            _by_powers_of_ten(axes)
    figure.legend(
        labelled.values(), labelled.keys(), loc="outside lower center", ncols=min(int(width / 1.4), len(labelled))
    )
    return _png(figure)


def _line(axes: Axes, name: str, runs: Runs, spent: str) -> Any:
    points = measures.curve(runs, spent)
    x = [value / 1e6 if spent == "bytes" else value for value, _ in points]
    y = [value for _, value in points]
    rounds = [row.round for row in next(iter(runs.values()))]
    spreads = [measures.at_round(runs, number).std for number in rounds]
    spreads = [0.0 if math.isnan(each) else each for each in spreads]
    style = "--" if METHODS[name].gradient else "-"
    (drawn,) = axes.plot(x, y, style, color=COLORS[name], linewidth=2.0 if name == "dimat" else 1.3, label=name,
                         zorder=3 if name == "dimat" else 2, marker="." if len(x) < 8 else None)  # fmt: skip
    low, high = ([a + sign * b for a, b in zip(y, spreads, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=COLORS[name], alpha=0.09, linewidth=0)
    return drawn


def _by_powers_of_ten(axes: Axes) -> None:
    """Methods that exchange at every step spend many times as much as those that merge once a round."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _families(rows: Sequence[Row]) -> dict[str, Panels]:
    """Settings that share a figure, by its title: they differ in graph and partition only."""
    families: dict[str, Panels] = {}
    for setting, methods in measures.by_setting(rows).items():
        title = f"{setting.dataset} {setting.model} {setting.start}"
        families.setdefault(title, {})[_row_name(setting), setting.partition] = methods
    return families


def _row_name(setting: Setting) -> str:
    return setting.graph if setting.agents == USUAL_AGENTS else f"{setting.graph} of {setting.agents}"


def _png(figure: Figure) -> bytes:
    """As PNG with a palette, a third of the size; the same figure gives the same bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    buffer.seek(0)
    small = io.BytesIO()
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(_COLORS_OF_A_PNG, Image.Quantize.FASTOCTREE).save(
            small, format="png", optimize=True
        )
    return small.getvalue()
