"""What every transport promises, tried on each: in memory and over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from dimat.errors import PayloadError, PeerUnavailable, RoundGone, TransportError
from dimat.faults import FaultyTransport
from dimat.messages import Header, Payload, Schema, Tensor, digest
from dimat.snapshot.encode import DTYPES, decode, encode, schema_of
from dimat.transport.base import CLOSED, Buffer, Fetch, Transport, Wait
from dimat.transport.grpc import GrpcTransport
from dimat.transport.memory import MemoryHub, MemoryTransport

Make = Callable[..., list[Transport]]
State = Mapping[str, torch.Tensor]


@pytest.fixture(params=["memory", "lending-memory", "grpc", "grpc-1KiB", "faulty-memory", "faulty-grpc"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes started transports, one per schema, that know each other; closes them in the end."""
    made: list[Transport] = []
    hub = MemoryHub()

    def make(*schemas: Schema) -> list[Transport]:
        for agent, schema in enumerate(schemas):
            door: Transport
            if request.param.endswith("memory"):
                lends = request.param.startswith("lending")
                door = MemoryTransport(agent, f"session-{agent}", schema, hub, lends=lends)
            else:
                frame_bytes = 1 << 10 if request.param == "grpc-1KiB" else 1 << 20
                door = GrpcTransport(agent, f"session-{agent}", schema, frame_bytes=frame_bytes)
            # A fault plan that has nothing to say yet changes nothing.
            made.append(FaultyTransport(door, agent, ()) if request.param.startswith("faulty") else door)
        addresses = dict(enumerate([transport.start() for transport in made]))
        for agent, transport in enumerate(made):
            transport.connect({peer: address for peer, address in addresses.items() if peer != agent})
        return made

    yield make
    for transport in made:
        transport.close()


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.full((30, 20), float(value)), "fc.bias": torch.arange(30.0), "steps": torch.tensor(7)}


def snapshot(tensors: State, round_: int = 1, agent: int = 0, kind: str = "snapshot") -> Payload:
    return encode(tensors, Header(kind, round_, agent))


def fetch(
    reader: Transport, schema: Schema, round_: int | None = 1, peer: int = 0, kind: str = "snapshot"
) -> Payload | TransportError:
    return reader.gather((Fetch(peer, kind, round_, Buffer(schema)),), timeout_s=30.0)[peer]


def fetched(*args: object, **kwargs: object) -> Payload:
    answer = fetch(*args, **kwargs)  # type: ignore[arg-type]
    if isinstance(answer, TransportError):
        raise answer
    return answer


def spoil(payload: Payload, name: str, spoilt: Callable[[bytearray], None], *, checksum: bool) -> Payload:
    """`payload` with the bytes of one tensor changed, and its checksum made anew or not."""
    tensors = []
    for tensor in payload.tensors:
        if tensor.spec.name == name:
            data = bytearray(tensor.data)
            spoilt(data)
            tensor = Tensor(tensor.spec, memoryview(data), digest(data) if checksum else tensor.checksum)
        tensors.append(tensor)
    return Payload(payload.header, tuple(tensors))


