"""What aligning one checkpoint to another does, on tensors alone: move, measure how far, prove nothing else changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dimat.align.calls import call_model, evaluating, tensors_in
from dimat.align.groups import PermutationSpec
from dimat.align.units import Permutations


def apply_tied(
    spec: PermutationSpec, state: Mapping[str, Tensor], perms: Permutations, ties: Mapping[str, tuple[str, ...]]
) -> dict[str, Tensor]:
    """`spec.apply(state, perms)`, where names of one shared tensor stay one tensor.

    Args:
        spec: the groups; of a shared tensor it may know every name or only one.
        state: the state dict.
        perms: the permutations.
        ties: name -> all names of the same tensor, itself included.

    Raises:
        SchemaError, AlignmentError: as `PermutationSpec.apply`.

    >>> from dimat.align import Axis, Group
    >>> spec = PermutationSpec((Group("a:0", 2, (Axis("a", 0),)),))
    >>> both = ("a", "b")
    >>> shared = torch.tensor([1.0, 2.0])
    >>> moved = apply_tied(spec, {"a": shared, "b": shared}, {"a:0": torch.tensor([1, 0])}, {"a": both, "b": both})
    >>> moved["b"].tolist()
    [2.0, 1.0]
    """
    moved = spec.apply(state, perms)
    return {name: moved[next((one for one in ties[name] if one in spec.members), name)] for name in state}


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """‖a − b‖₂ over the tensors `names`, summed in float64.

    >>> distance({"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])}, ["w"])
    5.0
    """
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in names))


def function_error(model: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor], batch: Any) -> float:
    """‖f_after(x) − f_before(x)‖₂ / ‖f_before(x)‖₂ over all floating-point outputs; infinite when it is not a number.

    The model is left with the state dict `after`. Outputs that are zero throughout are compared absolutely.
    """
    outputs = []
    for state in (before, after):
        load_state(model, state)
        with evaluating(model):
            found = [tensor for tensor in tensors_in(call_model(model, batch)) if tensor.is_floating_point()]
        outputs.append(torch.cat([tensor.detach().double().flatten() for tensor in found]))
    size = float(torch.linalg.vector_norm(outputs[0]))
    error = float(torch.linalg.vector_norm(outputs[1] - outputs[0])) / (size or 1.0)
    return error if math.isfinite(error) else math.inf


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write a state dict into the model in place, in the model's dtypes; entries that are no tensors stay."""
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
