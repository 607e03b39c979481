"""Neighbours over a bad network: slow, late, cut in the middle of a model, silent; and the relay that makes it so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from relay import Relay

from dimat.errors import PeerUnavailable
from dimat.messages import Header, Payload
from dimat.snapshot.encode import decode, encode, schema_of
from dimat.transport.base import Buffer, Fetch, Wait
from dimat.transport.grpc import GrpcTransport

STATE = {"w": torch.arange(300_000.0), "b": torch.ones(7)}
SCHEMA = schema_of(STATE)
Line = tuple[GrpcTransport, GrpcTransport, Relay]


@pytest.fixture
def line() -> Iterator[Line]:
    """Agent 0, agent 1 that reads it through a relay, and the relay."""
    alice, bob = (GrpcTransport(agent, f"s{agent}", SCHEMA, frame_bytes=1 << 14) for agent in (0, 1))
    relay = Relay(alice.start())
    bob.start()
    bob.connect({0: relay.start()})
    alice.publish(encode(STATE, Header("snapshot", 1, 0)))
    yield alice, bob, relay
    bob.close()
    relay.close()
    alice.close()


def fetch(reader: GrpcTransport, timeout_s: float = 60.0) -> object:
    return reader.gather((Fetch(0, "snapshot", 1, Buffer(SCHEMA)),), timeout_s)[0]


def assert_whole(answer: object) -> None:
    assert isinstance(answer, Payload), answer
    assert torch.equal(decode(answer)["w"], STATE["w"])


def test_a_model_passes_a_relay_whole_and_is_acknowledged(line: Line) -> None:
    alice, bob, relay = line
    assert_whole(fetch(bob))
    assert relay.num_bytes > SCHEMA.num_bytes
    assert alice.wait(Wait("acknowledged", (1,), "snapshot", 1, 10.0)) == {1}


def test_delay_and_bandwidth_cost_what_they_say(line: Line) -> None:
    """Lower bounds only: a busy machine is slower still."""
    _, bob, relay = line
    bob.describe(0, 10.0)
    relay.delay_s = 0.1
    started = time.monotonic()
    bob.describe(0, 10.0)
    assert time.monotonic() - started >= 0.2, "there and back"
    relay.delay_s, relay.bytes_per_s = 0.0, 1_200_000.0
    started = time.monotonic()
    assert_whole(fetch(bob))
    assert time.monotonic() - started >= 0.9


def test_held_chunks_come_in_order(line: Line) -> None:
    _, bob, relay = line
    relay.stall_share, relay.stall_s = 0.3, 0.02
    assert_whole(fetch(bob))


def test_a_link_that_is_cut_in_the_middle_of_a_model_is_resumed(line: Line) -> None:
    """What had come is not sent again."""
    _, bob, relay = line
    bob.describe(0, 10.0)
    relay.bytes_per_s = 400_000.0
    before = relay.num_bytes
    answers: list[object] = []
    reading = threading.Thread(target=lambda: answers.append(fetch(bob)))
    reading.start()
    while relay.num_bytes - before < SCHEMA.num_bytes // 2:
        time.sleep(0.01)  # the relay has no event for this
    relay.cut()
    relay.bytes_per_s = None
    relay.heal()
    reading.join(timeout=60.0)
    assert_whole(answers[0])
    assert relay.num_bytes - before < 1.6 * SCHEMA.num_bytes


def test_a_cut_link_is_told_and_heals_without_a_restart(line: Line) -> None:
    alice, bob, relay = line
    assert_whole(fetch(bob))
    relay.cut()
    assert isinstance(fetch(bob, timeout_s=0.5), PeerUnavailable)
    assert bob.wait(Wait("published", (0,), "snapshot", 2, 0.3)) == frozenset()
    relay.heal()
    alice.publish(encode(STATE, Header("snapshot", 2, 0)))
    assert bob.wait(Wait("published", (0,), "snapshot", 2, 30.0)) == {0}
    assert_whole(fetch(bob))


def test_a_link_that_says_nothing_costs_the_deadline_and_no_more(line: Line) -> None:
    _, bob, relay = line
    assert_whole(fetch(bob))
    relay.silence()
    assert isinstance(fetch(bob, timeout_s=0.5), PeerUnavailable)
    relay.heal()
    assert_whole(fetch(bob))
