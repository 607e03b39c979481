"""The agreed basis, made better: each agent matches its weights once more to the sum of all others'.

Down the tree (`dimat.agent.basis`) an agent is matched to its parent alone, and what lies between two leaves is a chain
of such matchings. MergeMany of Git Re-Basin matches one model after the other to the sum of the rest, which raises

    || sum_v P_v x_v ||^2        over the permutations P_v of all agents v

until it rises no more. Here the sum comes along the same tree, and in each half of a sweep every second agent moves:

    up      S_v = x_v + sum over children c of S_c
    down    T = S_root, handed on by everybody
    move    x_v <- P x_v        P = argmax <T - x_v, P x_v>, from where it is

All at once would match each to where the others have been a moment ago, which is worse and may go back and forth; one
after the other, as MergeMany does, takes as many steps as there are agents. The root stays: the basis is its. No sample
is looked at. A half sweep costs two models along each edge of the tree, once in a run.

What it is worth is told in docs/notes.md. Source: Ainsworth, Hayase, Srinivasa, «Git Re-Basin», arXiv 2209.04836,
algorithm 3; `dimat.align.match_many` is the same in one place.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from dimat.agent.basis import Agreement, permute_agent
from dimat.agent.host import fetch
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.agent.tree import Place, place_of
from dimat.align import weight_matching
from dimat.errors import AlignmentError, TransportError
from dimat.messages import Header
from dimat.snapshot.encode import decode, encode
from dimat.statedict import StateDict
from dimat.transport.base import Wait

Perms = Mapping[str, Tensor]

MODELS = "models"
"""The header's number of how many models a sum has; 0 where it is none."""
STAY = 1e-6
"""Stickiness, in units of the cosine of two units: the search begins where the agent is."""

log = logging.getLogger(__name__)


def sweep_basis(agent: Agent, number: int, agreed: Agreement, clock: PhaseClock) -> Steps[Agreement]:
    """`merge.sweeps` sweeps after the agreement of round `number`; returns that with what they moved and received.

    Where somebody's model is missing in a sum nobody who hears of it moves any more: the basis stays as the halves
    before have left it.
    """
    if not sweeps_in(agent, number):
        return agreed
    assert agent.spec is not None
    place = place_of(agent, number)
    for half in range(2 * agent.config.merge.sweeps):
        for kind in kinds(half - 2):  # whoever has sent its part of the half before has read these
            agent.transport.forget(kind)
        total, num_models = yield from _sum_of_all(agent, place, number, half, agreed.bytes_received, clock)
        if num_models != len(place.members):
            log.info("agent %d: round %d: the basis stays as it is: a model is missing", agent.id, number)
            break
        if place.parent is not None and place.turn % 2 == half % 2:
            with clock("align"):
                agreed.perms = _move(agent, total, agreed.perms)
    return agreed


def sweeps_in(agent: Agent, number: int) -> bool:
    """Whether there are sweeps after an agreement in round `number`; all agents of the tree say the same."""
    merge = agent.config.merge
    return (
        merge.sweeps > 0
        and agent.config.exchange.mode == "sync"  # else nobody is waited for
        and agent.mutual(number)  # else a parent cannot read its child
        and agent.method.memory == "constant"
        and not merge.checks.on
        and len(place_of(agent, number).members) > 2  # two have been matched to each other
    )


def forget_sums(agent: Agent) -> None:
    """Free the memory of what the last halves have published: when the neighbours are past them."""
    num_halves = 2 * agent.config.merge.sweeps
    for half in (num_halves - 2, num_halves - 1):
        for kind in kinds(half):
            agent.transport.forget(kind)


def kinds(half: int) -> tuple[str, str]:
    """What travels up and down in a half sweep.

    >>> kinds(0)
    ('basis sum:0', 'basis total:0')
    """
    return f"basis sum:{half}", f"basis total:{half}"


def _move(agent: Agent, total: StateDict, so_far: Perms) -> Perms:
    """Match the agent to the sum of all others and permute it; returns how it has moved in all."""
    assert agent.spec is not None
    mine = agent.model.state_dict()
    others = {name: total[name] - own if own.is_floating_point() else own for name, own in mine.items()}
    try:
        perms = weight_matching(agent.spec, others, mine, seed=agent.config.seed, stickiness=STAY)
    except AlignmentError as error:  # finite numbers may be too large for their products
        log.warning("agent %d stays in its basis: %s", agent.id, error)
        return so_far
    permute_agent(agent, perms)
    return agent.spec.compose(so_far, perms)


def _sum_of_all(
    agent: Agent, place: Place, number: int, half: int, received: dict[int, int], clock: PhaseClock
) -> Steps[tuple[StateDict, int]]:
    """The sum of all models, and of how many: up the tree and down again."""
    up, down = kinds(half)
    # A deadline for each level: who is below gives up first, and says so upwards while it is still waited for.
    deadline_s = agent.config.exchange.timeout_s
    above_s = deadline_s * (place.height - place.below + 1)

    def ask(kind: str, peers: tuple[int, ...], patience_s: float) -> Steps[dict[int, tuple[StateDict, int]]]:
        sums: dict[int, tuple[StateDict, int]] = {}
        if not peers:
            return sums
        with clock("wait"):
            ready = yield Wait("published", peers, kind, number, patience_s)
        with clock("gather"):
            fetches = tuple(agent.fetch_from(peer, kind, number) for peer in sorted(ready))
            answers = (yield from fetch(agent, fetches, deadline_s)) if fetches else {}
        for peer, answer in sorted(answers.items()):
            if isinstance(answer, TransportError):
                log.warning("agent %d: the %s of agent %d did not come: %s", agent.id, kind, peer, answer)
                continue
            received[peer] = received.get(peer, 0) + answer.num_bytes
            sums[peer] = decode(answer), _count(answer.header, len(place.members))
        return sums

    def hand_on(kind: str, state: StateDict, count: int) -> None:
        with clock("publish"):
            agent.transport.publish(encode(state, Header(kind, number, agent.id, {MODELS: float(count)})))

    total, num_models = dict(agent.model.state_dict()), 1
    below = yield from ask(up, place.children, deadline_s * place.below)
    with clock("align"):
        for child in sorted(below):  # float addition is not associative
            state, count = below[child]
            total = {name: own + state[name] if own.is_floating_point() else own for name, own in total.items()}
            num_models += count
    if place.parent is not None:
        hand_on(up, total, num_models)
        above = yield from ask(down, (place.parent,), above_s)
        total, num_models = above.get(place.parent, (total, 0))
    if place.children:
        hand_on(down, total, num_models)
    return total, num_models


def _count(header: Header, most: int) -> int:
    """How many models a sum is said to have; 0 where that cannot be."""
    said = header.scalars.get(MODELS, 0.0)
    return int(said) if said in range(1, most + 1) else 0
