"""Vision nets true to their architectures, at widths that a test can afford, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(
    inside: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, after: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch norm, activation: what most of these nets are made of."""
    layer = nn.Conv2d(inside, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), after())


def head(inside: int, out: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, out))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(),
        nn.Linear(16, 5),
    )  # fmt: skip


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 60), nn.ReLU(), nn.Linear(60, 42), nn.ReLU(), nn.Linear(42, 10),
    )  # fmt: skip


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    inside = 3
    for stage, depth in enumerate((2, 2, 3, 3, 3)):
        for _ in range(depth):
            width = min(8 << stage, 48)
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inside = width
        layers.append(nn.MaxPool2d(2))
    classifier = [
        nn.Linear(4 * inside, 40), nn.ReLU(True), nn.Dropout(), nn.Linear(40, 40), nn.ReLU(True), nn.Dropout(),
        nn.Linear(40, 5),
    ]  # fmt: skip
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Sequential(*classifier))


# ---- residual streams


class Padded(nn.Module):
    """The shortcut without parameters: every second pixel, and zeros for the new channels on both sides."""

    def __init__(self, new: int) -> None:
        super().__init__()
        self.border = new // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.border, self.border))


class Residual(nn.Module):
    """activation(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.after = body, shortcut or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += self.shortcut(x)
        return self.after(out)


def resnet20(padded: bool = False, squeeze: bool = False) -> nn.Module:
    layers: list[nn.Module] = [conv(3, 8)]
    inside = 8
    for stage, width in enumerate((8, 16, 32)):
        for block in range(3):
            stride = 2 if stage and not block else 1
            body = [*conv(inside, width, 3, stride), *conv(width, width, after=nn.Identity)]
            if squeeze:
                body.append(Squeeze(width, width // 4))
            change = Padded(width - inside) if padded else conv(inside, width, 1, stride, after=nn.Identity)
            layers.append(Residual(nn.Sequential(*body), change if inside != width else None, nn.ReLU()))
            inside = width
    return nn.Sequential(*layers, head(inside))


def resnet50(groups: int = 1) -> nn.Module:
    """Bottlenecks in four stages of 3, 4, 6 and 3 blocks; with groups it is a ResNeXt."""
    layers: list[nn.Module] = [conv(3, 6, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inside = 6
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 6 << stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            body = nn.Sequential(
                *conv(inside, width, 1), *conv(width, width, 3, stride, groups),
                *conv(width, 4 * width, 1, after=nn.Identity),
            )  # fmt: skip
            change = None if block else conv(inside, 4 * width, 1, stride, after=nn.Identity)
            layers.append(Residual(body, change, nn.ReLU(inplace=True)))
            inside = 4 * width
    return nn.Sequential(*layers, head(inside))


# ---- gates


class Squeeze(nn.Module):
    """Squeeze and excitation: channels weighed by a small net that sees their means."""

    def __init__(self, width: int, hidden: int, act: Callable[[], nn.Module] = nn.ReLU, linear: bool = True) -> None:
        super().__init__()
        self.linear = linear
        inside, out = (
            (nn.Linear(width, hidden), nn.Linear(hidden, width))
            if linear
            else (nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1))
        )
        self.net = nn.Sequential(inside, act(), out, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            batch, channels = x.shape[:2]
            gate = self.net(F.adaptive_avg_pool2d(x, 1).view(batch, channels)).view(batch, channels, 1, 1)
            return x * gate.expand_as(x)
        return self.net(x.mean((2, 3), keepdim=True)) * x


def inverted(rows: tuple[tuple[int, int, int, int], ...], act: Callable[[], nn.Module], squeeze: bool) -> nn.Module:
    """MobileNetV2's inverted residuals (expansion, width, depth, stride); EfficientNet squeezes them, too."""
    layers: list[nn.Module] = [conv(3, 8, 3, 2, after=act)]
    inside = 8
    for expansion, width, depth, first_stride in rows:
        for block in range(depth):
            stride, hidden = 1 if block else first_stride, expansion * inside
            body = list(conv(inside, hidden, 1, after=act)) if expansion != 1 else []
            body += conv(hidden, hidden, 3, stride, hidden, after=act)
            if squeeze:
                body.append(Squeeze(hidden, max(2, inside // 4), act, linear=False))
            body += conv(hidden, width, 1, after=nn.Identity)[:2]
            same = stride == 1 and inside == width
            layers.append(Residual(nn.Sequential(*body)) if same else nn.Sequential(*body))
            inside = width
    return nn.Sequential(*layers, conv(inside, 40, 1, after=act), head(40))


def mobilenet_v2() -> nn.Module:
    rows = ((1, 4, 1, 1), (6, 6, 2, 2), (6, 8, 3, 2), (6, 8, 4, 2), (6, 12, 3, 1), (6, 20, 3, 2), (6, 40, 1, 1))
    return inverted(rows, nn.ReLU6, squeeze=False)


def efficientnet() -> nn.Module:
    rows = ((1, 4, 1, 1), (6, 6, 2, 2), (6, 8, 2, 2), (6, 12, 3, 2), (6, 16, 3, 1), (6, 20, 2, 1))
    return inverted(rows, nn.SiLU, squeeze=True)


class WaveNet(nn.Module):
    """Dilated convolutions, gated by tanh and sigmoid of the two halves (or by GLU), with skips to the end."""

    def __init__(self, glu: bool = False) -> None:
        super().__init__()
        self.glu = glu
        self.stem = nn.Conv1d(4, 10, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(10, 16, 2, dilation=2**i) for i in range(4))
        self.out = nn.ModuleList(nn.Conv1d(8, 10, 1) for _ in range(4))
        self.skip = nn.ModuleList(nn.Conv1d(8, 12, 1) for _ in range(4))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(12, 9, 1), nn.ReLU(), nn.Conv1d(9, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        total: Tensor | None = None
        for dilated, out, skip in zip(self.dilated, self.out, self.skip, strict=True):
            y = dilated(F.pad(x, (dilated.dilation[0], 0)))
            if self.glu:
                y = F.glu(y, dim=1)
            else:
                a, b = y.chunk(2, dim=1)
                y = torch.tanh(a) * torch.sigmoid(b)
            total = skip(y) if total is None else total + skip(y)
            x = x + out(y)
        return self.end(total)


# ---- branches that are joined


class Dense(nn.Module):
    """A layer of a dense block: what it makes is appended to what it saw."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm2d(inside), nn.ReLU(), nn.Conv2d(inside, 2 * growth, 1, bias=False),
            nn.BatchNorm2d(2 * growth), nn.ReLU(), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.net(x)], 1)


def densenet(growth: int = 4) -> nn.Module:
    """The blocks of DenseNet-121: 6, 12, 24 and 16 layers, halved in width between them."""
    inside = 2 * growth
    layers: list[nn.Module] = [conv(3, inside, 3, 2)]
    for stage, depth in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [nn.BatchNorm2d(inside), nn.ReLU(), nn.Conv2d(inside, inside // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            inside //= 2
        for _ in range(depth):
            layers.append(Dense(inside, growth))
            inside += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(inside), nn.ReLU(), head(inside))


class Branches(nn.Module):
    """Inception: several views of one input, joined."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def inception() -> nn.Module:
    def mixed(inside: int) -> nn.Module:
        return Branches(
            conv(inside, 6, 1), nn.Sequential(conv(inside, 5, 1), conv(5, 8)),
            nn.Sequential(conv(inside, 4, 1), conv(4, 6), conv(6, 7)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inside, 5, 1)),
        )  # fmt: skip

    return nn.Sequential(conv(3, 10), mixed(10), nn.MaxPool2d(2), mixed(26), nn.Flatten(), nn.Linear(26 * 16, 5))


class UNet(nn.Module):
    """Down, up, and across: what went down is joined to what comes up."""

    def __init__(self, upsample: bool = False, widths: tuple[int, ...] = (6, 10, 16, 24)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = nn.Sequential(conv(3, widths[0]), conv(widths[0], widths[0]))
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), conv(a, b), conv(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(b, a, 1))
            if upsample
            else nn.ConvTranspose2d(b, a, 2, stride=2)
            for a, b in pairs[::-1]
        )
        self.merge = nn.ModuleList(nn.Sequential(conv(2 * a, a), conv(a, a)) for a, _ in pairs[::-1])
        self.last = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        saved = [self.first(x)]
        for down in self.down:
            saved.append(down(saved[-1]))
        x = saved.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((saved.pop(), up(x)), dim=1))
        return self.last(x)


class Shuffle(nn.Module):
    """ShuffleNetV2: one half passes, the other is worked on, then the channels of both are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.net = nn.Sequential(
            conv(half, half, 1), conv(half, half, groups=half, after=nn.Identity), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        x = torch.cat((one, self.net(two)), dim=1)
        batch, channels, *space = x.shape
        return x.view(batch, 2, channels // 2, *space).transpose(1, 2).reshape(batch, channels, *space)


def shufflenet() -> nn.Module:
    return nn.Sequential(conv(3, 16), Shuffle(16), Shuffle(16), conv(16, 24, 3, 2), Shuffle(24), head(24))


# ---- channels last


class ChannelsFirstNorm(nn.LayerNorm):
    """A layer norm over the second dimension, spelled out."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + self.eps)) + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 4, 4), ChannelsFirstNorm(8)]
    inside = 8
    for width, depth in ((8, 1), (12, 2), (16, 1)):
        if width != inside:
            layers += [ChannelsFirstNorm(inside), nn.Conv2d(inside, width, 2, 2)]
        layers += [ConvNeXtBlock(width) for _ in range(depth)]
        inside = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(inside), nn.Linear(inside, 5))


