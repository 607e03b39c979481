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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.agent.tree import fetch_from_parent
from dimat.align import activation_matching, identity_is_best, weight_matching
from dimat.statedict import StateDict, copy_of, load_into

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
    doubtful: bool = False
    """Whether sweeps were to make it better and have been taken back."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """What bringing models into one basis has come to, in one round of one agent."""

    moved: Moved = field(default_factory=dict)
    """The mean over the models; empty when none was to be aligned."""
    skipped: float | None = None
    """Share of the models that were taken as they are, by `merge.skip`; None when none was to be aligned."""


def agree_on_basis(agent: Agent, number: int, clock: PhaseClock) -> Steps[Agreement]:
    """Permute this agent into its parent's basis, then show it to its children. One snapshot per tree edge, once."""
    agreed = Agreement()
    parent = yield from fetch_from_parent(agent, number, agreed.bytes_received, clock)
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
