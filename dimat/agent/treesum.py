"""The sum of all agents' models, along the tree: up from the leaves and down again.

    up      S_v = x_v + sum over c of S_c        c: who tells v
    down    T = S_root, handed on by everybody

Where edges have a direction these are two trees with one root: `dimat.agent.tree`.

With the models go, in the headers, how many they are, the sums of losses that are voted with, and the verdict on them.
Sums are added in the order of ids, so that a simulation and a run of processes have the same bits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dimat.agent.host import fetch
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.agent.tree import Place
from dimat.errors import TransportError
from dimat.messages import Header, Payload
from dimat.snapshot.encode import decode, encode
from dimat.statedict import StateDict
from dimat.transport.base import Wait

MODELS = "models"
"""The header's number of how many models a sum has; 0 where it is none."""
BEFORE, AFTER = "loss before", "loss after"
"""On the way up: the sums of the losses of all below."""
FALLEN = "fallen"
"""On the way down: 1 where the sum of all losses has fallen."""

LEAST_FALL = 0.03
"""Of the sum of the losses; less is noise. Where sweeps help for certain it falls by a fifth or more: docs/notes.md."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Everybody:
    """What has come down."""

    total: StateDict
    """Good until the next fetch from the parent."""
    num_models: int
    fallen: bool
    """Whether the second of two losses is clearly below the first, over all agents; without losses it is not."""


def kinds(half: int) -> tuple[str, str]:
    """What travels up and down in a half sweep.

    >>> kinds(0)
    ('basis sum:0', 'basis total:0')
    """
    return f"basis sum:{half}", f"basis total:{half}"


def sum_of_all(
    agent: Agent,
    place: Place,
    number: int,
    half: int,
    losses: Sequence[float],
    received: dict[int, int],
    clock: PhaseClock,
) -> Steps[Everybody]:
    """Add this agent's model to those below it, hand them up, and hand down what comes from above.

    Args:
        agent: whose model it is.
        place: its place in the tree.
        number: the round.
        half: the half sweep, which tells sums of one round apart.
        losses: before and after, or none.
        received: bytes by agent; what is received is added.
        clock: takes the time.
    """
    up, down = kinds(half)
    # A deadline for each level: who is below gives up first, and says so upwards while it is still waited for.
    deadline_s = agent.config.exchange.timeout_s
    above_s = deadline_s * (place.height - place.below + 1)

    def ask(kind: str, peers: tuple[int, ...], patience_s: float) -> Steps[dict[int, Payload]]:
        sums: dict[int, Payload] = {}
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
            sums[peer] = answer
        return sums

    def hand_on(kind: str, state: StateDict, count: int, more: Mapping[str, float]) -> None:
        with clock("publish"):
            agent.transport.publish(encode(state, Header(kind, number, agent.id, {MODELS: float(count), **more})))

    total, num_models = dict(agent.model.state_dict()), 1
    votes = dict(zip((BEFORE, AFTER), losses, strict=True)) if losses else {}
    below = yield from ask(up, place.tellers, deadline_s * place.below)
    with clock("align"):
        for child in sorted(below):  # float addition is not associative
            state, header = decode(below[child]), below[child].header
            total = {name: own + state[name] if own.is_floating_point() else own for name, own in total.items()}
            num_models += _count(header, len(place.members))
            votes = {name: loss + header.scalars.get(name, math.nan) for name, loss in votes.items()}
    # Not where one of them is no number.
    fallen = bool(votes) and votes[BEFORE] - votes[AFTER] > LEAST_FALL * abs(votes[BEFORE])
    if place.parent is not None:
        hand_on(up, total, num_models, votes)
        above = (yield from ask(down, (place.parent,), above_s)).get(place.parent)
        num_models, fallen = 0, False
        if above is not None:
            total, num_models = decode(above), _count(above.header, len(place.members))
            fallen = above.header.scalars.get(FALLEN) == 1.0
    if place.children:
        hand_on(down, total, num_models, {FALLEN: float(fallen)})
    return Everybody(total, num_models, fallen)


def _count(header: Header, most: int) -> int:
    """How many models a sum is said to have; 0 where that cannot be."""
    said = header.scalars.get(MODELS, 0.0)
    return int(said) if said in range(1, most + 1) else 0
