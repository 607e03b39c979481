"""The reader against peers that break off, lie or overflow; the server and where it listens."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dimat.errors import PayloadError, PeerUnavailable, RoundGone, TransportError, UsageError
from dimat.messages import Header, Payload, Schema, Tensor, TensorSpec, digest
from dimat.proto.v1 import peer_pb2
from dimat.transport.base import Buffer, Fetch, Wait
from dimat.transport.grpc import GrpcTransport, convert
from dimat.transport.grpc.frames import data_frame, frames
from dimat.transport.grpc.loop import LoopThread

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def payload(num_entries: int = 10_000, round_: int = 1) -> Payload:
    """A large tensor of several frames between two small ones."""
    tensors = []
    for name, size in (("first", 3), ("large", num_entries), ("last", 5)):
        data = memoryview(np.arange(size, dtype="<f4") + round_).cast("B")
        tensors.append(Tensor(TensorSpec(name, "float32", (size,)), data, digest(data)))
    return Payload(Header("snapshot", round_, 0), tuple(tensors))


def read(reader: GrpcTransport, sent: Payload, round_: int | None = 1, timeout_s: float = 30.0) -> Any:
    return reader.gather((Fetch(0, "snapshot", round_, Buffer(sent.schema)),), timeout_s)[0]


def same(one: Payload, other: Payload) -> bool:
    return [bytes(t.data) for t in one.tensors] == [bytes(t.data) for t in other.tensors]


# ------------------------------------------------------------------------------------------------------ broken streams


def test_a_broken_stream_goes_on_where_it_stopped(scripted_peer: Any) -> None:
    """Each call breaks after seven data frames: no byte is sent twice, and the round stays the one first announced."""
    sent = payload()

    def script(number: int, right: list[bytes]) -> list[Any]:
        return right if len(right) <= 8 else [*right[:8], UNAVAILABLE]

    with scripted_peer(sent, script) as (peer, reader):
        received = read(reader, sent, round_=None)
        assert same(received, sent)
    assert peer.positions == list(range(0, sent.num_bytes, 7 * 1024))
    assert peer.rounds == [None] + [1] * (len(peer.positions) - 1)


def test_a_stream_that_brings_nothing_is_given_up(scripted_peer: Any) -> None:
    sent = payload()
    start = time.monotonic()
    with scripted_peer(sent, lambda number, right: [*right[: 4 if number == 0 else 1], UNAVAILABLE]) as (peer, reader):
        answer = read(reader, sent, timeout_s=60.0)
    assert isinstance(answer, PeerUnavailable)
    assert "agent 0" in str(answer)
    assert f"{3 * 1024} of {sent.num_bytes} bytes" in str(answer)
    assert len(peer.positions) == 7  # the first, and six that brought nothing
    assert time.monotonic() - start < 30.0  # long before the deadline


def test_the_deadline_ends_a_stream_that_hangs(scripted_peer: Any) -> None:
    sent = payload()
    hanging = threading.Event()

    def script(number: int, right: list[bytes]) -> Iterator[Any]:
        yield from right[:3]
        hanging.set()
        while True:  # the peer says the same again and again until it is hung up on
            yield peer_pb2.Frame(announcement=convert.announcement(sent)).SerializeToString()

    with scripted_peer(sent, script) as (_, reader):
        answer = read(reader, sent, timeout_s=1.0)
    assert hanging.is_set()
    assert isinstance(answer, PeerUnavailable)
    assert "deadline" in str(answer)


def test_a_snapshot_that_changes_between_two_tries_is_refused(scripted_peer: Any) -> None:
    first, second = payload(), payload(round_=1)
    changed = bytearray(second.tensors[1].data)
    changed[0] ^= 1
    tensor = Tensor(second.tensors[1].spec, memoryview(changed), digest(changed))
    second = Payload(second.header, (second.tensors[0], tensor, second.tensors[2]))

    def script(number: int, right: list[bytes]) -> list[Any]:
        return [*right[:4], UNAVAILABLE] if number == 0 else list(frames(second, 3 * 1024, 1024))

    with scripted_peer(first, script) as (_, reader):
        answer = read(reader, first)
    assert isinstance(answer, PayloadError)
    assert "replaced" in str(answer)


def hold(reader: GrpcTransport, sent: Payload) -> tuple[Buffer, Payload]:
    """What the reader has of `sent` after reading it, and where."""
    buffer = Buffer(sent.schema)
    held = reader.gather((Fetch(0, "snapshot", None, buffer),), 30.0)[0]
    assert isinstance(held, Payload)
    return buffer, held


def test_what_is_held_is_recognised_over_broken_streams_and_by_peers_that_send_everything(scripted_peer: Any) -> None:
    """The scripted peer is as old as the field is new: the reader hangs up on what it has already."""
    sent = payload()

    with scripted_peer(sent, lambda number, right: [UNAVAILABLE] if number == 1 else right) as (peer, reader):
        buffer, held = hold(reader, sent)
        buffer.view("large")[:4] = b"mark"
        assert reader.gather((Fetch(0, "snapshot", None, buffer, held=held),), 30.0)[0] is held
        assert bytes(buffer.view("large")[:4]) == b"mark"
    assert peer.positions == [0, 0, 0]
    assert peer.held == [None, held.identity, held.identity]


def test_who_says_what_it_holds_is_sent_the_announcement_alone() -> None:
    sent, others = payload(), payload(round_=2)
    alice = GrpcTransport(0, "a", sent.schema)
    alice.publish(sent)
    with grpc.insecure_channel(alice.start()) as channel:
        call = channel.unary_stream("/dimat.v1.Peer/Fetch", request_serializer=peer_pb2.FetchRequest.SerializeToString)
        num_frames = []
        for held in (sent.identity, others.identity, b"", b"x" * 1000):
            request = peer_pb2.FetchRequest(reader=1, kind="snapshot", held=held)
            num_frames.append(len(list(call(request, timeout=30))))
    assert num_frames == [1, 2, 2, 2]
    alice.close()


@pytest.mark.parametrize("begin", [0, 1024, "end"])
@pytest.mark.parametrize("breaks", [False, True])
def test_bytes_that_were_not_asked_for_never_reach_what_is_held(scripted_peer: Any, begin: Any, breaks: bool) -> None:
    """The announcement is right, what follows would change the buffer under a payload that passes for whole."""
    sent = payload()
    surplus = data_frame(sent.num_bytes if begin == "end" else begin, [memoryview(bytes(1024))])

    def script(number: int, right: list[bytes]) -> list[Any]:
        return right if number == 0 else [right[0], surplus, *([UNAVAILABLE] if breaks else [])]

    with scripted_peer(sent, script) as (_, reader):
        buffer, held = hold(reader, sent)
        assert reader.gather((Fetch(0, "snapshot", None, buffer, held=held),), 30.0)[0] is held
        assert same(held, sent)


def test_a_newer_payload_that_breaks_off_goes_on_as_any(scripted_peer: Any) -> None:
    """Once bytes have been taken nothing is held any more, and nothing is said of it."""
    sent, newer = payload(), payload(round_=2)

    def script(number: int, right: list[bytes]) -> list[Any]:
        return [*right[:4], UNAVAILABLE] if number == 1 else right

    with scripted_peer(sent, script) as (peer, reader):
        buffer, held = hold(reader, sent)
        peer.store.publish(newer)
        received = reader.gather((Fetch(0, "snapshot", None, buffer, held=held),), 30.0)[0]
        assert same(received, newer)
    assert peer.positions == [0, 0, 3 * 1024]
    assert peer.held == [None, held.identity, None]


# -------------------------------------------------------------------------------------------------------- broken peers


def shifted(right: list[bytes]) -> list[bytes]:
    return [*right[:2], *right[3:]]


def surplus(right: list[bytes]) -> list[bytes]:
    return [*right, data_frame(payload().num_bytes, [memoryview(b"more")])]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (lambda right: right[:5], "truncated"),
        (lambda right: [], "before any announcement"),
        (lambda right: right[1:], "before any announcement"),
        (shifted, "byte 2048 where byte 1024 was next"),
        (lambda right: [*right[:2], *right[1:]], "byte 0 where byte 1024 was next"),
        (surplus, "surplus"),
        (lambda right: [right[0], right[1][:-1]], "does not hold what its prefix says"),
        (lambda right: [right[0], b"\x11"], "does not hold what its prefix says"),
        (lambda right: [right[0], b"\x11" + bytes(9) + b"\xff" * 9], "does not hold what its prefix says"),
        (lambda right: [b"\xff\xff\xff"], "no frame"),
        (lambda right: [b""], "neither"),
    ],
)
def test_a_stream_that_is_wrong_is_refused(scripted_peer: Any, script: Any, words: str) -> None:
    sent = payload()
    with scripted_peer(sent, lambda number, right: script(right)) as (peer, reader):
        answer = read(reader, sent)
    assert isinstance(answer, PayloadError)
    assert words in str(answer)
    assert "agent 0" in str(answer) or "prefix" in words
    assert len(peer.positions) == 1  # it is not asked for again
    assert peer.store.readers("snapshot", 1) == frozenset()


def test_a_peer_cannot_make_the_reader_allocate(scripted_peer: Any) -> None:
    """A terabyte is announced and refused; a message of a gigabyte's promise is refused unread."""
    sent = payload()
    huge = peer_pb2.Announcement(
        header=convert.to_proto(sent.header),
        tensors=[convert.to_proto(TensorSpec("first", "float32", (1 << 38,)))],
        checksums=[bytes(16)],
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    announced = peer_pb2.Frame(announcement=huge).SerializeToString()
    with scripted_peer(sent, lambda number, right: [announced, right[1]]) as (_, reader):
        answer = read(reader, sent)
    assert isinstance(answer, PayloadError)
    assert f"[{1 << 38}]" in str(answer)
    with scripted_peer(sent, lambda number, right: [right[0], data_frame(0, [memoryview(bytes(20_000_000))])]) as (
        _,
        reader,
    ):
        answer = read(reader, sent)
    assert type(answer) is TransportError
    assert "larger than max" in str(answer)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 200_000_000


def test_a_position_behind_the_end_is_refused() -> None:
    sent = payload()
    alice = GrpcTransport(0, "a", sent.schema)
    alice.publish(sent)
    address = alice.start()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_stream("/dimat.v1.Peer/Fetch", request_serializer=peer_pb2.FetchRequest.SerializeToString)
        request = peer_pb2.FetchRequest(reader=1, kind="snapshot", position=sent.num_bytes + 1)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(request, timeout=30))
        assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
        # Any gRPC client reads the stream with the generated messages: frames are honest protobuf.
        parsed = [
            peer_pb2.Frame.FromString(frame) for frame in call(peer_pb2.FetchRequest(kind="snapshot"), timeout=30)
        ]
    assert convert.announced(parsed[0].announcement, sent.schema)[0] == sent.header
    assert b"".join(frame.data for frame in parsed[1:]) == b"".join(bytes(tensor.data) for tensor in sent.tensors)
    alice.close()


