"""Batch-norm statistics of a neighbourhood: measured by each on its own samples, shared after the merge.

A merged model's running statistics, taken anew on one agent's own samples, are those of its own classes only; the
neighbours' averaged ones are those of models that are no more. So each agent measures its *merged* model on its own
samples (`recalibrate`), publishes means and variances - a few kilobytes, no sample leaves the agent - and takes the
mixture of what it and its neighbours have measured, by the law of total variance:

    mean_i <- sum_j u_ij mean_j             var_i <- sum_j u_ij (var_j + mean_j^2) - mean_i^2

    u_ij = w_ij / (1 + (d_ij / REACH)^2)    u_ii = 1 - sum over j other than i of u_ij

with the row w of the mixing matrix that the merge used. What a neighbour has measured is worth as much as its merged
model is mine: d_ij = ||x_i - x_j|| / ||x_i||, read from a sketch of the parameters. After a first merge on a sparse
graph the models still differ by a third and an agent trusts its own samples; near consensus it sees all shards.

The exchange and the weighing are dimat's own, measured in docs/notes.md; why merged models need new statistics at all
is told by Jordan et al., «REPAIR», arXiv 2211.08403.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from dimat.agent.host import fetch
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.calibrate.batchnorm import running_norms
from dimat.errors import TransportError
from dimat.messages import Header
from dimat.snapshot.encode import check_finite, decode, encode, schema_of
from dimat.snapshot.sketch import SKETCH_SIZE, sketch
from dimat.statedict import StateDict, parameters_of
from dimat.transport.base import Buffer, Fetch, Wait

KIND = "statistics"
REACH = 0.1
"""Relative distance of two merged models at which what the other has measured counts half."""
NUM_BUCKETS = 1024
"""Numbers in the sketch that travels: 4 KiB, a standard error of 2.2 % of the distance."""

log = logging.getLogger(__name__)


def share_statistics(
    agent: Agent, number: int, weights: Mapping[int, float], clock: PhaseClock
) -> Steps[dict[int, int]]:
    """Publish what was measured, take the mixture of the neighbourhood's; returns the bytes received by neighbour.

    Args:
        agent: its model is merged and recalibrated on its own samples.
        number: the round.
        weights: the row of the mixing matrix that the merge used: whose statistics are asked for.
        clock: takes the time.
    """
    peers = tuple(sorted(peer for peer in weights if peer != agent.id))
    agent.shared_with = {number - 1: agent.shared_with.get(number - 1, ()), number: peers}
    exchange = agent.config.exchange
    waits = exchange.mode == "sync"
    with clock("statistics"):
        mine = statistics_of(agent.model, agent.config.seed)
        agent.transport.publish(encode(mine, Header(KIND, number, agent.id)))
    # Without waiting, the newest there are: the distance of the models says what they are worth.
    ready = frozenset(peers)
    if waits and peers:
        with clock("wait"):
            ready = yield Wait("published", peers, KIND, number, agent.patience_s("published", peers))
    num_bytes: dict[int, int] = {}
    others: dict[int, StateDict] = {}
    with clock("statistics"):
        schema = schema_of(mine)
        fetches = tuple(Fetch(peer, KIND, number if waits else None, Buffer(schema)) for peer in sorted(ready))
        answers = (yield from fetch(agent, fetches, exchange.timeout_s)) if fetches else {}
        for peer, answer in sorted(answers.items()):
            try:
                if isinstance(answer, TransportError):
                    raise answer
                check_finite(answer)
                others[peer] = decode(answer)
                num_bytes[peer] = answer.num_bytes
            except TransportError as error:
                log.info("agent %d: round %d: no statistics of agent %d: %s", agent.id, number, peer, error)
        if others:  # what is not mixed keeps its bits
            mixed = mixture(agent.id, mine, others, weights)
            if all(bool(torch.isfinite(tensor).all()) for tensor in mixed.values()):  # huge numbers overflow
                load_statistics(agent.model, mixed)
        agent.close_round(number, KIND)
    return num_bytes


def statistics_of(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Running means and variances by the names that they have in the state dict, and a sketch of the parameters."""
    coarse = np.frombuffer(sketch(parameters_of(model), seed=seed), dtype="<f4")
    # Buckets modulo a power of two are buckets of a smaller sketch.
    folded = coarse.reshape(SKETCH_SIZE // NUM_BUCKETS, NUM_BUCKETS).sum(axis=0, dtype=np.float64)
    return {**_running(model), "sketch": torch.from_numpy(folded.astype(np.float32))}


def mixture(
    agent: int, mine: StateDict, others: Mapping[int, StateDict], weights: Mapping[int, float]
) -> dict[str, torch.Tensor]:
    """The statistics of the neighbourhood; formulas above.

    Args:
        agent: whose row `weights` is.
        mine: what `statistics_of` the agent's own model gave.
        others: the same of those neighbours that answered, by agent.
        weights: row of the mixing matrix by agent.

    >>> one = {"n.running_mean": torch.zeros(1), "n.running_var": torch.ones(1), "sketch": torch.ones(4)}
    >>> two = {"n.running_mean": torch.ones(1) * 2, "n.running_var": torch.ones(1), "sketch": torch.ones(4)}
    >>> mixture(0, one, {1: two}, {0: 0.5, 1: 0.5})
    {'n.running_mean': tensor([1.]), 'n.running_var': tensor([2.])}
    """
    trust = {peer: weights[peer] * worth(mine["sketch"], other["sketch"]) for peer, other in sorted(others.items())}
    shares = {agent: 1.0 - sum(trust.values()), **trust}
    told = {agent: mine, **others}
    mixed: dict[str, torch.Tensor] = {}
    for name in mine:
        if not name.endswith(_MEAN):
            continue
        spread = name.removesuffix(_MEAN) + _VARIANCE
        mean = torch.zeros_like(mine[name], dtype=torch.float64)
        square = torch.zeros_like(mean)
        for peer in sorted(shares):
            theirs = told[peer][name].double()
            mean += shares[peer] * theirs
            square += shares[peer] * (told[peer][spread].double().clamp_min(0) + theirs**2)
        mixed[name] = mean.to(mine[name].dtype)
        mixed[spread] = (square - mean**2).clamp_min(0).to(mine[spread].dtype)
    return mixed


def worth(mine: torch.Tensor, other: torch.Tensor) -> float:
    """1 / (1 + (d / REACH)^2) of two sketches with the relative distance d.

    >>> worth(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.1]))
    0.5
    """
    norm = float(mine.double().norm())
    distance = float((mine.double() - other.double()).norm())
    if norm == 0:
        return 1.0 if distance == 0 else 0.0
    return round(1.0 / (1.0 + (distance / norm / REACH) ** 2), 6)


def load_statistics(model: nn.Module, statistics: Mapping[str, torch.Tensor]) -> None:
    """Put running means and variances, by name, into the model."""
    for name, tensor in _running(model).items():
        tensor.copy_(statistics[name])


def has_statistics(model: nn.Module) -> bool:
    """Whether the model has batch norms that keep running statistics."""
    return bool(running_norms(model))


_MEAN, _VARIANCE = ".running_mean", ".running_var"


def _running(model: nn.Module) -> dict[str, torch.Tensor]:
    """The running means and variances themselves, not copies, by name."""
    norms = {id(norm) for norm in running_norms(model)}
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if id(module) in norms:
            for ending in (_MEAN, _VARIANCE):
                tensor = getattr(module, ending[1:])
                if isinstance(tensor, torch.Tensor):
                    found[f"{name}{ending}"] = tensor
    return found
