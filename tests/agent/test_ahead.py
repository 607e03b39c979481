"""Snapshots that are fetched ahead, or held already: what is waited for, what is given up, what is merged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from dimat.agent.ahead import Arrived, Transfers, no_transfer_left
from dimat.agent.build import build_agent
from dimat.agent.gather import Gathered
from dimat.agent.newest import fetch_ahead, gather_newest
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import drive
from dimat.agent.waiting import wait_on_network
from dimat.config import load_config
from dimat.errors import PeerUnavailable, RoundGone, TransportError
from dimat.messages import Header, Payload, Schema, Tensor, TensorSpec, digest
from dimat.transport.base import Buffer, Fetch
from dimat.transport.memory import MemoryHub, MemoryTransport

SPEC = TensorSpec("w", "uint8", (3,))
SENT = Payload(Header("snapshot", 4, 1), (Tensor(SPEC, memoryview(b"abc"), digest(b"abc")),))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.on_look: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        self.on_look()
        return self.now_s


class Line:
    """A transport whose transfers end when the test says so."""

    def __init__(self) -> None:
        self.futures: dict[int, Future[Payload | TransportError]] = {}
        self.timeout_s = 0.0

    def begin(self, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Future[Payload | TransportError]]:
        self.timeout_s = timeout_s
        self.futures = {fetch.peer: Future() for fetch in fetches}
        return self.futures


class Me:
    id = 0


def under_way(*peers: int, held: Payload | None = None) -> tuple[Transfers, Line, Clock]:
    line, clock = Line(), Clock()
    fetches = tuple(Fetch(peer, "snapshot", None, Buffer(Schema((SPEC,))), held=held) for peer in peers)
    return Transfers(fetches, clock).start(line), line, clock  # type: ignore[arg-type]


def collect(transfers: Transfers, patience_s: float) -> Arrived:
    return drive(transfers.collect(Me(), patience_s), lambda wait: frozenset())  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------- transfers, one by one


def test_what_came_during_training_costs_no_wait() -> None:
    transfers, line, clock = under_way(1, 2)
    clock.now_s = 3.0
    line.futures[1].set_result(SENT)
    clock.now_s = 4.0
    line.futures[2].set_result(RoundGone("nothing yet"))
    clock.now_s = 10.0
    came = collect(transfers, patience_s=5.0)
    assert came.answers[1] is SENT
    assert isinstance(came.answers[2], RoundGone)
    assert came.took_s == {1: 3.0, 2: 4.0}
    assert came.num_bytes == {1: 3, 2: 0}
    assert came.hidden_s == 4.0


def test_a_deadline_counts_from_the_beginning_and_training_may_outlast_it() -> None:
    """The other one came after its deadline, but it has come. To wait would outlast the test's own limit."""
    transfers, line, clock = under_way(1, 2)
    clock.now_s = 9000.0
    line.futures[2].set_result(SENT)
    clock.now_s = 9999.0
    came = collect(transfers, patience_s=5000.0)
    assert isinstance(came.answers[1], PeerUnavailable)
    assert "1e+04 s after it was asked for" in str(came.answers[1])
    assert came.answers[2] is SENT
    assert line.futures[1].cancelled()
    assert line.timeout_s > 10_000, "the transport is given longer than any training"


def test_what_is_under_way_is_waited_for() -> None:
    """It ends once the wait has begun, of which the agent's clock tells."""
    transfers, line, clock = under_way(1)
    collecting = threading.Event()

    def end() -> None:
        collecting.wait()
        clock.now_s = 7.0
        line.futures[1].set_result(SENT)

    ending = threading.Thread(target=end)
    ending.start()
    clock.now_s, clock.on_look = 2.0, collecting.set
    came = collect(transfers, patience_s=3600.0)
    ending.join()
    assert came.answers == {1: SENT}
    assert came.took_s == {1: 7.0}
    assert came.hidden_s in (2.0, 7.0), "the clock may have gone on before the wait began"