def test_describe_refuses_nonsense_and_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = payload()
    alice, bob = GrpcTransport(0, "a", sent.schema), GrpcTransport(1, "b", sent.schema)
    address = alice.start()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/dimat.v1.Peer/Describe")
        with pytest.raises(grpc.RpcError) as caught:
            call(peer_pb2.DescribeRequest(wait_s=float("nan")).SerializeToString(), timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bob.start()
    bob.connect({0: address})
    monkeypatch.setattr("dimat.transport.grpc.peer_service.PROTOCOL_VERSION", 99)
    with pytest.raises(TransportError, match="version 99"):
        bob.describe(0, timeout_s=30.0)
    bob.close()
    alice.close()


# --------------------------------------------------------------------------------------------------- server and client


def test_the_health_service_answers() -> None:
    alice = GrpcTransport(0, "a", payload().schema)
    address = alice.start()
    with grpc.insecure_channel(address) as channel:
        for service in ("", "dimat.v1.Peer"):
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=30
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    alice.close()


def test_a_port_in_use_is_named() -> None:
    schema = payload().schema
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}.*in use"):
            GrpcTransport(0, "a", schema, port=port).start()
    alice = GrpcTransport(0, "a", schema)
    port = int(alice.start().rpartition(":")[2])
    with pytest.raises(UsageError, match=f"127.0.0.1:{port}.*in use"):
        GrpcTransport(1, "b", schema, port=port).start()
    alice.close()
    again = GrpcTransport(0, "a", schema, port=port)  # the port is free at once
    assert again.start() == f"127.0.0.1:{port}"
    again.close()


