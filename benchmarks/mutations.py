"""Seeded mutations of bytes, for fuzzing: what a broken or hostile peer could send in place of a right message."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

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


def varint(number: int) -> bytes:
    """Protobuf's variable-length integer."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
