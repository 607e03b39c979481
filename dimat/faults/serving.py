"""What a faulty agent serves in place of what it published: the five ways in which a payload can be wrong.

Pure functions from a payload to the one that readers get. The publisher's own model is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from dimat.messages import ITEM_SIZES, Payload, Tensor, digest
from dimat.transport.receive import INFINITY_BITS


def spoil(kind: str, payload: Payload, previous: Payload | None) -> Payload:
    """`payload` with the fault `kind`; `previous` is what was published before it, for `stale`."""
    return _SPOILERS[kind](payload, previous)


def _corrupt(payload: Payload, previous: Payload | None) -> Payload:
    """One bit in the middle of the largest tensor turned over after its digest was taken."""
    del previous  # the same in every round
    place = max(range(len(payload.tensors)), key=lambda i: len(payload.tensors[i].data))
    tensor = payload.tensors[place]
    data = bytearray(tensor.data)
    data[len(data) // 2] ^= 1
    return _with(payload, place, replace(tensor, data=memoryview(data)))


def _truncate(payload: Payload, previous: Payload | None) -> Payload:
    """The stream ends after half of the bytes that were announced."""
    del previous  # the same in every round
    room, tensors = payload.num_bytes // 2, []
    for tensor in payload.tensors:
        tensors.append(replace(tensor, data=tensor.data[:room]))
        room -= len(tensors[-1].data)
    return replace(payload, tensors=tuple(tensors))


def _stale(payload: Payload, previous: Payload | None) -> Payload:
    """The round before this one, and its header says so."""
    return payload if previous is None else previous


def _nan(payload: Payload, previous: Payload | None) -> Payload:
    """The first entry of the first floating tensor is NaN, and the digest is right."""
    del previous  # the same in every round
    for place, tensor in enumerate(payload.tensors):
        if tensor.spec.dtype in INFINITY_BITS and tensor.data:
            size = ITEM_SIZES[tensor.spec.dtype]
            data = bytearray(tensor.data)
            data[:size] = (INFINITY_BITS[tensor.spec.dtype] | 1).to_bytes(size, "little")
            return _with(payload, place, Tensor(tensor.spec, memoryview(data), digest(data)))
    return payload


def _wrong_schema(payload: Payload, previous: Payload | None) -> Payload:
    """The first tensor says that it has one row more than it has."""
    del previous  # the same in every round
    tensor = payload.tensors[0]
    shape = (tensor.spec.shape[0] + 1, *tensor.spec.shape[1:]) if tensor.spec.shape else (2,)
    surplus = math.prod(shape) * ITEM_SIZES[tensor.spec.dtype] - len(tensor.data)
    data = bytes(tensor.data) + bytes(surplus)
    spec = replace(tensor.spec, shape=shape)
    return _with(payload, 0, Tensor(spec, memoryview(data), digest(data)))


def _with(payload: Payload, place: int, tensor: Tensor) -> Payload:
    return replace(payload, tensors=(*payload.tensors[:place], tensor, *payload.tensors[place + 1 :]))


_SPOILERS: Mapping[str, Callable[[Payload, Payload | None], Payload]] = {
    "corrupt": _corrupt,
    "truncate": _truncate,
    "stale": _stale,
    "nan": _nan,
    "wrong_schema": _wrong_schema,
}