def test_plain_text_stays_on_loopback() -> None:
    schema = payload().schema
    for bind in ("0.0.0.0", "192.0.2.1", "example.org", "::"):
        with pytest.raises(UsageError) as caught:
            GrpcTransport(0, "a", schema, bind=bind).start()
        assert "plain text" in str(caught.value)
        assert "--insecure" in str(caught.value.hint)
    with pytest.raises(UsageError, match="every interface"):
        GrpcTransport(0, "a", schema, bind="0.0.0.0", insecure=True).start()
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        GrpcTransport(0, "a", schema, bind="192.0.2.1", insecure=True).start()


def test_bind_and_advertise_are_apart() -> None:
    schema = payload().schema
    alice = GrpcTransport(0, "a", schema, bind="0.0.0.0", advertise="node-7", insecure=True)
    host, _, port = alice.start().rpartition(":")
    assert host == "node-7"
    with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
        pass
    alice.close()
    alice = GrpcTransport(0, "a", schema, advertise="gate:4000")
    assert alice.start() == "gate:4000"
    alice.close()


@pytest.mark.parametrize("frame_bytes", [0, 1023, 1 << 22])
def test_frames_have_a_sensible_size(frame_bytes: int) -> None:
    with pytest.raises(UsageError, match="frame_bytes"):
        GrpcTransport(0, "a", payload().schema, frame_bytes=frame_bytes)


