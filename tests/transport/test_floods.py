"""What a hostile neighbour announces is counted before it is converted, and quoted in a few words."""

import pytest

from dimat.errors import PayloadError, TransportError
from dimat.messages import Header, Payload, Schema, TensorSpec
from dimat.proto.v1 import peer_pb2, tensors_pb2
from dimat.transport.grpc import convert, options
from dimat.transport.store import SnapshotStore

SCHEMA = Schema((TensorSpec("w", "float32", (2,)),))


@pytest.mark.parametrize("what", ["tensors", "checksums", "scalars"])
def test_a_flood_is_counted_and_not_converted(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = peer_pb2.Announcement()
    if what == "tensors":
        message.tensors.extend([tensors_pb2.TensorSpec(name="a")] * 1000)
    elif what == "checksums":
        message.checksums.extend([b""] * 1000)
    else:
        message.header.scalars.update({str(number): 0.0 for number in range(1000)})

    def convert_nothing(*arguments: object) -> None:
        raise AssertionError("converted before it was counted")

    monkeypatch.setattr(convert, "from_proto", convert_nothing)
    with pytest.raises(PayloadError, match=f"1000 {what}"):
        convert.announced(message, SCHEMA)


def test_a_described_flood_is_not_listened_to() -> None:
    message = peer_pb2.Description(protocol=1)
    message.schema.tensors.extend([tensors_pb2.TensorSpec(name="a")] * 1000)
    with pytest.raises(TransportError, match="1000 tensors"):
        convert.description(message, "agent 1", most_tensors=104)


def test_a_long_name_is_quoted_in_a_few_words() -> None:
    difference = SCHEMA.difference(Schema((TensorSpec("x" * 5_000_000, "float32", tuple(range(1000))),)))
    assert difference is not None
    assert len(difference) < 500
    assert "5000000 characters" in difference


def test_strangers_cannot_acknowledge() -> None:
    store = SnapshotStore(0)
    store.publish(Payload(Header("snapshot", 1, 0), ()))
    store.expect([1, 2])
    for reader in (1, 7, -3):
        store.acknowledge(reader, "snapshot", 1)
    assert store.readers("snapshot", 1) == {1}


def test_the_settings_that_people_stumble_over() -> None:
    server, client = dict(options.SERVER), dict(options.client())
    assert server["grpc.so_reuseport"] == 0, "two servers must not share a port in silence"
    assert server["grpc.keepalive_time_ms"] == client["grpc.keepalive_time_ms"] > 0
    assert server["grpc.http2.min_ping_interval_without_data_ms"] < client["grpc.keepalive_time_ms"]
    assert client["grpc.max_receive_message_length"] <= 4 << 20
