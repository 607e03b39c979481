"""First one basis, then the fold: how agents that started apart come to number their hidden units alike.

`agree`: before the first merge every agent permutes *itself* to its parent, down the breadth-first tree from the
graph's centre. Its function does not change, its optimiser's state moves along, and from then on merges are plain
weighted sums. Matching anew each round moves nearly every unit every round and loses to plain averaging when shards
differ; agreeing once keeps the gain of the first merge.

Who was to hand the basis on may be gone before it has. Its children then keep their own, and those below follow them:
one run would have several. So when the coordinator takes somebody with children out of the graph right after the round
of the agreement, all agree once more, along the tree of those who are left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import torch

from dimat.agent.build import first_model
from dimat.agent.host import fetch
from dimat.agent.randomness import capture, restore
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.align import activation_matching, identity_is_best, weight_matching
from dimat.config import RunConfig
from dimat.errors import TransportError
from dimat.snapshot.encode import decode
from dimat.statedict import StateDict, copy_of, load_into
from dimat.transport.base import Wait

LEAST_OVERLAP = 0.2
"""Below it trained agents restart. Digits, five agents: iid .99, dirichlet .5 .3, dirichlet .1 .1, two classes 0."""
ONE_ANCESTOR = 0.2
"""Cosine of the weights above which two trained models have one ancestor. Digits, cnn: trained apart from different
initialisations -.06 to .03; from one model, 10 or 40 more epochs on iid shards .98, on two classes each .36 to .51."""

OWN = "own start"
"""The kind of what the root looks at before it gives up its own model."""

log = logging.getLogger(__name__)

Moved = Mapping[str, float]
"""Share of units that moved, by permutation group."""


@dataclass(slots=True)
class Agreement:
    """What an agreement on a basis did to one agent, and what it cost."""

    perms: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """How it permuted itself; empty for the root, which stays."""
    bytes_received: dict[int, int] = field(default_factory=dict)
    """By the agent that sent them."""
    skipped: float | None = None
    """1 where the parent's basis was its own already, as `merge.skip` finds out; 0 where it was searched for."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """What bringing models into one basis has come to, in one round of one agent."""

    moved: Moved = field(default_factory=dict)
    """The mean over the models; empty when none was to be aligned."""
    skipped: float | None = None
    """Share of the models that were taken as they are, by `merge.skip`; None when none was to be aligned."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an agent is in the tree along which a basis is agreed."""

    parent: int | None
    """None for the root."""
    children: tuple[int, ...]
    members: tuple[int, ...]
    """All agents of the tree, ascending."""
    turn: int
    """The agent's place among the members."""
    depth: int
    """Edges to the root."""
    height: int
    """Edges from the root to the furthest member."""


def agree_on_basis(agent: Agent, number: int, clock: PhaseClock) -> Steps[Agreement]:
    """Permute this agent into its parent's basis, then show it to its children. One snapshot per tree edge, once."""
    agreed = Agreement()
    parent = yield from _fetch_from_parent(agent, number, agreed.bytes_received, clock)
    with clock("align"):
        if parent is not None:
            agreed.perms, skipped = match(agent, parent, moves="self")
            agreed.skipped = float(skipped)
            permute_agent(agent, agreed.perms)
    with clock("publish"):
        agent.publish("basis", number)
    agent.basis_settled, agent.basis_round = True, number
    return agreed


def has_to_agree(agent: Agent, number: int) -> bool:
    """Whether the agents agree on a basis in round `number`; all say the same, since all heard the same changes."""
    if not agent.basis_settled or agent.basis_round is None:
        return not agent.basis_settled
    since = agent.basis_round
    # A change names a round two after the agreement at the latest: nobody was further when it was made.
    changes = [change for change in agent.changes if since < change.from_round <= min(number, since + 2)]
    handing_on = frozenset(agent.topology_in(since).tree(around=agent.id)[1].values())
    return any(handing_on & frozenset(change.away) for change in changes)


def adopt_root(agent: Agent, clock: PhaseClock) -> Steps[Agreement]:
    """Take over the root's weights, down the same tree, before anybody has trained in this run.

    Who brings a trained model that is near its parent's keeps it: they have one ancestor, and so one basis. Where all
    are to `restart`, the root makes a new model first, unless its own is near that of a child.
    """
    adopted = Agreement()
    trained = agent.config.init not in ("same", "different")
    place = place_of(agent, 0)
    if agent.basis == "restart":
        yield from _restart(agent, place, adopted.bytes_received, clock)
    parent = yield from _fetch_from_parent(agent, 0, adopted.bytes_received, clock)
    if parent is not None and not (trained and likeness(agent.model.state_dict(), parent) > ONE_ANCESTOR):
        if trained:
            whose = "its parent's model" if agent.basis == "adopt" else "the new model that the root has made"
            log.warning("agent %d begins with %s in place of its own (merge.basis=agree keeps that)", agent.id, whose)
        load_into(agent.model, parent)
        agent.remember_base()
    with clock("publish"):
        agent.publish("basis", 0)
    agent.basis_settled = True
    return adopted


def _restart(agent: Agent, place: Place, received: dict[int, int], clock: PhaseClock) -> Steps[None]:
    """Give the root the weights that all agents have with `init: same`, unless it and a child have one ancestor."""
    if place.depth == 1:
        with clock("publish"):
            agent.publish(OWN, 0)
    if place.parent is not None or not place.children:
        return
    with clock("wait"):
        ready = yield Wait("published", place.children[:1], OWN, 0, agent.config.exchange.timeout_s)
    child = yield from _fetch_first(agent, sorted(ready), OWN, 0, received, clock)
    if child is None or likeness(agent.model.state_dict(), child) <= ONE_ANCESTOR:
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


