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
from collections.abc import Collection

import torch

from dimat.agent.basis import Agreement, permute_agent
from dimat.agent.host import fetch
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.agent.tree import Place, place_of
from dimat.align import weight_matching
from dimat.errors import TransportError
from dimat.messages import Header
from dimat.snapshot.encode import decode, encode
from dimat.statedict import StateDict
from dimat.transport.base import Wait

UP, DOWN = "basis sum", "basis total"
MODELS = "models"
"""The header's number of how many models a sum has; 0 where it is none."""
STAY = 1e-6
"""Stickiness, in units of the cosine of two units: the search begins where the agent is, and equals stay in place."""

log = logging.getLogger(__name__)


def sweep_basis(agent: Agent, number: int, agreed: Agreement, clock: PhaseClock) -> Steps[Agreement]:
    """`merge.sweeps` sweeps after the agreement of round `number`; returns that with what they moved and received.

    Everybody goes through the same halves. Where somebody's model is missing in the sum, or not finite, all see it and
    nobody moves; who did not come once is not waited for again.
    """
    place = place_of(agent, number)
    if agent.config.exchange.mode != "sync" or not agent.mutual(number) or len(place.members) < 3:
        return agreed  # nobody is waited for; sums cannot come up; or one's parent is all there is to be matched to
    assert agent.spec is not None
    num_halves = 2 * agent.config.merge.sweeps
    lost: set[int] = set()
    for half in range(num_halves):
        exchange = number * num_halves + half
        total, num_models = yield from _sum_of_all(agent, place, exchange, lost, agreed.bytes_received, clock)
        if num_models != len(place.members):
            log.info("agent %d: round %d: the basis stays as it is: a model is missing", agent.id, number)
        elif place.parent is not None and place.turn % 2 == half % 2:
            with clock("align"):
                mine = agent.model.state_dict()
                others = {name: total[name] - own if own.is_floating_point() else own for name, own in mine.items()}
                perms = weight_matching(agent.spec, others, mine, seed=agent.config.seed, stickiness=STAY)
                permute_agent(agent, perms)
                agreed.perms = agent.spec.compose(agreed.perms, perms)
    return agreed


def _sum_of_all(
    agent: Agent, place: Place, exchange: int, lost: set[int], received: dict[int, int], clock: PhaseClock
) -> Steps[tuple[StateDict, int]]:
    """The sum of all models, and of how many: up the tree and down again."""
    # Whoever waits, waits for the slowest of all: its own way to a leaf and back is within twice the height.
    patience_s = agent.config.exchange.timeout_s * (2 * place.height + 1)

    def ask(kind: str, peers: Collection[int]) -> Steps[dict[int, tuple[StateDict, int]]]:
        peers = tuple(sorted(set(peers) - lost))
        sums: dict[int, tuple[StateDict, int]] = {}
        if peers:
            with clock("wait"):
                ready = yield Wait("published", peers, kind, exchange, patience_s)
            with clock("gather"):
                fetches = tuple(agent.fetch_from(peer, kind, exchange) for peer in sorted(ready))
                answers = (yield from fetch(agent, fetches, agent.config.exchange.timeout_s)) if fetches else {}
            for peer, answer in sorted(answers.items()):
                if isinstance(answer, TransportError):
                    log.warning("agent %d: the %s of agent %d did not come: %s", agent.id, kind, peer, answer)
                    continue
                received[peer] = received.get(peer, 0) + answer.num_bytes
                sums[peer] = decode(answer), int(answer.header.scalars.get(MODELS, 0))
        lost.update(set(peers) - set(sums))
        return sums

    def hand_on(kind: str, state: StateDict, count: int) -> None:
        with clock("publish"):
            agent.transport.publish(encode(state, Header(kind, exchange, agent.id, {MODELS: float(count)})))

    total, num_models = dict(agent.model.state_dict()), 1
    below = yield from ask(UP, place.children)
    with clock("align"):
        for child in sorted(below):  # float addition is not associative
            state, count = below[child]
            total = {name: own + state[name] if own.is_floating_point() else own for name, own in total.items()}
            num_models += count
    if place.parent is not None:
        hand_on(UP, total, num_models)
        above = yield from ask(DOWN, (place.parent,))
        total, num_models = above.get(place.parent, (total, 0))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in total.values()):
        num_models = 0
    if place.children:
        hand_on(DOWN, total, num_models)
    return total, num_models