def test_a_peer_that_moves_is_dialled_anew() -> None:
    sent = payload()
    first, second = GrpcTransport(0, "first", sent.schema), GrpcTransport(0, "second", sent.schema)
    reader = GrpcTransport(1, "r", sent.schema)
    reader.start()
    reader.connect({0: first.start()})
    assert reader.describe(0, 30.0).session == "first"
    first.close()
    reader.connect({0: second.start()})
    assert reader.describe(0, 30.0).session == "second"
    reader.close()
    second.close()


def test_a_peer_that_comes_late_is_waited_for() -> None:
    """The port is known before anybody listens there, as after a restart."""
    sent = payload()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reader, late = GrpcTransport(1, "r", sent.schema), GrpcTransport(0, "late", sent.schema, port=port)
    reader.start()
    reader.connect({0: f"127.0.0.1:{port}"})

    def on_change(missing: Any) -> None:
        if missing:
            assert "not heard yet" in missing[0]
            late.publish(sent)
            late.start()

    assert reader.wait(Wait("published", (0,), "snapshot", 1, timeout_s=20.0), on_change) == {0}
    assert same(read(reader, sent), sent)
    late.close()
    reader.close()


def test_a_leaving_agent_lets_its_readers_go() -> None:
    """Closing does not hang on the calls that neighbours hold open, nor do they."""
    sent = payload()
    alice, bob = GrpcTransport(0, "a", sent.schema), GrpcTransport(1, "b", sent.schema)
    address = alice.start()
    bob.start()
    bob.connect({0: address})
    closing = threading.Timer(0.1, alice.close)
    closing.start()
    assert bob.wait(Wait("published", (0,), "snapshot", 1, timeout_s=0.4)) == frozenset()
    closing.join(timeout=30.0)
    assert not closing.is_alive()
    bob.close()


def test_an_acknowledgement_that_was_lost_is_said_again(scripted_peer: Any) -> None:
    """It travels with the next question, and then no more."""
    sent = payload()
    with scripted_peer(sent, lambda number, right: right, num_deaf=1) as (peer, reader):
        assert same(read(reader, sent), sent)
        assert peer.store.readers("snapshot", 1) == frozenset()
        for _ in range(2):
            reader.describe(0, 30.0)
            assert peer.store.readers("snapshot", 1) == {1}
    assert peer.acknowledged == [1, 1, 0]


def test_the_thread_ends_with_its_last_user() -> None:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "dimat-grpc"]

    assert names() == []
    alice, bob = GrpcTransport(0, "a", payload().schema), GrpcTransport(1, "b", payload().schema)
    assert names() == []  # constructors only assign
    alice.start()
    bob.start()
    assert names() == ["dimat-grpc"]
    alice.close()
    assert names() == ["dimat-grpc"]
    bob.close()
    assert names() == []
    assert LoopThread._shared is None


def test_a_transport_that_does_not_run_says_so() -> None:
    alice = GrpcTransport(0, "a", payload().schema)
    with pytest.raises(TransportError, match="not running"):
        alice.connect({})


def test_the_round_that_is_gone_is_said_over_the_wire() -> None:
    sent = payload()
    alice, bob = GrpcTransport(0, "a", sent.schema), GrpcTransport(1, "b", sent.schema)
    bob.start()
    bob.connect({0: alice.start()})
    answer = bob.gather((Fetch(0, "snapshot", 3, Buffer(Schema(()))),), 30.0)[0]
    assert isinstance(answer, RoundGone)
    assert "published no 'snapshot' yet" in str(answer)
    bob.close()
    alice.close()
