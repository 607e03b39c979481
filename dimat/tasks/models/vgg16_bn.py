"""`vgg16_bn`: thirteen convolutions with batch norm in five groups, one linear head (arXiv 1409.1556, D)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from dimat.tasks.models.width import image_channels, scaled

_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_bn(input_shape: tuple[int, ...], num_classes: int, *, width: float = 1) -> nn.Module:
    """VGG-16 with batch norm for small images: a global average and one linear head in place of the three large ones.

    Each group ends with a pooling that halves each side, as long as every side has at least two entries: 8×8 images
    are pooled three times, 32×32 images five times. Convolutions start from He's normal distribution
    (arXiv 1502.01852).

    Raises:
        TaskError: the input is no image, or the width is not positive.
    """
    channels_in, side = image_channels("vgg16_bn", input_shape), min(input_shape[1:])
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for group, widths in enumerate(_GROUPS, start=1):
        for index, base in enumerate(widths, start=1):
            channels = scaled(base, width)
            convolution = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers[f"conv{group}_{index}"] = convolution
            layers[f"norm{group}_{index}"] = nn.BatchNorm2d(channels)
            layers[f"relu{group}_{index}"] = nn.ReLU()
            channels_in = channels
        if side >= 2:
            layers[f"pool{group}"] = nn.MaxPool2d(2)
            side //= 2
    layers |= {"average": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(channels_in, num_classes)}
    return nn.Sequential(layers)
