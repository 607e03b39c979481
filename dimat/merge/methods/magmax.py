"""MagMax: for every entry, the model that has changed it most decides."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dimat.merge.api import Fold, State
from dimat.merge.options import number
from dimat.merge.pool import Pool
from dimat.merge.registry import merge_method
from dimat.merge.taskvector import task_vector_fold


@merge_method
def magmax(*, scale: float = 0.5) -> Fold:
    """The change of largest magnitude: theta_0 + scale * tau_j, where j = argmax_i |w_i tau_i|, entry by entry.

    The winner gives its tau_j as it is; weights take part in the comparison alone, and a model of weight 0 in none.
    With equal weights this is the paper. Equal magnitudes resolve to the larger value of tau, so that the order of
    arrival does not matter; the authors' code, and fusion_bench, let the later model win.

    A model cannot be taken out again: who came second is not kept.

    Args:
        scale: of the merged update; .5 is the paper's for models trained apart.

    Source: Marczak et al., MagMax: leveraging model merging for seamless continual learning, arXiv 2407.06322.

    >>> from dimat.merge import fold
    >>> models = [{"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([-1.0, -4.0])}]
    >>> fold("magmax", models, base={"w": torch.zeros(2)})["w"]
    tensor([ 1.5000, -2.0000])
    """
    return task_vector_fold(Pool(_add, _combine, _read, removable=False), scale=number("scale", scale))


def _add(state: State, tau: torch.Tensor, w: float, factor: float, undo: bool, own: bool) -> State:
    del factor, undo, own
    arriving = {"weight": state["weight"] + abs(w), "tau": tau, "magnitude": tau.abs().mul_(abs(w))}
    if w == 0:
        return state
    return arriving if "tau" not in state else {**_larger(state, arriving), "weight": arriving["weight"]}


def _combine(a: State, b: State) -> State:
    return {**_larger(a, b), "weight": a["weight"] + b["weight"]}


def _larger(a: State, b: State) -> dict[str, torch.Tensor]:
    beats = b["magnitude"] > a["magnitude"]
    beats |= (b["magnitude"] == a["magnitude"]) & (b["tau"] > a["tau"])
    wins = beats.to(b["tau"].dtype)
    # Arithmetic with 0 and 1: a select by a mask that nothing predicts costs ten times as much on a CPU.
    tau = (b["tau"] * wins).addcmul_(a["tau"], 1 - wins)
    return {"tau": tau, "magnitude": torch.maximum(a["magnitude"], b["magnitude"])}


def _read(state: State, scalars: Mapping[str, float]) -> torch.Tensor:
    del scalars
    return state["tau"]
