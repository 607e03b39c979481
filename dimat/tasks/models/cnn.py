"""`cnn`: three convolutions with batch norm, for images and for series; the model of the demo."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from dimat.errors import TaskError
from dimat.tasks.models.width import scaled

_CHANNELS = (32, 64, 64)

# Convolution, norm, pooling and global pooling by the number of spatial dimensions.
_LAYERS = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
}


def cnn(input_shape: tuple[int, ...], num_classes: int, *, width: float = 1) -> nn.Module:
    """Three times `convolution 3, batch norm, ReLU` with 32, 64, 64 channels, then a global average and a linear head.

    The first two are followed by a pooling that halves each side, as long as every side has at least two entries.

    Args:
        input_shape: (channels, height, width) of images or (channels, length) of series.
        num_classes: number of outputs.
        width: factor on the numbers of channels.

    Raises:
        TaskError: the input is a table, or the width is not positive.

    >>> cnn((1, 8, 8), 10).head
    Linear(in_features=64, out_features=10, bias=True)
    """
    sides = input_shape[1:]
    if len(sides) not in _LAYERS:
        raise TaskError(
            f"cnn reads images (channels, height, width) or series (channels, length), not samples {input_shape}",
            hint="take model mlp for tables",
        )
    convolution, norm, pool, average = _LAYERS[len(sides)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels_in, side = input_shape[0], min(sides)
    for index, base in enumerate(_CHANNELS, start=1):
        channels = scaled(base, width)
        # The norm subtracts the mean, so a bias before it would be a parameter without effect.
        layers[f"conv{index}"] = convolution(channels_in, channels, 3, padding=1, bias=False)
        layers[f"norm{index}"] = norm(channels)
        layers[f"relu{index}"] = nn.ReLU()
        if index < len(_CHANNELS) and side >= 2:
            layers[f"pool{index}"] = pool(2)
            side //= 2
        channels_in = channels
    layers |= {"average": average(1), "flatten": nn.Flatten(), "head": nn.Linear(channels_in, num_classes)}
    return nn.Sequential(layers)
