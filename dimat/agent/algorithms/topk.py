"""Top-k compression with a fixed schema: so many values and their places per tensor, known from one's own model.

Of a tensor of d entries the k = max(1, ceil(ratio * d)) largest in magnitude travel, as values of the tensor's dtype
and places as int32, ascending. So a reader knows every size before a byte has come, and a sender cannot make it
allocate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from dimat.errors import PayloadError
from dimat.statedict import StateDict

VALUES, PLACES = "values", "places"
"""What follows a tensor's name in a compressed payload."""


def num_kept(num_entries: int, ratio: float) -> int:
    """k: how many of a tensor's entries travel.

    >>> [num_kept(d, 0.01) for d in (0, 7, 1000)]
    [0, 1, 10]
    """
    return min(num_entries, max(1, math.ceil(ratio * num_entries - 1e-9)))


def empty(tensors: StateDict, ratio: float) -> dict[str, torch.Tensor]:
    """A compressed payload of the shapes of `tensors`, all zero: what its schema is made from."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        k = num_kept(tensor.numel(), ratio)
        made[f"{name}.{VALUES}"] = torch.zeros(k, dtype=tensor.dtype)
        made[f"{name}.{PLACES}"] = torch.zeros(k, dtype=torch.int32)
    return made


def compress(tensors: StateDict, ratio: float) -> dict[str, torch.Tensor]:
    """The k entries of each tensor that are largest in magnitude.

    >>> compress({"w": torch.tensor([[0.5, -3.0], [2.0, 0.0]])}, 0.5)
    {'w.values': tensor([-3., 2.]), 'w.places': tensor([1, 2], dtype=torch.int32)}
    """
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().reshape(-1)
        places = flat.abs().topk(num_kept(flat.numel(), ratio), sorted=False).indices.sort().values
        made[f"{name}.{VALUES}"] = flat[places]
        made[f"{name}.{PLACES}"] = places.to(torch.int32)
    return made


def add(onto: Mapping[str, torch.Tensor], compressed: StateDict) -> None:
    """Add what was compressed to the tensors `onto`, in place.

    The same additions give the same bits wherever they are done, so that copies of one model stay equal.

    Raises:
        PayloadError: places that are not ascending or lie outside; nothing was added then.
    """
    for name, tensor in onto.items():
        places = compressed[f"{name}.{PLACES}"]
        if not len(places):
            continue
        if int(places[0]) < 0 or int(places[-1]) >= tensor.numel() or bool((places[1:] <= places[:-1]).any()):
            raise PayloadError(
                f"the places of tensor {name!r} are not ascending numbers from 0 to {tensor.numel() - 1}"
            )
    for name, tensor in onto.items():
        places = compressed[f"{name}.{PLACES}"].long()
        flat = tensor.view(-1)
        flat[places] += compressed[f"{name}.{VALUES}"]