def test_what_is_no_fault_of_the_network_is_told_and_costs_one_neighbour(caplog: pytest.LogCaptureFixture) -> None:
    transfers, line, _ = under_way(1, 2)
    line.futures[1].set_exception(MemoryError("no room"))
    line.futures[2].set_result(SENT)
    came = collect(transfers, patience_s=1.0)
    assert str(came.answers[1]) == "fetching from agent 1 failed: MemoryError: no room"
    assert came.answers[2] is SENT
    [told] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert told.exc_info
    assert told.exc_info[0] is MemoryError


def test_what_was_held_travelled_not() -> None:
    transfers, line, _ = under_way(1, held=SENT)
    line.futures[1].set_result(SENT)
    assert collect(transfers, patience_s=1.0).num_bytes == {1: 0}


def test_dropping_one_leaves_the_others_and_closing_none() -> None:
    transfers, line, _ = under_way(1, 2, 3)
    transfers.drop(2)
    transfers.drop(7)
    assert transfers.peers == {1, 3}
    assert [future.cancelled() for future in line.futures.values()] == [False, True, False]
    transfers.close()
    transfers.close()
    assert all(future.cancelled() for future in line.futures.values())


# ------------------------------------------------------------------------------------------------- agents, two of them

ROW = {0: 0.5, 1: 0.5}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Agent, Agent]]:
    """Two agents over memory that copies; nobody runs them but the test."""
    config = load_config(
        None,
        [
            "task.model.name=mlp", "task.model.hidden=[16]", "agents=2", "topology.graph=complete",
            "merge.align=none", "exchange.mode=async", "exchange.overlap=true",
        ],
    )  # fmt: skip
    hub = MemoryHub()
    agents = [
        build_agent(config, number, tmp_path, "s", lambda schema, n=number: MemoryTransport(n, "s", schema, hub))
        for number in range(2)
    ]
    for agent in agents:
        agent.transport.start()
        agent.basis_settled = True
    yield agents[0], agents[1]
    for agent in agents:
        agent.transport.close()


def publish(agent: Agent, number: int) -> None:
    """A snapshot all of whose weights are its round."""
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.fill_(number)
    agent.publish("snapshot", number)


def merge(agent: Agent, number: int) -> Gathered:
    return drive(gather_newest(agent, number, ROW, PhaseClock(agent.status)), lambda wait: wait_on_network(agent, wait))


def merged_with(gathered: Gathered) -> float:
    [value] = {float(value) for tensor in gathered.states[1].values() for value in tensor.unique()}
    return value


