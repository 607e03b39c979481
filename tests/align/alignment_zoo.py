"""Small models of every shape that the alignment must understand."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(width: int = 24) -> nn.Module:
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 3))


def layer_norm_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 24), nn.LayerNorm(24), nn.GELU(), nn.Dropout(0.5), nn.Linear(24, 3))


def conv_flatten() -> nn.Module:
    """Convolution, batch norm, pooling, then flatten: the linear layer sees blocks of pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(12, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU(inplace=True), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(20 * 4, 18), nn.ReLU(), nn.Dropout(), nn.Linear(18, 5),
    )  # fmt: skip


def conv_pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.LeakyReLU(), nn.Conv2d(12, 20, 3), nn.BatchNorm2d(20), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5),
    )  # fmt: skip


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    inside = 3
    for width in (8, 12, 0, 16, 16, 0, 20, 0):
        if width:
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inside = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = [
        nn.AdaptiveAvgPool2d((2, 2)),
        nn.Flatten(),
        nn.Linear(80, 24),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(24, 5),
    ]
    return nn.Sequential(*layers, *head)


class Block(nn.Module):
    def __init__(self, inside: int, width: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm(width)
        self.shortcut = nn.Identity()
        if stride != 1 or inside != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        return torch.relu(y)


class ResNet(nn.Module):
    def __init__(
        self, widths: tuple[int, ...] = (8, 12, 16), blocks: int = 2, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.norm1 = norm(widths[0])
        layers, inside = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(inside, width, 2 if stage and not block else 1, norm))
                inside = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inside, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm1(self.conv1(x)).relu())
        return self.head(x.mean([2, 3]))


def resnet20() -> nn.Module:
    return ResNet((16, 32, 64), 3)


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut of the CIFAR ResNet: every second pixel, and zeros for the new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.inner = nn.Conv2d(12, 10, 3, padding=1)
        self.outer = nn.Conv2d(10, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)))
        x = x + self.outer(F.relu(self.inner(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class PreActivation(nn.Module):
    """Residual MLP whose stream meets no activation function directly."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(10, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(16, 20) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(20, 16) for _ in range(2))
        self.scale = nn.Parameter(torch.randn(16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + self.scale * down(F.gelu(up(norm(x))))
        return self.head(x)


def series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 10, 5, padding=2), nn.BatchNorm1d(10), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(10, 12, 3), nn.ELU(),
        nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(36, 4),
    )  # fmt: skip


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3), nn.InstanceNorm3d(6, affine=True), nn.PReLU(6), nn.Flatten(), nn.Linear(48, 3)
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 10, 1), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(10, 3),
    )  # fmt: skip


IMAGE = (3, 8, 8)
# name -> (model, shape of one sample, share of the parameters that can move)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "mlp": (mlp, (10,), 0.99),
    "layer-norm mlp": (layer_norm_mlp, (10,), 0.99),
    "conv, flatten": (conv_flatten, IMAGE, 0.99),
    "conv, global pool": (conv_pooled, IMAGE, 0.99),
    "vgg": (vgg, IMAGE, 0.99),
    "residual": (ResNet, IMAGE, 0.99),
    "resnet20": (resnet20, IMAGE, 0.99),
    "residual, one-group norm": (lambda: ResNet(norm=lambda n: nn.GroupNorm(1, n)), IMAGE, 0.99),
    "residual, group per channel": (lambda: ResNet(norm=lambda n: nn.GroupNorm(n, n)), IMAGE, 0.99),
    "residual, grouped norm": (lambda: ResNet(norm=lambda n: nn.GroupNorm(4, n)), IMAGE, 0.99),
    "padded shortcut": (PaddedShortcut, IMAGE, 0.99),
    "pre-activation": (PreActivation, (10,), 0.99),
    "series": (series, (4, 20), 0.99),
    "volume": (volume, (2, 4, 4, 4), 0.99),
    "depthwise": (depthwise, IMAGE, 0.99),
}


def example(name: str, samples: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *MODELS[name][1], generator=generator)


def make(name: str, seed: int = 0) -> nn.Module:
    """A model with distinct values everywhere a fresh one has constants, so that every unit is its own."""
    torch.manual_seed(seed)
    model = MODELS[name][0]()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    return model.eval()