def align_neighbours(agent: Agent, states: Mapping[int, StateDict]) -> tuple[dict[int, StateDict], Alignment]:
    """Every neighbour's tensors in this agent's basis, as DIMAT matches them in each round (arXiv 2404.08079).

    Returns the permuted states by neighbour, and how much that took.
    """
    assert agent.spec is not None
    if not states:
        return {}, Alignment()
    aligned: dict[int, StateDict] = {}
    shares: dict[str, list[float]] = {}
    num_skipped = 0
    for peer, state in sorted(states.items()):
        perms, skipped = match(agent, state, moves="neighbour")
        aligned[peer] = state if skipped else agent.spec.apply(state, perms)
        num_skipped += skipped
        for group, share in shares_moved(perms).items():
            shares.setdefault(group, []).append(share)
    moved = {group: sum(values) / len(values) for group, values in shares.items()}
    return aligned, Alignment(moved, num_skipped / len(states))


def match(
    agent: Agent, neighbour: StateDict, moves: Literal["self", "neighbour"]
) -> tuple[dict[str, torch.Tensor], bool]:
    """The permutations that bring this agent into its neighbour's basis (`self`), or the neighbour into its own.

    Also tells whether they are the identity without a search: where `merge.skip` allows it, and the weights of the two
    say that their units are numbered alike.
    """
    assert agent.spec is not None
    assert agent.spare is not None
    config, mine = agent.config, agent.model.state_dict()
    if config.merge.skip == "settled" and identity_is_best(agent.spec, mine, neighbour):
        return agent.spec.identity(), True
    if config.merge.align == "weights":
        reference, other = (neighbour, mine) if moves == "self" else (mine, neighbour)
        return dict(weight_matching(agent.spec, reference, other, seed=config.seed)), False
    load_into(agent.spare, neighbour)
    pair = (agent.spare, agent.model) if moves == "self" else (agent.model, agent.spare)
    return dict(activation_matching(agent.spec, *pair, agent.probe)), False


def permute_agent(agent: Agent, perms: Mapping[str, torch.Tensor]) -> None:
    """Renumber the agent's own hidden units: weights, running statistics, optimiser state, base; its function stays."""
    assert agent.spec is not None
    load_into(agent.model, agent.spec.apply(copy_of(agent.model), perms))
    if agent.base is not None:
        agent.base = dict(agent.spec.apply(agent.base, perms))
    with torch.no_grad():
        for key in {key for state in agent.optimizer.state.values() for key in state}:
            moving = {
                name: agent.optimizer.state[parameter][key]
                for name, parameter in agent.model.named_parameters()
                # Momentum and its like have the parameter's shape; step counters do not, and do not move.
                if key in agent.optimizer.state.get(parameter, {})
                and getattr(agent.optimizer.state[parameter][key], "shape", None) == parameter.shape
            }
            permuted = agent.spec.apply_to_named(moving, perms)
            for name, tensor in moving.items():
                tensor.copy_(permuted[name])


def shares_moved(perms: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The share of units that each permutation moves.

    >>> shares_moved({"fc1": torch.tensor([1, 0, 2, 3])})
    {'fc1': 0.5}
    """
    return {group: float((perm != torch.arange(len(perm))).double().mean()) for group, perm in perms.items()}


def place_of(agent: Agent, number: int) -> Place:
    """The agent's place among those who are in the graph in round `number` and can hear from it."""
    root, parents = agent.topology_in(number).tree(around=agent.id)
    depths = {root: 0}
    for child, parent in parents.items():  # level by level
        depths[child] = depths[parent] + 1
    members = tuple(sorted(depths))
    children = tuple(sorted(child for child, parent in parents.items() if parent == agent.id))
    turn = members.index(agent.id)
    return Place(parents.get(agent.id), children, members, turn, depths[agent.id], max(depths.values()))


def _fetch_from_parent(
    agent: Agent, number: int, received: dict[int, int], clock: PhaseClock
) -> Steps[StateDict | None]:
    """The parent's basis, or the lowest live neighbour's when the parent is dead; None for the root, or all alone."""
    place = place_of(agent, number)
    if place.parent is None:
        return None  # the root: the others come to it
    # A parent may itself wait a whole deadline for its own: who is deeper in the tree has more patience.
    patience_s = agent.config.exchange.timeout_s * place.depth
    others = tuple(peer for peer in agent.topology_in(number).neighbours(agent.id) if peer != place.parent)
    for peers, timeout_s in (((place.parent,), patience_s), (others, 1.0)):
        with clock("wait"):
            ready = yield Wait("published", peers, "basis", number, timeout_s)
        basis = yield from _fetch_first(agent, sorted(ready), "basis", number, received, clock)
        if basis is not None:
            return basis
    log.warning("agent %d found nobody to agree on a basis with and keeps its own", agent.id)
    return None


def _fetch_first(
    agent: Agent, peers: list[int], kind: str, number: int, received: dict[int, int], clock: PhaseClock
) -> Steps[StateDict | None]:
    """What the first of `peers` has published whose answer arrives whole."""
    for peer in peers:
        with clock("gather"):
            fetches = (agent.fetch_from(peer, kind, number),)
            answer = (yield from fetch(agent, fetches, agent.config.exchange.timeout_s))[peer]
        if not isinstance(answer, TransportError):
            received[peer] = received.get(peer, 0) + answer.num_bytes
            return decode(answer)
        log.warning("agent %d: the %s of agent %d did not come: %s", agent.id, kind, peer, answer)
    return None