def test_what_is_fetched_is_what_was_published(make: Make) -> None:
    """All dtypes, scalars, empty tensors, many tiny ones, and one of several frames."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {f"scalar.{name}": torch.ones((), dtype=dtype) for name, dtype in DTYPES.items()}
    tensors |= {"empty": torch.empty(0, 4), "empty.bool": torch.empty(0, dtype=torch.bool)}
    tensors |= {f"norm.{number}.bias": torch.full((number % 7,), float(number)) for number in range(200)}
    tensors |= {"large": torch.randn(700, 900, generator=generator), "last.empty": torch.empty(0)}
    schema = schema_of(tensors)
    alice, bob = make(schema, schema)
    alice.publish(snapshot(tensors))
    received = decode(fetched(bob, schema))
    assert list(received) == list(tensors)
    for name, tensor in tensors.items():
        assert received[name].dtype == tensor.dtype
        assert torch.equal(received[name], tensor), name


def test_the_header_travels(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    header = Header("statistics", 3, 0, {"weight": 0.5, "samples": 17.0})
    alice.publish(encode(state(), header))
    assert fetched(bob, schema, 3, kind="statistics").header == header


def test_publishing_is_not_touched_by_training(make: Make) -> None:
    model = state()
    schema = schema_of(model)
    alice, bob = make(schema, schema)
    alice.publish(snapshot(model))
    model["fc.weight"].zero_()
    assert bool((decode(fetched(bob, schema))["fc.weight"] == 1).all())


def test_newest_and_history(make: Make) -> None:
    """Two rounds of each kind are held; older and later ones are said to be missing."""
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    for round_ in (1, 2, 3):
        alice.publish(snapshot(state(round_), round_))
    alice.publish(snapshot(state(9), 1, kind="basis"))
    assert fetched(bob, schema, None).header.round == 3
    for round_ in (2, 3):
        assert decode(fetched(bob, schema, round_))["fc.weight"][0, 0] == round_
    assert decode(fetched(bob, schema, 1, kind="basis"))["fc.weight"][0, 0] == 9
    for round_ in (1, 4):
        gone = fetch(bob, schema, round_)
        assert isinstance(gone, RoundGone)
        assert f"round {round_}" in str(gone)
        assert "[2, 3]" in str(gone)
    assert isinstance(fetch(bob, schema, None, kind="difference"), RoundGone)


def test_describe(make: Make) -> None:
    schema = schema_of(state(), groups="0123abcd")
    alice, bob = make(schema, schema)
    assert dict(bob.describe(0, timeout_s=30.0).newest) == {}
    alice.publish(snapshot(state(), 4))
    alice.publish(snapshot(state(), 0, kind="basis"))
    description = bob.describe(0, timeout_s=30.0)
    assert (description.agent, description.session, description.schema) == (0, "session-0", schema)
    assert dict(description.newest) == {"basis": 0, "snapshot": 4}


def test_waiting_ends_when_all_have_published(make: Make) -> None:
    schema = schema_of(state())
    *publishers, reader = make(schema, schema, schema)
    told: list[dict[int, str]] = []

    def on_change(missing: Mapping[int, str]) -> None:
        told.append(dict(missing))
        # Whoever is still missing publishes only once the reader was seen to wait for it.
        for agent in missing:
            publishers[agent].publish(snapshot(state(), 2, agent))

    done = reader.wait(Wait("published", (0, 1), "snapshot", 2, timeout_s=20.0), on_change)
    assert done == {0, 1}
    assert set(told[0]) == {0, 1}
    assert told[-1] == {}


def test_a_later_round_counts_as_published(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    alice.publish(snapshot(state(), 5))
    assert bob.wait(Wait("published", (0,), "snapshot", 2, timeout_s=30.0)) == {0}


def test_a_deadline_returns_who_did(make: Make) -> None:
    schema = schema_of(state())
    alice, _, carol = make(schema, schema, schema)
    alice.publish(snapshot(state(), 2))
    told: list[dict[int, str]] = []
    done = carol.wait(
        Wait("published", (0, 1), "snapshot", 2, timeout_s=0.3), lambda missing: told.append(dict(missing))
    )
    assert done == {0}
    assert set(told[-1]) == {1}
    assert all(words for words in told[-1].values())


def test_readers_acknowledge_what_arrived_whole(make: Make) -> None:
    schema = schema_of(state())
    alice, bob, carol = make(schema, schema, schema)
    alice.publish(snapshot(state(), 1))
    wait = Wait("acknowledged", (1, 2), "snapshot", 1, timeout_s=0.05)
    assert alice.wait(wait) == frozenset()
    fetched(bob, schema)
    assert alice.wait(wait) == {1}
    reading = threading.Timer(0.05, lambda: fetched(carol, schema))
    reading.start()
    assert alice.wait(Wait("acknowledged", (1, 2), "snapshot", 1, timeout_s=20.0)) == {1, 2}
    reading.join()


def test_what_did_not_arrive_whole_is_not_acknowledged(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    alice.publish(spoil(snapshot(state()), "fc.bias", lambda data: data.reverse(), checksum=False))
    assert isinstance(fetch(bob, schema), PayloadError)
    assert alice.wait(Wait("acknowledged", (1,), "snapshot", 1, timeout_s=0.05)) == frozenset()


def test_another_schema_is_refused_by_name(make: Make) -> None:
    theirs, mine = state(), state() | {"fc.bias": torch.zeros(31)}
    alice, bob = make(schema_of(theirs), schema_of(mine))
    alice.publish(snapshot(theirs))
    buffer = Buffer(schema_of(mine))
    buffer.view("fc.weight")[:4] = b"mine"
    answer = bob.gather((Fetch(0, "snapshot", 1, buffer),), timeout_s=30.0)[0]
    assert isinstance(answer, PayloadError)
    for words in ("'fc.bias'", "[31]", "[30]", "agent 0", "agent 1"):
        assert words in str(answer)
    assert bytes(buffer.view("fc.weight")[:4]) == b"mine"  # nothing was stored, not even what came before it


@pytest.mark.parametrize(
    ("difference", "named"),
    [
        (lambda mine: {name: mine[name] for name in list(mine)[:-1]}, "'steps'"),
        (lambda mine: mine | {"extra": torch.zeros(1)}, "'extra'"),
        (lambda mine: {"weight": mine["fc.weight"]} | mine, "'weight'"),
        (lambda mine: mine | {"steps": torch.tensor(7.0)}, "float32"),
    ],
)
def test_any_difference_is_refused(make: Make, difference: Callable[[State], State], named: str) -> None:
    theirs = difference(state())
    alice, bob = make(schema_of(theirs), schema_of(state()))
    alice.publish(snapshot(theirs))
    answer = fetch(bob, schema_of(state()))
    assert isinstance(answer, PayloadError)
    assert named in str(answer)


def test_a_wrong_digest_is_refused_by_name(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)

    def flip(data: bytearray) -> None:
        data[9] ^= 1

    alice.publish(spoil(snapshot(state()), "fc.bias", flip, checksum=False))
    answer = fetch(bob, schema)
    assert isinstance(answer, PayloadError)
    assert "digest" in str(answer)
    assert "'fc.bias'" in str(answer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_a_number_is_refused_by_name(make: Make, dtype: torch.dtype, value: float) -> None:
    tensors = {"fine": torch.ones(5, dtype=dtype), "poison": torch.full((50, 50), -1.0, dtype=dtype)}
    tensors["poison"][30, 40] = value
    schema = schema_of(tensors)
    alice, bob = make(schema, schema)
    alice.publish(snapshot(tensors, 6))
    answer = fetch(bob, schema, 6)
    assert isinstance(answer, PayloadError)
    for words in ("NaN or Inf", "'poison'", "agent 0", "round 6"):
        assert words in str(answer)


def test_a_truth_value_is_zero_or_one(make: Make) -> None:
    tensors = {"mask": torch.ones(8, dtype=torch.bool)}
    alice, bob = make(schema_of(tensors), schema_of(tensors))

    def two(data: bytearray) -> None:
        data[3] = 2

    alice.publish(spoil(snapshot(tensors), "mask", two, checksum=True))
    assert isinstance(fetch(bob, schema_of(tensors)), PayloadError)


def test_one_bad_neighbour_does_not_spoil_the_others(make: Make) -> None:
    schema = schema_of(state())
    alice, bob, carol, dave = make(schema, schema, schema, schema)
    alice.publish(snapshot(state(1.0), 1, agent=0))
    bob.publish(snapshot(state(float("nan")), 1, agent=1))
    carol.close()
    fetches = tuple(Fetch(peer, "snapshot", 1, Buffer(schema)) for peer in (0, 1, 2))
    answers = dave.gather(fetches, timeout_s=1.5)
    assert {peer: type(answer) for peer, answer in answers.items()} == {
        0: Payload,
        1: PayloadError,
        2: PeerUnavailable,
    }
    assert "agent 2" in str(answers[2])


def test_an_agent_cannot_publish_as_another(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    alice.publish(snapshot(state(), 1, agent=5))
    assert isinstance(fetch(bob, schema), PayloadError)


def test_what_is_lent_is_the_publishers_own_memory() -> None:
    """Checked on every reading, and copied never: that is what a thousand agents in one process live on."""
    schema, hub = schema_of(state()), MemoryHub()
    alice, bob = (MemoryTransport(agent, "s", schema, hub, lends=True) for agent in (0, 1))
    alice.start(), bob.start()
    sent = snapshot(state())
    alice.publish(sent)
    received = fetched(bob, schema)
    assert all(mine.data is theirs.data for mine, theirs in zip(sent.tensors, received.tensors, strict=True))
    assert alice.readers("snapshot", 1) == {1}


def test_buffers_are_used_again(make: Make, request: pytest.FixtureRequest) -> None:
    lends = request.node.callspec.params["make"] == "lending-memory"
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    buffer = Buffer(schema)
    seen = []
    for round_ in (1, 2):
        alice.publish(snapshot(state(round_), round_))
        answer = bob.gather((Fetch(0, "snapshot", round_, buffer),), timeout_s=30.0)[0]
        assert isinstance(answer, Payload)
        weight = decode(answer)["fc.weight"]
        assert bool((weight == round_).all())
        seen.append(weight.data_ptr())
    own = np.frombuffer(buffer.view("fc.weight"), np.uint8).ctypes.data
    # What is lent is read where its publisher keeps it, and the buffer stays empty.
    assert (own not in seen) if lends else (seen == [own, own])


def lending(request: pytest.FixtureRequest) -> bool:
    """Whether the transport under test reads where the publisher keeps it, and leaves buffers alone."""
    return bool(request.node.callspec.params["make"] == "lending-memory")


@pytest.mark.parametrize("asked", [None, 1])
def test_what_is_held_and_would_be_sent_again_is_the_answer(make: Make, asked: int | None) -> None:
    """The mark in the buffer is the oracle: nothing is written to it."""
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    alice.publish(snapshot(state()))
    buffer = Buffer(schema)
    held = bob.gather((Fetch(0, "snapshot", asked, buffer),), timeout_s=30.0)[0]
    assert isinstance(held, Payload)
    buffer.view("fc.weight")[:4] = b"mark"
    again = Fetch(0, "snapshot", asked, buffer, held=held)
    answer = bob.gather((again,), timeout_s=30.0)[0]
    assert answer is held
    assert again.num_bytes(answer) == 0
    assert bytes(buffer.view("fc.weight")[:4]) == b"mark"


def test_who_still_holds_it_is_known_to_have_read_what_was_published_again(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    alice.publish(snapshot(state()))
    held = fetched(bob, schema, None)
    alice.publish(snapshot(state()))
    wait = Wait("acknowledged", (1,), "snapshot", 1, timeout_s=0.05)
    assert alice.wait(wait) == frozenset()
    assert bob.gather((Fetch(0, "snapshot", None, Buffer(schema), held=held),), timeout_s=30.0)[0] is held
    assert alice.wait(replace(wait, timeout_s=20.0)) == {1}


@pytest.mark.parametrize(
    "newer",
    [
        pytest.param(encode(state(2.0), Header("snapshot", 2, 0)), id="a later round"),
        pytest.param(encode(state(2.0), Header("snapshot", 1, 0)), id="the same round, done again"),
        pytest.param(encode(state(1.0), Header("snapshot", 1, 0, {"weight": 0.5})), id="another number in the header"),
    ],
)
def test_what_is_held_and_is_not_the_newest_is_replaced(
    make: Make, newer: Payload, request: pytest.FixtureRequest
) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    alice.publish(snapshot(state()))
    buffer = Buffer(schema)
    held = bob.gather((Fetch(0, "snapshot", None, buffer),), timeout_s=30.0)[0]
    assert isinstance(held, Payload)
    alice.publish(newer)
    again = Fetch(0, "snapshot", None, buffer, held=held)
    answer = bob.gather((again,), timeout_s=30.0)[0]
    assert isinstance(answer, Payload)
    assert answer.header == newer.header
    assert again.num_bytes(answer) == schema.num_bytes
    for name, tensor in decode(newer).items():
        assert torch.equal(decode(answer)[name], tensor)
    assert lending(request) or decode(answer)["fc.weight"].data_ptr() == decode(held)["fc.weight"].data_ptr()


def test_who_is_gone_is_gone_whatever_is_held_of_it(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    alice.publish(snapshot(state()))
    held = fetched(bob, schema)
    alice.close()
    again = Fetch(0, "snapshot", None, Buffer(schema), held=held)
    assert isinstance(bob.gather((again,), timeout_s=0.5)[0], PeerUnavailable)


def test_fetches_that_were_begun_bring_what_gathering_brings(make: Make) -> None:
    schema = schema_of(state())
    alice, bob, _, dave = make(schema, schema, schema, schema)
    alice.publish(snapshot(state(3.0), 2))
    bob.publish(snapshot(state(float("nan")), 2, agent=1))
    futures = dave.begin(tuple(Fetch(peer, "snapshot", None, Buffer(schema)) for peer in (0, 1, 2)), timeout_s=30.0)
    answers = {peer: future.result(timeout=30.0) for peer, future in futures.items()}
    assert {peer: type(answer) for peer, answer in answers.items()} == {0: Payload, 1: PayloadError, 2: RoundGone}
    assert isinstance(answers[0], Payload)
    assert bool((decode(answers[0])["fc.weight"] == 3).all())
    assert alice.wait(Wait("acknowledged", (3,), "snapshot", 2, timeout_s=20.0)) == {3}


def test_readers_see_the_old_one_or_the_new_one(make: Make) -> None:
    """While rounds are published as fast as they come, every fetch is of one round from its first byte to its last."""
    tensors = {f"w{number}": torch.zeros(20_000) for number in range(5)}
    schema = schema_of(tensors)
    alice, *readers = make(schema, schema, schema)
    alice.publish(snapshot(tensors, 0))
    done, problems, num_read = threading.Event(), [], [0, 0]

    def read(index: int, reader: Transport) -> None:
        while not done.is_set():
            payload = fetched(reader, schema, None)
            values = {float(value) for tensor in decode(payload).values() for value in tensor.unique()}
            num_read[index] += 1
            if values != {float(payload.header.round)}:
                problems.append((payload.header.round, values))

    threads = [threading.Thread(target=read, args=pair) for pair in enumerate(readers)]
    for thread in threads:
        thread.start()
    round_ = 0
    while min(num_read) < 5 and any(thread.is_alive() for thread in threads):
        round_ += 1
        alice.publish(snapshot({name: torch.full_like(tensor, round_) for name, tensor in tensors.items()}, round_))
    done.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert min(num_read) >= 5


def test_closing_twice_and_after(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    alice.publish(snapshot(state()))
    alice.close()
    alice.close()
    assert isinstance(bob.gather((Fetch(0, "snapshot", 1, Buffer(schema)),), timeout_s=0.3)[0], PeerUnavailable)
    with pytest.raises(PeerUnavailable, match="agent 0"):
        bob.describe(0, timeout_s=0.3)


def test_an_unknown_peer_is_named(make: Make) -> None:
    schema = schema_of(state())
    _, bob = make(schema, schema)
    with pytest.raises(PeerUnavailable, match="agent 7"):
        bob.describe(7, timeout_s=0.1)
    assert isinstance(fetch(bob, schema, peer=7), PeerUnavailable)
    assert bob.wait(Wait("published", (7,), "snapshot", 1, timeout_s=0.1)) == frozenset()


def test_who_has_gone_on_to_a_later_round_is_not_waited_for(make: Make) -> None:
    """It has given up on this one: waiting for it would make this agent late in every round that follows."""
    schema = schema_of(state())
    alice, bob, carol = make(schema, schema, schema)
    alice.publish(snapshot(state(), 1))
    fetched(carol, schema)
    bob.publish(snapshot(state(), 2, 1))
    # Waiting for bob to the end would outlast the test's own limit.
    assert alice.wait(Wait("acknowledged", (1, 2), "snapshot", 1, timeout_s=3600.0)) == {2}


def test_the_acknowledgement_of_one_that_has_closed_the_round_is_not_waited_for(make: Make) -> None:
    """It has given up on it and trains; without this, who is late once waits for it in every round and stays late."""
    schema = schema_of(state())
    alice, bob, carol = make(schema, schema, schema)
    alice.publish(snapshot(state(), 1))
    bob.publish(Payload(Header(CLOSED, 1, 1), ()))
    fetched(carol, schema)
    closing = threading.Timer(0.3, lambda: bob.publish(Payload(Header(CLOSED, 2, 1), ())))
    wait = Wait("acknowledged", (1, 2), "snapshot", 1, timeout_s=3600.0)
    assert alice.wait(wait) == {2}
    alice.publish(snapshot(state(), 2))
    fetched(carol, schema, 2)
    closing.start()
    assert alice.wait(replace(wait, round=2)) == {2}, "it closes while it is waited for"
    closing.join()
    assert alice.wait(replace(wait, what="published", peers=(1,), timeout_s=0.05)) == frozenset(), "no snapshot"


def test_the_newest_there_is_can_be_asked_for_without_knowing_its_round(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    for round_ in (3, 7):
        alice.publish(snapshot(state(float(round_)), round_))
        alice.publish(Payload(Header(CLOSED, round_, 0), ()))
    assert bob.describe(0, timeout_s=5.0).newest == {CLOSED: 7, "snapshot": 7}
    received = fetched(bob, schema, None)
    assert received.header.round == 7
    assert alice.wait(Wait("acknowledged", (1,), "snapshot", 7, timeout_s=20.0)) == {1}


@pytest.mark.parametrize("what", ["published", "acknowledged"])
def test_nobody_waits_for_peers_that_are_presumed_gone(make: Make, what: str) -> None:
    """Those that came are still told apart; a wait that has begun ends, too, when another thread says so."""
    schema = schema_of(state())
    alice, bob, _ = make(schema, schema, schema)
    alice.publish(snapshot(state(), 1))
    bob.publish(snapshot(state(), 1, agent=1))
    if what == "acknowledged":
        fetched(bob, schema)
    wait = Wait(what, (1, 2), "snapshot", 1, timeout_s=30.0)  # type: ignore[arg-type]
    teller = threading.Timer(0.3, lambda: alice.presume_gone(frozenset({2})))
    teller.start()
    assert alice.wait(wait) == {1}  # the whole 30 s would run into this test's own limit
    teller.join()
    alice.presume_gone(frozenset())
    assert alice.wait(Wait(what, (2,), "snapshot", 1, timeout_s=0.1)) == frozenset()  # type: ignore[arg-type]


def test_a_peer_that_comes_back_elsewhere_is_found_by_those_who_wait(make: Make) -> None:
    schema = schema_of(state())
    alice, bob = make(schema, schema)
    bob.close()
    door = bob.inner if isinstance(bob, FaultyTransport) else bob
    again = (
        MemoryTransport(1, "again", schema, door._hub)
        if isinstance(door, MemoryTransport)
        else GrpcTransport(1, "again", schema)
    )
    try:
        address = again.start()

        def come_back() -> None:
            again.publish(snapshot(state(), 1, agent=1))
            alice.connect({1: address})

        teller = threading.Timer(0.3, come_back)
        teller.start()
        assert alice.wait(Wait("published", (1,), "snapshot", 1, timeout_s=30.0)) == {1}
        teller.join()
        assert decode(fetched(alice, schema, peer=1))["steps"] == 7
    finally:
        again.close()
