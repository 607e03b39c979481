"""State dicts to payloads and back: one copy on the way out, none on the way in.

Entries that share storage (tied weights) travel by name each: every name arrives, and is tied again where it is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch

from dimat.errors import PayloadError, SchemaError
from dimat.messages import ITEM_SIZES, Header, Payload, Schema, Tensor, TensorSpec, digest

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_SIZES}
"""torch's dtypes by the names that travel."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def schema_of(state_dict: Mapping[str, torch.Tensor], groups: str = "") -> Schema:
    r"""Names, dtypes and shapes of a state dict, in its order.

    Args:
        state_dict: tensors by name.
        groups: the fingerprint of the model's permutation groups.

    Raises:
        SchemaError: an entry is not a dense tensor, or of a dtype that does not travel.

    >>> print(*schema_of({"w": torch.zeros(2, 3), "n": torch.tensor(7)}).tensors, sep="\n")
    w float32 [2, 3]
    n int64 []
    """
    return Schema(tuple(_spec(name, tensor) for name, tensor in state_dict.items()), groups)


def encode(state_dict: Mapping[str, torch.Tensor], header: Header) -> Payload:
    """A frozen copy of a state dict, ready to publish: training may go on at once.

    Each tensor is copied exactly once, into contiguous little-endian CPU memory, and its digest is computed there.

    Raises:
        SchemaError: as for `schema_of`.

    >>> state = {"w": torch.ones(2)}
    >>> payload = encode(state, Header("snapshot", round=1, agent=0))
    >>> _ = state["w"].zero_()
    >>> decode(payload)
    {'w': tensor([1., 1.])}
    """
    assert sys.byteorder == "little", "tensors travel as little-endian bytes"
    tensors = []
    for name, tensor in state_dict.items():
        spec = _spec(name, tensor)
        copy = torch.empty(tensor.shape, dtype=tensor.dtype)
        copy.copy_(tensor.detach())
        # numpy knows no bfloat16, so bytes are viewed before numpy sees them; it keeps the torch memory alive.
        data = memoryview(copy.reshape(-1).view(torch.uint8).numpy().data)
        tensors.append(Tensor(spec, data, digest(data)))
    return Payload(header, tuple(tensors))


def decode(payload: Payload) -> dict[str, torch.Tensor]:
    """The tensors of a payload as views of its bytes, by name: nothing is copied, so they live as long as the bytes do.

    A payload that was fetched into a buffer changes under these tensors when the buffer is used again.
    """
    return {tensor.spec.name: _view(tensor) for tensor in payload.tensors}


def check_finite(payload: Payload) -> None:
    """Refuse a payload that would poison whoever merges it.

    Raises:
        PayloadError: a tensor holds NaN or Inf; the message names the tensor and the agent.
    """
    for name, tensor in decode(payload).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            header = payload.header
            raise PayloadError(
                f"agent {header.agent}'s {header.kind!r} of round {header.round} holds NaN or Inf in tensor {name!r}"
            )


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    if not isinstance(tensor, torch.Tensor):
        raise SchemaError(
            f"entry {name!r} of the state dict is a {type(tensor).__name__}, expected a tensor",
            hint="modules with get_extra_state() cannot travel; leave that entry out",
        )
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        raise SchemaError(f"tensor {name!r} is {kind}, expected a dense tensor with data")
    dtype = _NAMES.get(tensor.dtype)
    if dtype is None:
        raise SchemaError(
            f"tensor {name!r} has dtype {tensor.dtype}, which does not travel. Available: {', '.join(DTYPES)}"
        )
    return TensorSpec(name, dtype, tuple(tensor.shape))


def _view(tensor: Tensor) -> torch.Tensor:
    dtype = DTYPES[tensor.spec.dtype]
    if not tensor.data:
        return torch.empty(tensor.spec.shape, dtype=dtype)  # torch.frombuffer refuses empty buffers
    return torch.frombuffer(tensor.data, dtype=dtype).view(tensor.spec.shape)
