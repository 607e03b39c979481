"""Merging without waiting (`exchange.mode: async`): each round takes the newest snapshot that every neighbour has.

A snapshot of round q, merged in one's own round r, is s = max(0, r - q) rounds old, and

    w'_j = w_j (1 + s_j) ** -p        w'_self = w_self + sum_j (w_j - w'_j)

with the row w of the mixing matrix and p = `exchange.staleness_power`. Beyond `exchange.max_staleness` the weight is
zero; a snapshot of a later round than one's own counts in full. Rows go on summing to one; columns do not, since
nothing is agreed between the two ends of an edge: the average of all models is not kept, but drifts towards those who
are read more often than they read, which are the slow ones when p is zero and the fast ones when it is large.

A snapshot that is held already is not sent again: the neighbour is told of it, and says that it still is its newest.

With `exchange.overlap` the snapshots come while the agent trains: those that were the newest when its training began.

An agent that does not answer costs a round its deadline; after the second failure in a row it is asked in every second
round, then in every fourth, and so on up to every eighth.

Source: Xie, Koyejo, Gupta, «Asynchronous federated optimization», arXiv 1903.03934: the polynomial discount of their
section 5.2, there on a server's mixing weight, here on each edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dimat.agent.ahead import Arrived
from dimat.agent.basis import has_to_agree
from dimat.agent.deadline import Past, answered, came, expired
from dimat.agent.gather import MAX_REASON, Gathered
from dimat.agent.host import begin, fetch
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.errors import PeerUnavailable, TransportError
from dimat.snapshot.encode import decode
from dimat.telemetry.metrics import read_reports
from dimat.transport.base import Control, Wait

MAX_REST = 8
"""One that does not answer is asked every so many rounds at least."""


def fetch_ahead(agent: Agent, number: int) -> None:
    """As training of round `number` begins, let the neighbours' newest come, where `exchange.overlap` says so.

    Not in a round that first agrees on a basis: what came before would be merged in another one.
    """
    if not agent.config.exchange.overlap or not agent.merges(number):
        return
    if agent.basis == "agree" and has_to_agree(agent, number):
        return
    peers = sorted(peer for peer in agent.row(number) if peer != agent.id and not rests(agent.past, peer, number))
    if peers:
        agent.ahead = begin(agent, tuple(agent.newest_from(peer, number) for peer in peers))


def gather_newest(agent: Agent, number: int, row: Mapping[int, float], clock: PhaseClock) -> Steps[Gathered]:
    """Fetch what the neighbours have published last, and weigh it by its age in rounds."""
    exchange = agent.config.exchange
    with clock("wait"):
        # Nobody is waited for; but where all agents share one thread, it is the others' turn.
        yield Wait("published", (), "snapshot", number, 0.0)
    neighbours = sorted(peer for peer in row if peer != agent.id)
    missing = {peer: "is asked less often: it did not answer" for peer in neighbours if rests(agent.past, peer, number)}
    with clock("gather"):
        arrived = yield from _newest_of(agent, number, [peer for peer in neighbours if peer not in missing])
    payloads = {}
    staleness: dict[int, int] = {}
    for peer, answer in sorted(arrived.answers.items()):
        if isinstance(answer, PeerUnavailable):
            agent.past = expired(agent.past, "fetched", peer)
        elif arrived.num_bytes.get(peer):
            agent.past = came(agent.past, "fetched", peer, arrived.took_s[peer])
        else:
            # Whoever answers is there, even if there is nothing to read yet, nothing good, or nothing new. That takes a
            # moment, and deadlines that followed it would cut the next model short.
            agent.past = answered(agent.past, "fetched", peer)
        if isinstance(answer, TransportError):
            missing[peer] = str(answer)[:MAX_REASON]
            continue
        agent.held[peer] = answer
        newest = answer.header.round
        agent.newest[peer] = max(newest, agent.newest.get(peer, 0))
        staleness[peer] = max(0, number - newest)
        if staleness[peer] > exchange.max_staleness:
            missing[peer] = (
                f"its newest snapshot, of round {newest}, is {staleness[peer]} rounds old in round {number}; "
                f"exchange.max_staleness is {exchange.max_staleness}"
            )
            continue
        payloads[peer] = answer
    fresh = {peer: staleness[peer] for peer in payloads}
    return Gathered(
        states={peer: decode(payload) for peer, payload in payloads.items()},
        weights=discounted_row(agent.id, row, fresh, exchange.staleness_power),
        bytes_received={peer: arrived.num_bytes[peer] for peer in sorted(staleness)},
        missing=missing,
        hidden_s=arrived.hidden_s,
    )


def _newest_of(agent: Agent, number: int, peers: list[int]) -> Steps[Arrived]:
    """The newest snapshots of `peers`: those that were fetched ahead as far as they come, the others' now."""
    ahead = Arrived()
    if agent.ahead is not None:
        ahead = yield from agent.ahead.collect(agent, agent.patience_s("fetched", agent.ahead.peers))
        agent.ahead = None
    fetches = tuple(agent.newest_from(peer, number) for peer in peers if peer not in ahead.answers)
    begun = agent.status.now()
    late = (yield from fetch(agent, fetches, agent.patience_s("fetched", peers))) if fetches else {}
    took_s = agent.status.now() - begun
    answers = {**ahead.answers, **late}
    return Arrived(
        answers={peer: answers[peer] for peer in peers},  # the graph may have changed since training began
        num_bytes={**ahead.num_bytes, **{one.peer: one.num_bytes(late[one.peer]) for one in fetches}},
        took_s={**ahead.took_s, **dict.fromkeys(late, took_s)},
        hidden_s=ahead.hidden_s,
    )


