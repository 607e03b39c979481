"""Cutting payloads into pieces and putting them together again, free of any network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.errors import PayloadError
from dimat.messages import Header, Payload, Tensor, TensorSpec, digest
from dimat.proto.v1 import peer_pb2
from dimat.transport.base import Buffer, Fetch
from dimat.transport.grpc.frames import data_frame, frames, take_frame
from dimat.transport.receive import Receiver, pieces, valid_entries

FLOATS = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def payload(sizes: list[int]) -> Payload:
    """float32 tensors of `sizes` entries."""
    tensors, start = [], 0
    for number, size in enumerate(sizes):
        data = memoryview(np.arange(start, start + size, dtype="<f4")).cast("B") if size else memoryview(b"")
        tensors.append(Tensor(TensorSpec(f"t{number}", "float32", (size,)), data, digest(data)))
        start += size
    return Payload(Header("snapshot", 1, 0), tuple(tensors))


def sequence(sent: Payload) -> bytes:
    return b"".join(bytes(tensor.data) for tensor in sent.tensors)


@given(
    sizes=st.lists(st.integers(0, 40), max_size=8),
    piece_bytes=st.integers(1, 200),
    start=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_pieces_are_the_sequence_cut_evenly(sizes: list[int], piece_bytes: int, start: float) -> None:
    sent = payload(sizes)
    whole = sequence(sent)
    position = int(start * len(whole))
    cut = [(at, b"".join(parts)) for at, parts in pieces(sent, position, piece_bytes)]
    expected = [(at, whole[at : at + piece_bytes]) for at in range(position, len(whole), piece_bytes)]
    assert cut == expected


@given(
    sizes=st.lists(st.integers(0, 40), max_size=8),
    frame_sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    breaks=st.sets(st.integers(0, 30)),
)
@settings(max_examples=60, deadline=None)
def test_whatever_breaks_the_payload_is_whole(sizes: list[int], frame_sizes: list[int], breaks: set[int]) -> None:
    """Streams of changing frame sizes, cut in entries' middle, resumed after some frames: the same bytes in the end."""
    sent = payload(sizes)
    receiver = Receiver(1, Fetch(0, "snapshot", None, Buffer(sent.schema)))
    attempt, num_taken, whole = 0, 0, False
    while not whole:
        whole = True
        for frame in frames(sent, receiver.position, frame_sizes[attempt % len(frame_sizes)]):
            take_frame(receiver, frame)
            num_taken += 1
            if num_taken in breaks:
                whole = False
                break
        attempt += 1
    received = receiver.finish()
    assert received == sent
    assert sequence(received) == sequence(sent)


@given(position=st.integers(0, 1 << 60), parts=st.lists(st.binary(max_size=300), max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_frame_is_honest_protobuf(position: int, parts: list[bytes]) -> None:
    frame = data_frame(position, [memoryview(part) for part in parts])
    assert frame == peer_pb2.Frame(position=position, data=b"".join(parts)).SerializeToString()


@given(
    dtype=st.sampled_from(sorted(FLOATS)),
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_finite_is_what_torch_calls_finite(dtype: str, values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(FLOATS[dtype])
    data = memoryview(tensor.view(torch.uint8).numpy().data) if values else memoryview(b"")
    assert valid_entries(data, dtype) == bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_every_kind_of_float_is_told_apart(dtype: str) -> None:
    """The largest and smallest finite numbers pass, and NaN of either sign and any bits does not."""
    info = torch.finfo(FLOATS[dtype])
    for value in (info.max, info.min, info.tiny, -info.tiny, 0.0, -0.0):
        tensor = torch.tensor([value], dtype=FLOATS[dtype])
        assert valid_entries(memoryview(tensor.view(torch.uint8).numpy().data), dtype), value
    size = info.bits // 8
    for bits in ("ff" * size, "ff" * (size - 1) + "7f"):  # little endian: the sign stands in the last byte
        assert not valid_entries(memoryview(bytes.fromhex(bits)), dtype)
    assert valid_entries(memoryview(b"\xff" * 8), "int64")


def test_not_a_number_is_found_where_pieces_meet() -> None:
    """An entry that two pieces share is looked at once it is whole."""
    data = memoryview(np.array([1.0, np.nan, 1.0], dtype="<f4")).cast("B")
    sent = Payload(Header("snapshot", 1, 0), (Tensor(TensorSpec("t", "float32", (3,)), data, digest(data)),))
    receiver = Receiver(1, Fetch(0, "snapshot", 1, Buffer(sent.schema)))
    receiver.announce(sent.header, sent.schema.tensors, (sent.tensors[0].checksum,))
    receiver.take(0, data[:6])
    with pytest.raises(PayloadError, match="'t'"):
        receiver.take(6, data[6:])


def test_checksums_are_counted() -> None:
    sent = payload([2, 2])
    receiver = Receiver(1, Fetch(0, "snapshot", 1, Buffer(sent.schema)))
    with pytest.raises(PayloadError, match="1 checksums for 2 tensors"):
        receiver.announce(sent.header, sent.schema.tensors, (sent.tensors[0].checksum,))


@pytest.mark.parametrize("header", [Header("basis", 1, 0), Header("snapshot", 2, 0), Header("snapshot", 1, 3)])
def test_what_was_not_asked_for_is_refused(header: Header) -> None:
    sent = payload([2])
    receiver = Receiver(1, Fetch(0, "snapshot", 1, Buffer(sent.schema)))
    with pytest.raises(PayloadError, match="not asked for"):
        receiver.announce(header, sent.schema.tensors, (sent.tensors[0].checksum,))


def test_an_empty_tensor_has_a_digest_too() -> None:
    sent = payload([0])
    receiver = Receiver(1, Fetch(0, "snapshot", 1, Buffer(sent.schema)))
    with pytest.raises(PayloadError, match="digest"):
        receiver.announce(sent.header, sent.schema.tensors, (bytes(16),))
