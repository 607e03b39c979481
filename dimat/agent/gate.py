"""A merge that makes the agent worse on its own samples is taken in part, or not at all.

After the fold and its calibration the task's loss on at most 512 of the agent's own training samples is compared with
the loss that its own model had on them before the merge. Above that + `merge.gate.margin` the merged model is drawn
towards the own one by halves,

    x = own + share * (merged - own)        share = 1, 1/2, 1/4, 1/8,

calibrated and tried again; the first that passes is taken, else the own model stays as it was, bit for bit. The loss is
that of training, in eval mode and without gradients. The optimiser, every module's mode and all random streams are what
they were.

Right after local training the own loss is at its lowest and an honest merge raises it as well, by more the further the
shards differ: the margin has to leave room for that. Like a refusal, holding back is one-sided: the reported row is the
one really used, (1 - share) I + share W, and columns need not sum to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from dimat.agent.randomness import capture, restore
from dimat.agent.state import Agent
from dimat.calibrate.probe import cut, evaluating, num_samples
from dimat.statedict import StateDict, copy_of, load_into

SHARES = (1.0, 0.5, 0.25, 0.125)
"""How much of the merge is tried, in this order."""


def passes(loss: float, own: float, margin: float) -> bool:
    """Whether a merged model's loss is good enough. Against an own loss that is not finite, any finite one is.

    >>> passes(0.5, 0.3, 0.25), passes(0.6, 0.3, 0.25), passes(9.0, math.nan, 0.25), passes(math.nan, math.nan, 0.25)
    (True, False, True, False)
    """
    return math.isfinite(loss) and (not math.isfinite(own) or loss <= own + margin)


def choose_share(loss_of: Callable[[float], float], own: float, margin: float) -> float:
    """The first of `SHARES` whose loss passes, 0.0 without any; later ones are not asked for.

    >>> choose_share(lambda share: 4.0 * share, own=0.5, margin=0.5)
    0.25
    """
    return next((share for share in SHARES if passes(loss_of(share), own, margin)), 0.0)


def towards(own: StateDict, merged: StateDict, share: float) -> dict[str, torch.Tensor]:
    """The model on the way, own + share * (merged - own); tensors that are not floating-point are the own ones.

    >>> towards({"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}, 0.25)
    {'w': tensor([2.])}
    """
    return {
        name: tensor + share * (merged[name] - tensor) if tensor.is_floating_point() else tensor
        for name, tensor in own.items()
    }


def row_taken(agent: int, row: Mapping[int, float], share: float) -> dict[int, float]:
    """(1 - share) I + share W for one row of W: what a merge of which this share was taken has really used.

    >>> row_taken(0, {0: 0.5, 1: 0.5}, 0.5), row_taken(0, {0: 0.5, 1: 0.5}, 0.0)
    ({0: 0.75, 1: 0.25}, {0: 1.0})
    """
    if share == 1.0:
        return dict(row)
    if share == 0.0:
        return {agent: 1.0}
    return {peer: share * weight + (1.0 - share if peer == agent else 0.0) for peer, weight in row.items()}


def probe_loss(task: Any, model: torch.nn.Module, batches: Iterable[Any]) -> float:
    """The task's mean loss over the samples of `batches`, in eval mode; what it draws at random it draws alike."""
    total, count = 0.0, 0
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # every model that is compared is judged on the same draws
        for batch in batches:
            total += float(task.loss(model, batch)) * num_samples(batch)
            count += num_samples(batch)
    return total / count if count else math.nan


def labelled_batches(loader: Iterable[Any], most: int) -> list[Any]:
    """The first `most` samples of an epoch, as batches with their labels; the random streams are put back."""
    before = capture(loader)
    batches: list[Any] = []
    left = most
    for batch in loader:
        batches.append(cut(batch, left))
        left -= num_samples(batches[-1])
        if left <= 0:
            break
    restore(before, loader)
    return batches


def hold_back(
    agent: Agent,
    mine: StateDict,
    merged: StateDict,
    weights: Mapping[int, float],
    calibrate: Callable[[Mapping[int, float]], None],
) -> tuple[float, dict[int, float]]:
    """Leave in the agent's model as much of the merge as passes; returns that share and the row really used.

    Args:
        agent: its model holds the merged weights, calibrated.
        mine: its own model before the merge.
        merged: what the fold gave, before calibration.
        weights: the row of the mixing matrix that was folded with.
        calibrate: calibrates the agent's model, as one that was merged with a row.
    """
    margin = agent.config.merge.gate.margin
    assert margin is not None, "the gate is asked only where it is set"
    whole = copy_of(agent.model)
    load_into(agent.model, mine)
    own = probe_loss(agent.task, agent.model, agent.gate_batches)

    def loss_of(share: float) -> float:
        load_into(agent.model, whole if share == 1.0 else towards(mine, merged, share))
        if share < 1.0:
            calibrate(row_taken(agent.id, weights, share))
        return probe_loss(agent.task, agent.model, agent.gate_batches)

    share = choose_share(loss_of, own, margin)
    if share == 0.0:
        load_into(agent.model, mine)
    return share, row_taken(agent.id, weights, share)
