"""`resnet20`: the residual network for small images, three stages of three blocks (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dimat.tasks.models.width import image_channels, scaled

_CHANNELS = (16, 32, 64)
_BLOCKS_PER_STAGE = 3


class Block(nn.Module):
    """relu(F(x) + S(x)): F is two 3×3 convolutions, S the identity or a 1×1 convolution, each with batch norm.

    S is the identity where shapes allow it; at the start of a stage it changes channels and halves each side.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) to (N, channels, H / stride, W / stride), rounded up."""
        inner = torch.relu(self.norm1(self.conv1(x)))
        inner = self.norm2(self.conv2(inner))
        return torch.relu(inner + self.shortcut(x))


class ResNet20(nn.Module):
    """Convolution, three stages of three blocks, global average, linear head: 1 + 18 + 1 layers with weights."""

    def __init__(self, channels_in: int, num_classes: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels[0])
        self.stage1 = _stage(channels[0], channels[0], stride=1)
        self.stage2 = _stage(channels[0], channels[1], stride=2)
        self.stage3 = _stage(channels[1], channels[2], stride=2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) to logits (N, num_classes)."""
        x = torch.relu(self.norm(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.head(self.flatten(self.average(x)))
        return logits


def resnet20(input_shape: tuple[int, ...], num_classes: int, *, width: float = 1) -> nn.Module:
    """A residual network of 20 layers in the CIFAR layout, with 16, 32, 64 channels times `width`.

    Convolutions start from He's normal distribution (arXiv 1502.01852). DIMAT's experiments use width 8.

    Raises:
        TaskError: the input is no image, or the width is not positive.
    """
    channels = (scaled(_CHANNELS[0], width), scaled(_CHANNELS[1], width), scaled(_CHANNELS[2], width))
    model = ResNet20(image_channels("resnet20", input_shape), num_classes, channels)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _stage(channels_in: int, channels: int, *, stride: int) -> nn.Sequential:
    blocks = [Block(channels_in, channels, stride)]
    blocks += [Block(channels, channels, 1) for _ in range(_BLOCKS_PER_STAGE - 1)]
    return nn.Sequential(*blocks)
