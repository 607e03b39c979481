"""Every figure of a report: one function each, `RunRecord` in, matplotlib figure out (None: nothing to show).

matplotlib is imported by the first figure that is drawn, not by this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dimat.report.figures.convergence import accuracy, consensus_distance, contraction
from dimat.report.figures.cost import time_per_phase, topology
from dimat.report.figures.shards import class_histograms, units_moved
from dimat.report.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FIGURES",
    "Entry",
    "accuracy",
    "class_histograms",
    "consensus_distance",
    "contraction",
    "time_per_phase",
    "topology",
    "units_moved",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure of the report: its file's name, its heading, what it shows in a sentence, what to say without it."""

    name: str
    heading: str
    explanation: str
    absent: str
    draw: Callable[[RunRecord], Figure | None]


FIGURES: tuple[Entry, ...] = (
    Entry(
        "accuracy",
        "Accuracy",
        "Every agent's model is tested right before it merges with its neighbours and right after: the step between "
        "the two is what the merge costs or gains.",
        "No agent has reported an accuracy.",
        accuracy,
    ),
    Entry(
        "consensus_distance",
        "Consensus distance",
        "How far the models are from their mean, sqrt(mean ‖xᵢ − x̄‖²): local training drives them apart, every merge "
        "pulls them together, by as much as the mixing matrix that was really used predicts.",
        "No merge has been summed up, so there is no distance to show.",
        consensus_distance,
    ),
    Entry(
        "contraction",
        "Contraction, predicted and observed",
        "The distance after a merge over the distance before it; ‖W − J‖₂ of the mixing matrix that was really used is "
        "the most that a plain weighted average can leave.",
        "No merge has been summed up, so there is no contraction to show.",
        contraction,
    ),
    Entry(
        "time_per_phase",
        "Time per phase",
        "Where the seconds of a round go for each agent; waiting is the price of neighbours that are slower, the warm "
        "colours are the price of merging.",
        "No agent has reported timings.",
        time_per_phase,
    ),
    Entry(
        "topology",
        "Topology and traffic",
        "Who merged with whom, and the bytes of weights that travelled over each edge in the whole run, both "
        "directions together where both were used.",
        "No agent has merged with a neighbour.",
        topology,
    ),
    Entry(
        "class_histograms",
        "Classes of each agent",
        "The training samples that each agent holds; rows that look unlike are shards that differ, which is what makes "
        "decentralised training hard.",
        "No agent has told what classes it holds.",
        class_histograms,
    ),
    Entry(
        "units_moved",
        "Units moved by alignment",
        "Hidden units have no fixed order; before models are averaged, each one's units are permuted to match. Shown "
        "is the share of every permutation group that changed its place.",
        "Nothing was aligned in this run.",
        units_moved,
    ),
)
"""All figures in the order of the report."""
