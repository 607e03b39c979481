"""`mlp`: linear layers with ReLU between them, for inputs of any shape."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from dimat.errors import TaskError


def mlp(
    input_shape: tuple[int, ...], num_classes: int, *, hidden: Sequence[int] = (128, 128), batchnorm: bool = False
) -> nn.Module:
    """A multilayer perceptron: flatten, then `linear [batch norm] ReLU` per hidden width, then a linear head.

    Args:
        input_shape: shape of one sample; it is flattened.
        num_classes: number of outputs.
        hidden: widths of the hidden layers; an empty list gives a linear classifier.
        batchnorm: normalise before each ReLU.

    Raises:
        TaskError: `hidden` is not a list of positive integers.

    >>> mlp((1, 8, 8), 10, hidden=[32]).head
    Linear(in_features=32, out_features=10, bias=True)
    """
    is_list = isinstance(hidden, Sequence) and not isinstance(hidden, str)
    if not is_list or any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in hidden):
        raise TaskError(f"mlp: hidden is a list of positive widths such as [128, 128], {hidden!r} was given")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width_in = math.prod(input_shape)
    for index, width in enumerate(hidden, start=1):
        layers[f"fc{index}"] = nn.Linear(width_in, width)
        if batchnorm:
            layers[f"norm{index}"] = nn.BatchNorm1d(width)
        layers[f"relu{index}"] = nn.ReLU()
        width_in = width
    layers["head"] = nn.Linear(width_in, num_classes)
    return nn.Sequential(layers)
