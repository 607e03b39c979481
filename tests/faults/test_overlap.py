"""Transfers beside training over a bad network: that they do go on beside it, and end with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from relay import Relay

import dimat.agent.round
from dimat.agent.build import build_agent
from dimat.agent.round import run_round
from dimat.agent.state import Agent
from dimat.agent.steps import Steps, drive
from dimat.agent.waiting import wait_on_network
from dimat.config import load_config
from dimat.errors import Interrupted, PeerUnavailable
from dimat.messages import Header, Payload
from dimat.snapshot.encode import decode, encode
from dimat.transport.base import Buffer, Fetch
from dimat.transport.grpc import GrpcTransport

SETTINGS = [
    "task.model.name=mlp", "task.model.hidden=[256]", "train.epochs=1", "train.batch_size=500", "agents=2",
    "topology.graph=complete", "merge.align=none", "exchange.mode=async", "exchange.overlap=true",
]  # fmt: skip


class Pair:
    """Agent 0, agent 1 that reads it through a relay; nobody runs them but the test."""

    def __init__(self, folder: Path) -> None:
        config = load_config(None, SETTINGS)

        def door(number: int) -> Any:
            return lambda schema: GrpcTransport(number, "s", schema, frame_bytes=1 << 14)

        self.other, self.me = (build_agent(config, number, folder, "s", door(number)) for number in range(2))
        self.relay = Relay(self.other.transport.start())
        self.me.transport.start()
        self.me.transport.connect({0: self.relay.start()})
        self.other.publish("snapshot", 1)
        self.me.transport.describe(0, 30.0)  # the line stands
        self.futures: dict[int, Future[Any]] = {}
        honest = self.me.transport.begin

        def spy(fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Future[Any]]:
            self.futures = honest(fetches, timeout_s)
            return self.futures

        self.me.transport.begin = spy  # type: ignore[method-assign]

    def close(self) -> None:
        self.me.transport.close()
        self.relay.close()
        self.other.transport.close()

    def fetch(self, into: Buffer) -> Fetch:
        return Fetch(0, "snapshot", None, into)

    def begin(self, into: Buffer, num_bytes: int = 0) -> Future[Any]:
        """A transfer of which so many bytes have passed."""
        before = self.relay.num_bytes
        future = self.me.transport.begin((self.fetch(into),), 3600.0)[0]
        while self.relay.num_bytes - before < num_bytes:
            time.sleep(0.01)  # the relay has no event for this
        return future


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def round_of(agent: Agent, number: int) -> Any:
    return drive(run_round(agent, number), lambda wait: wait_on_network(agent, wait))


def test_a_snapshot_that_is_still_the_newest_sends_no_tensor(pair: Pair) -> None:
    buffer = Buffer(pair.me.schema)
    held = pair.me.transport.gather((pair.fetch(buffer),), 30.0)[0]
    assert isinstance(held, Payload)
    before = pair.relay.num_bytes
    again = Fetch(0, "snapshot", None, buffer, held=held)
    assert pair.me.transport.gather((again,), 30.0)[0] is held
    assert pair.relay.num_bytes - before < 3000 < held.num_bytes / 20


def test_the_transfer_goes_on_while_the_agent_trains(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is silent until training has begun, and training does not end before the model is there."""
    honest = dimat.agent.round.train

    def train(agent: Agent, number: int) -> Steps[float]:
        pair.relay.heal()
        assert isinstance(pair.futures[0].result(timeout=60.0), Payload)
        return (yield from honest(agent, number))

    monkeypatch.setattr(dimat.agent.round, "train", train)
    pair.relay.silence()
    report = round_of(pair.me, 2)
    assert report.weights == pytest.approx({0: 0.5 * 2**-0.5, 1: 1 - 0.5 * 2**-0.5}), "published a round ago"
    assert report.bytes_received == {0: pair.me.schema.num_bytes}
    assert report.metrics["hidden_s"] > 0
    assert report.seconds["gather"] < report.metrics["hidden_s"]


def test_what_is_under_way_when_training_ends_is_waited_for(pair: Pair) -> None:
    """The line is silent until the round has begun to gather."""

    def entering(round: int, phase: str) -> None:
        del round
        if phase == "gather":
            pair.relay.heal()

    pair.relay.silence()
    pair.me.status.on_phase = entering
    report = round_of(pair.me, 2)
    assert set(report.weights) == {0, 1}
    assert pair.futures, "begun before"


def test_training_that_fails_takes_its_transfers_with_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(model: object, batch: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pair.me.task, "loss", loss)
    pair.relay.silence()
    with pytest.raises(RuntimeError, match="out of memory"):
        round_of(pair.me, 2)
    assert pair.futures[0].cancelled()
    assert pair.me.ahead is None


def test_a_stop_in_the_middle_of_a_round_takes_its_transfers_with_it(pair: Pair) -> None:
    def stop(wait: object) -> frozenset[int]:
        raise Interrupted("stopped by the user")

    pair.relay.silence()
    with pytest.raises(Interrupted) as stopped:
        drive(run_round(pair.me, 2), stop)
    assert pair.futures[0].cancelled()
    assert stopped.tb, "with it the steps are still alive: it is not their end that has ended the transfers"


def test_a_door_that_closes_ends_what_comes_through_it(pair: Pair) -> None:
    """A transfer that has an hour; the test's own limit is the oracle."""
    pair.relay.bytes_per_s = 50_000.0
    future = pair.begin(Buffer(pair.me.schema), num_bytes=20_000)
    pair.me.transport.close()
    assert isinstance(future.result(timeout=60.0), PeerUnavailable)


def test_a_buffer_is_free_once_what_came_into_it_was_cancelled(pair: Pair) -> None:
    """The first transfer stops in the middle; the second one, of another round, is whole."""
    buffer = Buffer(pair.me.schema)
    pair.relay.bytes_per_s = 100_000.0
    future = pair.begin(buffer, num_bytes=20_000)
    future.cancel()
    newer = {name: torch.full_like(tensor, 7) for name, tensor in pair.other.model.state_dict().items()}
    pair.other.transport.publish(encode(newer, Header("snapshot", 2, 0)))
    pair.relay.bytes_per_s = None
    answer = pair.me.transport.gather((pair.fetch(buffer),), 60.0)[0]
    assert isinstance(answer, Payload)
    assert answer.header.round == 2
    assert all(bool((tensor == 7).all()) for tensor in decode(answer).values())


def test_no_thread_is_left_of_a_run_that_overlaps(pair: Pair) -> None:
    before = {thread.name for thread in threading.enumerate()}
    for number in (2, 3):
        assert round_of(pair.me, number).missing == {}
    assert {thread.name for thread in threading.enumerate()} <= before
