"""What a model is between two uses: its tensors by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

StateDict = Mapping[str, torch.Tensor]
"""Tensors by name, in the order of `Module.state_dict()`; parameters and buffers alike."""


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters and buffers, detached and copied: training on does not change them."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def load_into(model: torch.nn.Module, state: StateDict) -> None:
    """Write `state` into the model in place, so that optimisers keep pointing at the same parameters."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(state[name])


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's floating-point parameters by name, detached but not copied; tied parameters once."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()  # integers do not average, so they have no consensus to reach
    }
