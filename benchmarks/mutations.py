"""Seeded mutations of bytes, for fuzzing: what a broken or hostile peer could send in place of a right message."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import Message

HUGE_VARINT = b"\xff" * 9 + b"\x01"
MAX_BYTES = 5 << 20
"""Above gRPC's own limit for a message, so that this too is met."""


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\x00")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.choice((1, 7, 300)))


def _double(rng: random.Random, data: bytes) -> bytes:
    """A slice twice: fields that stand twice, lists that grow."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start : start + rng.randrange(1, 200)] * rng.choice((2, 3, 50)) + data[start:]


def _lengthen(rng: random.Random, data: bytes) -> bytes:
    """A length or a number that is enormous where a small one stood."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + HUGE_VARINT + data[place + 1 :]


def _number(rng: random.Random, data: bytes) -> bytes:
    """Eight bytes that are no number, or the largest ones."""
    place = rng.randrange(max(1, len(data) - 8))
    value = rng.choice((struct.pack("<d", float("nan")), struct.pack("<d", 1e308), b"\xff" * 8, b"\x00" * 8))
    return data[:place] + value + data[place + 8 :]


def _zero(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    length = rng.randrange(1, 64)
    return data[:start] + b"\x00" * length + data[start + length :]


def _noise(rng: random.Random, data: bytes) -> bytes:
    del data  # nothing of it is left
    return rng.randbytes(rng.choice((0, 1, 16, 1000, 100_000)))


def _nest(rng: random.Random, data: bytes) -> bytes:
    """The message as a field of itself, some levels deep."""
    tag = bytes([rng.randrange(1, 12) << 3 | 2])
    for _ in range(rng.choice((1, 3, 120))):
        if len(data) > 4096:
            break
        data = tag + varint(len(data)) + data
    return data


def _swell(rng: random.Random, data: bytes) -> bytes:
    """Rarely: more bytes than a message may have, or many tiny fields."""
    if rng.random() < 0.9:
        return _flip(rng, data)
    return data + rng.choice((b"\x22\x00", b"\x52\x00", rng.randbytes(2))) * (MAX_BYTES // 2 // rng.choice((1, 4, 50)))


MUTATIONS: Sequence[Callable[[random.Random, bytes], bytes]] = (
    _flip, _flip, _truncate, _extend, _double, _lengthen, _number, _zero, _noise, _nest, _swell,
)  # fmt: skip


def mutate(rng: random.Random, data: bytes) -> bytes:
    """`data` after one to three mutations; one time in twenty as it is."""
    if rng.random() < 0.05:
        return data
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(MUTATIONS)(rng, data)
    return data


INTEGERS = (0, 1, -1, 3, 1 << 31, -(1 << 31), (1 << 31) - 1, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1, 1 << 32, 1000)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"))
STRINGS = ("", "\x00", "snapshot", "basis", "💥" * 50, "a\n\x1b[31mb", "../../etc/passwd", "' OR 1=1 --", "x" * 100_000)


def twist(rng: random.Random, message: Message) -> bytes:
    """A right message with one to three fields that hold extremes: it parses, and means nonsense."""
    changed = type(message)()
    changed.CopyFrom(message)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _twist_field(rng, changed)
    return bytes(changed.SerializeToString())


def _twist_field(rng: random.Random, message: Any) -> None:
    field = rng.choice(list(message.DESCRIPTOR.fields))
    kind, is_map = field.message_type, field.message_type is not None and field.message_type.GetOptions().map_entry
    if rng.random() < 0.15:
        message.ClearField(field.name)
    elif is_map:
        key, value = kind.fields_by_name["key"], kind.fields_by_name["value"]
        for _ in range(rng.choice((1, 2, 2000))):
            getattr(message, field.name)[_extreme(rng, key)] = _extreme(rng, value)
    elif field.is_repeated and kind is not None:
        _twist_field(rng, getattr(message, field.name).add())
    elif field.is_repeated:
        getattr(message, field.name).extend([_extreme(rng, field)] * rng.choice((1, 3, 5000)))
    elif kind is not None:
        _twist_field(rng, getattr(message, field.name))
    else:
        setattr(message, field.name, _extreme(rng, field))


def _extreme(rng: random.Random, field: Any) -> Any:
    """A value that a field of this type can hold, and should not."""
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM):
        return rng.choice([number for number in INTEGERS if -(1 << 31) <= number < 1 << 31])
    if field.cpp_type == field.CPPTYPE_INT64:
        return rng.choice([number for number in INTEGERS if number < 1 << 63])
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        limit = 1 << (32 if field.cpp_type == field.CPPTYPE_UINT32 else 64)
        return rng.choice([number for number in INTEGERS if 0 <= number < limit])
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return rng.choice(FLOATS)
    if field.cpp_type == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.type == field.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 3, 4, 16, 16384, 1_000_000)))
    # A long string in a map of thousands would take minutes and prove nothing more.
    return rng.choice(STRINGS[:-1] if field.name in ("key", "value") else STRINGS) + str(rng.randrange(3))


def wrong(rng: random.Random, message: Message, most_bytes: int = 2 * MAX_BYTES) -> bytes:
    """`message` as it should not be: twisted, or its bytes mutated, or both; at most `most_bytes` of it."""
    way = rng.random()
    if way < 0.55:
        return twist(rng, message)[:most_bytes]
    return mutate(rng, twist(rng, message) if way < 0.65 else bytes(message.SerializeToString()))[:most_bytes]


def varint(number: int) -> bytes:
    """Protobuf's variable-length integer."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
