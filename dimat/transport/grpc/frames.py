"""Frames of a fetch as bytes: protobuf for anybody who reads them, but the tensors' bytes never enter protobuf.

A data frame is a `dimat.v1.Frame` whose fields stand in a fixed order, so that it begins with a prefix of known shape:

    0x11  position, 8 bytes little endian     field 2, fixed64
    0x1A  length of the data, varint          field 3, bytes
    the data, to the end of the frame

Writing one joins the prefix and views of the tensors (one copy); reading one slices a view (none).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from dimat.errors import PayloadError
from dimat.messages import Payload
from dimat.proto.v1 import peer_pb2
from dimat.transport.grpc import convert
from dimat.transport.receive import Receiver, pieces

_PREFIX = struct.Struct("<BQB")
_POSITION_TAG = 0x11
_DATA_TAG = 0x1A


def frames(payload: Payload, position: int, frame_bytes: int) -> Iterator[bytes]:
    """The announcement of a payload, then its bytes from `position` on in frames of `frame_bytes`."""
    yield peer_pb2.Frame(announcement=convert.announcement(payload)).SerializeToString()
    for start, parts in pieces(payload, position, frame_bytes):
        yield data_frame(start, parts)


def data_frame(position: int, parts: list[memoryview]) -> bytes:
    """The frame with the bytes of `parts` that belong at `position`."""
    length = sum(len(part) for part in parts)
    return b"".join([_PREFIX.pack(_POSITION_TAG, position, _DATA_TAG), _varint(length), *parts])


def take_frame(receiver: Receiver, frame: bytes) -> None:
    """Give one frame to a receiver.

    Raises:
        PayloadError: it is no frame, or the receiver refuses what it holds.
    """
    if is_data_frame(frame):
        position, start = read_data_frame(frame)
        receiver.take(position, memoryview(frame)[start:])
        return
    try:
        message = peer_pb2.Frame.FromString(frame)
    except DecodeError:
        raise PayloadError(f"agent {receiver.fetch.peer} sent {len(frame)} bytes that are no frame") from None
    if not message.HasField("announcement") or message.HasField("data"):
        raise PayloadError(f"agent {receiver.fetch.peer} sent a frame that is neither an announcement nor data")
    receiver.announce(*convert.announced(message.announcement, receiver.fetch.into.schema))


def is_data_frame(frame: bytes) -> bool:
    """Whether a frame begins as data frames do."""
    return frame[:1] == b"\x11"


def read_data_frame(frame: bytes) -> tuple[int, int]:
    """Position of a data frame's bytes in the sequence, and where they begin in the frame.

    Raises:
        PayloadError: the frame does not hold what its prefix says.
    """
    if len(frame) > _PREFIX.size:
        _, position, tag = _PREFIX.unpack_from(frame)
        length, start = 0, _PREFIX.size
        for shift in range(0, 35, 7):
            if start == len(frame):
                break
            byte = frame[start]
            start += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                if tag == _DATA_TAG and length == len(frame) - start:
                    return position, start
                break
    raise PayloadError(f"a data frame of {len(frame)} bytes does not hold what its prefix says")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
