"""Who takes part in this merge, with which weight, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from dimat.agent.deadline import LEAST_SHARE, is_late, looked_at
from dimat.agent.host import fetch
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.errors import PayloadError, TransportError
from dimat.messages import REFUSED
from dimat.snapshot.encode import decode
from dimat.transport.base import Wait

MAX_REASON = 500
"""Characters of a reason in a report: a peer has a say in its words, and the coordinator reads small messages only."""

MIN_WAIT_S = 0.05
"""A wait that has begun asks at least once."""

MIN_LOOK_S = 0.1
"""How long a late neighbour has to say how far it is: at least a round trip."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What came in for one merge."""

    states: Mapping[int, Mapping[str, torch.Tensor]]
    """The neighbours' tensors by agent: views into receive buffers, good until the next round."""
    weights: Mapping[int, float]
    """The row of the mixing matrix that is really used: self and those who answered."""
    bytes_received: Mapping[int, int]
    missing: Mapping[int, str]
    """Neighbours without a part in this merge, and why."""
    scalars: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """The numbers that came in the headers, by agent."""
    hidden_s: float = 0.0
    """Seconds of transfers that training hid."""


def gather(
    agent: Agent,
    number: int,
    row: Mapping[int, float],
    clock: PhaseClock,
    *,
    kind: str = "snapshot",
    mutual: bool | None = None,
) -> Steps[Gathered]:
    """Wait for the neighbours' snapshots of round `number`, fetch them at the same time, agree on the edges.

    `row` is agent's row of the mixing matrix. Whoever did not answer gives its weight to self. Where reading is
    mutual an edge counts when each end has fetched and seen the other's acknowledgement: both ends keep it or both
    drop it, and a symmetric matrix stays doubly stochastic.

    Args:
        agent: who gathers.
        number: the round, or the number of the exchange for kinds that count exchanges.
        row: what is to be mixed.
        clock: of the round.
        kind: what is fetched.
        mutual: whether both ends agree on an edge; None: as the graph of round `number` has it.
    """
    neighbours = tuple(sorted(peer for peer in row if peer != agent.id))
    # Deadlines are for those who publish late. A transfer that goes on is worth the ceiling: its length is the model's.
    end = agent.status.now() + agent.config.exchange.timeout_s
    missing: dict[int, str] = {}

    with clock("wait"):
        ready = yield from _published(agent, number, neighbours, missing, kind)

    with clock("gather"):
        fetches = tuple(agent.fetch_from(peer, kind, number) for peer in sorted(ready))
        # A second at least: a neighbour that came at the last moment is still worth its transfer.
        answers = (yield from fetch(agent, fetches, max(1.0, end - agent.status.now()))) if fetches else {}
    agent.close_round(number)
    payloads = {}
    for peer, answer in sorted(answers.items()):
        if isinstance(answer, TransportError):
            refused = REFUSED if isinstance(answer, PayloadError) else ""
            missing[peer] = f"{refused}{answer}"[:MAX_REASON]
        else:
            payloads[peer] = answer

    if payloads and (agent.mutual(number) if mutual is None else mutual):
        with clock("wait"):
            # A neighbour that has published reads when its own wait for others is over: a deadline like this one's. It
            # says so when it reads nothing any more, so only one that stops right here is waited for in vain.
            left = max(1.0, end + agent.patience_s("published", payloads) - agent.status.now())
            agreed = yield Wait("acknowledged", tuple(payloads), kind, number, left)
        for peer in tuple(payloads):
            if peer not in agreed:
                missing[peer] = (
                    f"did not confirm that it has read {_called(kind, number)}: the edge is dropped at both ends"
                )
                del payloads[peer]

    return Gathered(
        states={peer: decode(payload) for peer, payload in payloads.items()},
        weights=realised_row(agent.id, row, frozenset(payloads)),
        bytes_received={peer: payload.num_bytes for peer, payload in payloads.items()},
        missing=missing,
        scalars={peer: payload.header.scalars for peer, payload in payloads.items()},
    )


def _published(
    agent: Agent, number: int, neighbours: tuple[int, ...], missing: dict[int, str], kind: str
) -> Steps[frozenset[int]]:
    """Wait for the neighbours that usually come; then, for as long as they are worth it, for those who are behind.

    Returns who has published round `number`; who has not is put into `missing`.
    """
    begun = agent.status.now()
    behind = _behind(agent, number, neighbours, kind)
    ready: frozenset[int] = frozenset()
    for peers in (tuple(peer for peer in neighbours if peer not in behind), behind):
        if not peers and neighbours:
            continue
        deadline_s = agent.patience_s("published", peers)
        left = max(MIN_WAIT_S, begun + deadline_s - agent.status.now())
        came = yield Wait("published", peers, kind, number, left)
        ready |= came
        for peer in sorted(set(peers) - came):
            missing[peer] = f"had not published {_called(kind, number)} after {deadline_s:.3g} s"
    return ready


def _behind(agent: Agent, number: int, neighbours: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """The neighbours that missed their last deadline and have not published round `number` yet.

    They are asked how far they are: one that moves is waited for longer than one that has stopped.
    """
    limits = agent.limits
    late = [peer for peer in neighbours if limits.adaptive and is_late(agent.past, "published", peer)]
    for peer in late:
        try:
            told = agent.transport.describe(peer, max(MIN_LOOK_S, limits.floor_s * LEAST_SHARE)).newest
        except TransportError:
            continue
        agent.past = looked_at(agent.past, peer, told.get(kind, -1))
    return tuple(peer for peer in late if agent.past.seen.get(peer, -1) < number)


def _called(kind: str, number: int) -> str:
    """What was awaited, in words."""
    return f"round {number}" if kind == "snapshot" else f"{kind!r} {number}"


def realised_row(agent: int, row: Mapping[int, float], present: frozenset[int]) -> dict[int, float]:
    """The row of W with the weights of absent neighbours given to self.

    >>> realised_row(0, {0: 0.5, 1: 0.25, 2: 0.25}, frozenset({2}))
    {0: 0.75, 2: 0.25}
    """
    realised = {peer: weight for peer, weight in row.items() if peer in present}
    absent = sum(weight for peer, weight in sorted(row.items()) if peer != agent and peer not in present)
    realised[agent] = row[agent] + absent
    return dict(sorted(realised.items()))