@dataclass(frozen=True, slots=True)
class Net:
    """A row of the zoo: the net, the shape of a sample, and what tracing it must find.

    Attributes:
        coverage: share of the parameters that can move; what is missing is the last layer's bias.
        groups: how many groups there are.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    coverage: float
    groups: int


IMAGE = (3, 32, 32)
NETS = {
    "mlp": Net(mlp, (3, 8, 8), 0.9993, 3),
    "lenet": Net(lenet, (1, 28, 28), 0.9997, 4),
    "vgg16-bn": Net(vgg16, IMAGE, 1.0, 15),
    "resnet20": Net(resnet20, (3, 16, 16), 0.9999, 12),
    "resnet20, padded shortcut": Net(lambda: resnet20(padded=True), (3, 16, 16), 0.9999, 14),
    "resnet50": Net(resnet50, IMAGE, 1.0, 37),
    "densenet121": Net(densenet, IMAGE, 0.9999, 120),
    "mobilenet-v2": Net(mobilenet_v2, IMAGE, 0.9999, 25),
    "squeeze and excitation": Net(lambda: resnet20(squeeze=True), (3, 16, 16), 0.9999, 21),
    "u-net": Net(UNet, (3, 16, 16), 0.9999, 17),
    "u-net, upsampling": Net(lambda: UNet(upsample=True), (3, 16, 16), 0.9999, 17),
    "resnext50": Net(lambda: resnet50(groups=3), IMAGE, 1.0, 21),
    "convnext": Net(convnext, IMAGE, 0.9995, 7),
    "inception": Net(inception, (3, 8, 8), 0.999, 15),
    "efficientnet": Net(efficientnet, IMAGE, 0.9999, 33),
    "shufflenet-v2": Net(shufflenet, (3, 8, 8), 0.999, 8),
    "wavenet": Net(WaveNet, (4, 32), 0.9983, 7),
    "wavenet, glu": Net(lambda: WaveNet(glu=True), (4, 32), 0.9983, 7),
}
"""The first ten of them must move at least 95 % of their parameters (`FIRST`)."""

FIRST = list(NETS)[:11]


def example(name: str, samples: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(samples, *NETS[name].shape, generator=torch.Generator().manual_seed(seed))


def make(name: str, seed: int = 0) -> nn.Module:
    """A net as training leaves it: signals of order one at every depth, norms that saw data, no two units alike."""
    torch.manual_seed(seed)
    model = NETS[name].build()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.rand_like(parameter))
        model.train()(example(name, 24, seed=1))
    return model.eval()