def discounted_row(
    agent: int, row: Mapping[int, float], staleness: Mapping[int, int], power: float
) -> dict[int, float]:
    """The row of W that is really used: each neighbour's weight discounted by its age in rounds, the rest on self.

    >>> discounted_row(0, {0: 0.5, 1: 0.25, 2: 0.25}, {1: 0, 2: 3}, power=0.5)
    {0: 0.625, 1: 0.25, 2: 0.125}
    """
    used = {peer: row[peer] * (1 + age) ** -power for peer, age in staleness.items()}
    given_back = sum(weight - used.get(peer, 0.0) for peer, weight in sorted(row.items()) if peer != agent)
    return dict(sorted({**used, agent: row[agent] + given_back}.items()))


def rests(past: Past, peer: int, number: int) -> bool:
    """Whether `peer`, which did not answer, is not asked in round `number`.

    >>> past = Past(expiries={("fetched", 1): 3})
    >>> [number for number in range(1, 13) if not rests(past, 1, number)]
    [4, 8, 12]
    """
    failures = past.expiries.get(("fetched", peer), 0)
    return failures > 1 and number % min(MAX_REST, 2 ** (failures - 1)) != 0


def own_start(agent: Agent, agreed: int, metrics: Path, control: Control) -> int:
    """The round that this agent goes on after: its own newest checkpoint, where that is newer than the `agreed` one.

    Agents that never wait need not stand in the same round, and the newest round that all of them hold may be long
    gone. The coordinator, which has dropped what was reported after the agreed round, is told it again (without
    sketches, which no file keeps). A checkpoint whose numbers were not written any more is done again.
    """
    reports = [report for report in read_reports(metrics, agent.session) if report.round > agreed]
    held = {report.round for report in reports}.intersection(agent.rounds_held())
    start = max(held, default=agreed)
    for report in reports:
        if report.round <= start:
            control.report(report)
    return start


def let_others_read(agent: Agent, last: int, *, published: bool) -> Steps[None]:
    """Serve the last snapshot until every reader that is still in its rounds has had it, or the deadline passes.

    A neighbour that had published round `last` itself when it was read last has nothing more to read. Nor is there
    anything to read of an agent that has not `published` it, because the run ended where this process began.
    """
    agent.close_round(last)
    readers = agent.topology_in(last).readers(agent.id, last - 1) if published and agent.merges(last) else []
    behind = tuple(peer for peer in readers if agent.newest.get(peer, 0) < last)
    if behind:
        yield Wait("acknowledged", behind, "snapshot", last, agent.config.exchange.timeout_s)
