"""Which of dimat's own models take images with their channels last in memory: all but those that torch gets wrong."""

from __future__ import annotations

import torch
from torch import nn

from dimat.tasks.models.build import BUILTIN, ModelSpec

LEAST_CHANNELS = 16
"""What a convolution by single pixels with a stride must read where channels come last."""


def takes_channels_last(spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int) -> bool:
    """Whether images for this model are laid out with their channels last.

    The gradient of a 1x1 convolution with a stride writes past its workspace where channels come last and there are
    fewer than a vector's (8 with AVX2, 16 with AVX-512): wrong gradients, or a process that dies. Users' models get the
    usual layout anyway, since they may call `view`.

    >>> takes_channels_last(ModelSpec.parse("resnet20"), (3, 32, 32), 10)
    True
    >>> takes_channels_last(ModelSpec.parse({"name": "resnet20", "width": 0.25}), (3, 32, 32), 10)
    False

    Source: oneDNN issue 6035, in torch 2.13 (oneDNN 3.12).
    """
    if spec.name not in BUILTIN or len(input_shape) != 3:
        return False
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        model = spec.build(input_shape, num_classes)
    return not any(_is_at_risk(module) for module in model.modules())


def _is_at_risk(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    strided = module.kernel_size == (1, 1) and any(step != 1 for step in module.stride)
    return strided and module.in_channels // module.groups < LEAST_CHANNELS