def test_merged_is_what_there_was_when_training_began_weighed_by_its_age(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    publish(other, 1)
    fetch_ahead(me, 2)
    publish(other, 2)
    gathered = merge(me, 2)
    assert merged_with(gathered) == 1
    assert gathered.weights == pytest.approx({0: 1 - 0.5 * 2**-0.5, 1: 0.5 * 2**-0.5})
    assert me.ahead is None


def test_without_overlap_it_is_what_there_is_when_training_has_ended(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    exchange = me.config.exchange.model_copy(update={"overlap": False})
    me.config = me.config.model_copy(update={"exchange": exchange})
    publish(other, 1)
    fetch_ahead(me, 2)
    publish(other, 2)
    assert merged_with(merge(me, 2)) == 2


def test_a_snapshot_is_read_once_and_merged_with_until_there_is_a_newer_one(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    publish(other, 1)
    seen = []
    for number in (1, 2, 3):
        gathered = merge(me, number)
        seen.append((merged_with(gathered), gathered.weights[1], gathered.bytes_received))
    size = me.schema.num_bytes
    assert seen == [(1, 0.5, {1: size}), (1, 0.5 * 2**-0.5, {1: 0}), (1, 0.5 * 3**-0.5, {1: 0})]
    publish(other, 3)
    assert merge(me, 4).bytes_received == {1: size}
    other.transport.close()
    assert 1 in merge(me, 5).missing
    other.transport.start()
    assert merge(me, 6).bytes_received == {1: size}, "what it held is held no more once a fetch has failed"


def test_one_that_is_too_old_to_merge_with_is_not_read_again_either(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    publish(other, 1)
    for number, received in ((12, me.schema.num_bytes), (13, 0)):
        gathered = merge(me, number)
        assert "rounds old" in gathered.missing[1]
        assert gathered.bytes_received == {1: received}


def test_deadlines_follow_the_transfers_of_models_alone(pair: tuple[Agent, Agent]) -> None:
    """Were the moments that «still the same» takes among them, the next model would be cut short."""
    me, other = pair
    merge(me, 1)
    assert ("fetched", 1) not in me.past.waits, "there was nothing to read"
    for number in (2, 3, 4):
        publish(other, number)
        for _ in range(3):
            merge(me, number)
    assert len(me.past.waits["fetched", 1]) == 3


@pytest.mark.parametrize("what", ["held", "on its way"])
def test_a_buffer_has_one_use_at_a_time(pair: tuple[Agent, Agent], what: str) -> None:
    """A basis comes into the memory that snapshots come into: what lay there is read anew."""
    me, other = pair
    publish(other, 1)
    merge(me, 1)
    if what == "on its way":
        fetch_ahead(me, 2)
    publish(other, 9)
    other.publish("basis", 0)
    publish(other, 1)
    assert isinstance(me.transport.gather((me.fetch_from(1, "basis", 0),), 1.0)[1], Payload)
    gathered = merge(me, 2)
    assert gathered.bytes_received == {1: me.schema.num_bytes}
    assert merged_with(gathered) == 9


def test_a_neighbour_that_came_while_the_agent_trained_is_read_when_it_has(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    publish(other, 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Agent, "row", lambda agent, number: {0: 1.0})
        fetch_ahead(me, 2)
    assert me.ahead is None, "there is nobody to read"
    assert merged_with(merge(me, 2)) == 1


def test_one_that_left_the_graph_while_the_agent_trained_is_not_merged_with(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    publish(other, 1)
    fetch_ahead(me, 2)
    steps = gather_newest(me, 2, {0: 1.0}, PhaseClock(me.status))
    gathered = drive(steps, lambda wait: wait_on_network(me, wait))
    assert (gathered.states, gathered.weights, gathered.missing) == ({}, {0: 1.0}, {})


def test_nothing_is_fetched_ahead_of_an_agreement_on_a_basis_or_where_nobody_merges(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    publish(other, 1)
    me.basis_settled = False
    fetch_ahead(me, 2)
    assert me.ahead is None
    me.basis_settled = True
    me.config = me.config.model_copy(update={"merge": me.config.merge.model_copy(update={"every": 2})})
    fetch_ahead(me, 3)
    assert me.ahead is None
    fetch_ahead(me, 4)
    assert me.ahead is not None


def test_one_that_does_not_answer_is_not_fetched_from_ahead_either(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    other.transport.close()
    asked: list[int] = []
    honest = me.transport.begin

    def spy(fetches: tuple[Fetch, ...], timeout_s: float) -> Any:
        asked.extend(fetch.during or 0 for fetch in fetches)
        return honest(fetches, timeout_s)

    me.transport.begin = spy  # type: ignore[method-assign]
    for number in range(1, 17):
        fetch_ahead(me, number)
        assert 1 in merge(me, number).missing
    assert asked == [1, 2, 4, 8, 16]


def test_what_ends_a_round_ends_its_transfers(pair: tuple[Agent, Agent]) -> None:
    me, _ = pair
    transfers, line, _ = under_way(1)
    with pytest.raises(KeyboardInterrupt), no_transfer_left(me):
        me.ahead = transfers
        raise KeyboardInterrupt
    assert line.futures[1].cancelled()
    assert me.ahead is None
