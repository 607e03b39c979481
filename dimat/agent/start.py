"""One start for all: the root's model, or a new one, where agents have nothing that is worth a common basis.

Agents that have not trained lose nothing by it, and one start is worth more than any permutation. Agents that were
trained apart on samples with few classes in common cannot be matched, and what they have learnt is in the way: they
begin anew (docs/notes.md has the measurements).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import combinations
from typing import Literal

from dimat.agent.basis import Agreement
from dimat.agent.build import first_model
from dimat.agent.host import fetch
from dimat.agent.randomness import capture, restore
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.agent.tree import Place, fetch_from_parent, place_of
from dimat.config import RunConfig
from dimat.errors import TransportError
from dimat.snapshot.encode import decode
from dimat.statedict import StateDict, load_into
from dimat.transport.base import Wait

LEAST_OVERLAP = 0.2
"""Below it trained agents restart. Digits, five agents: iid .99, dirichlet .5 .3, dirichlet .1 .1, two classes 0."""
ONE_ANCESTOR = 0.2
"""Cosine of the weights above which two trained models have one ancestor. Digits, cnn: trained apart from different
initialisations -.06 to .03; from one model, 10 or 40 more epochs on iid shards .98, on two classes each .36 to .51."""

OWN = "own start"
"""The kind of what the root looks at before it gives up its own model."""

log = logging.getLogger(__name__)


def adopt_root(agent: Agent, clock: PhaseClock) -> Steps[Agreement]:
    """Take over the root's weights, down the same tree, before anybody has trained in this run.

    Who brings a trained model that is near its parent's keeps it: they have one ancestor, and so one basis. Where all
    are to `restart`, the root makes a new model first, unless one that it reads is near its own, or none shows its own.
    """
    adopted = Agreement()
    trained = agent.config.init not in ("same", "different")
    place = place_of(agent, 0)
    if agent.basis == "restart":
        yield from _restart(agent, place, adopted.bytes_received, clock)
    parent = yield from fetch_from_parent(agent, 0, adopted.bytes_received, clock)
    if parent is not None and not (trained and likeness(agent.model.state_dict(), parent) > ONE_ANCESTOR):
        if trained:
            log.warning("agent %d begins with the root's model, not its own (merge.basis=agree keeps that)", agent.id)
        load_into(agent.model, parent)
        agent.remember_base()
    with clock("publish"):
        agent.publish("basis", 0)
    agent.basis_settled = True
    return adopted


def _restart(agent: Agent, place: Place, received: dict[int, int], clock: PhaseClock) -> Steps[None]:
    """Give the root the weights that all agents have with `init: same`, unless it and another have one ancestor.

    It looks at those that it reads. Models are not given up on nobody's word: where none shows its own, the root keeps
    its.
    """
    told = agent.topology_in(0).tree_up(around=agent.id)
    shown = tuple(sorted(teller for teller, hearer in told.items() if hearer == place.root))
    if agent.id in shown:
        with clock("publish"):
            agent.publish(OWN, 0)
    if place.parent is not None or not shown:
        return
    with clock("wait"):
        ready = yield Wait("published", shown, OWN, 0, agent.config.exchange.timeout_s)
    with clock("gather"):
        fetches = tuple(agent.fetch_from(peer, OWN, 0) for peer in sorted(ready))
        answers = (yield from fetch(agent, fetches, agent.config.exchange.timeout_s)) if fetches else {}
    mine = agent.model.state_dict()
    alike: list[bool] = []
    for peer, answer in sorted(answers.items()):
        if not isinstance(answer, TransportError):
            received[peer] = received.get(peer, 0) + answer.num_bytes
            alike.append(likeness(mine, decode(answer)) > ONE_ANCESTOR)
    if alike and not any(alike):
        log.warning(
            "agent %d makes a new model for all to begin with: theirs were trained apart, with few classes in common "
            "(merge.basis=agree keeps them)",
            agent.id,
        )
        streams = capture(agent.loader)
        load_into(agent.model, first_model(agent.config, agent.task).state_dict())
        restore(streams, agent.loader)
        agent.remember_base()


def choose_basis(
    config: RunConfig, histograms: Mapping[int, Mapping[str, int]]
) -> Literal["agree", "adopt", "restart", "each_round"]:
    """How the agents of a run come to one basis; all of them say the same.

    Only `auto` with trained models asks for what the agents have in common. Units of models that were trained apart on
    classes of their own are paired by chance, and what tells two classes apart is a bad start for ten: such runs do
    better from any one of the models, and best from a new one (docs/notes.md).

    Args:
        config: the run's.
        histograms: samples by label of every agent; empty where the task does not say.

    >>> config = RunConfig(init="checkpoints")
    >>> choose_basis(config, {0: {"cat": 5}, 1: {"cat": 4, "dog": 1}})
    'agree'
    >>> choose_basis(config, {0: {"cat": 5}, 1: {"dog": 5}})
    'restart'
    """
    if config.merge.basis == "auto" and config.basis == "agree" and config.merge.align != "none":
        common = label_overlap(histograms)
        if common is not None and common < LEAST_OVERLAP:
            return "restart"
    return config.basis


def label_overlap(histograms: Mapping[int, Mapping[str, int]]) -> float | None:
    """What two agents have in common on the average: the sum over labels of the smaller of their shares, in [0, 1].

    None when fewer than two agents say what labels they have.

    >>> label_overlap({0: {"a": 1, "b": 1}, 1: {"b": 2}, 2: {}})
    0.5
    """
    shares = [
        {label: count / sum(own.values()) for label, count in own.items()}
        for _, own in sorted(histograms.items())
        if sum(own.values())
    ]
    pairs = list(combinations(shares, 2))
    if not pairs:
        return None
    return sum(sum(min(share, two.get(label, 0.0)) for label, share in one.items()) for one, two in pairs) / len(pairs)


def likeness(one: StateDict, other: StateDict) -> float:
    """The cosine between two models' weights, entry by entry; near zero for models that were trained apart.

    Matrices and kernels alone: norms, biases and counters are alike in all models.

    >>> import torch
    >>> likeness({"w": torch.eye(2)}, {"w": torch.eye(2) * 3})
    1.0
    """
    product = norm_one = norm_other = 0.0
    for name, tensor in one.items():
        if tensor.is_floating_point() and tensor.dim() > 1:
            mine, theirs = tensor.detach().double(), other[name].double()
            product += float((mine * theirs).sum())
            norm_one += float((mine * mine).sum())
            norm_other += float((theirs * theirs).sum())
    return product / math.sqrt(norm_one * norm_other) if norm_one and norm_other else 1.0
