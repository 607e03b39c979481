"""The width option that the convolutional models share, and the input that the deep ones expect."""

from __future__ import annotations

import math

from dimat.errors import TaskError


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1.

    Raises:
        TaskError: the width is not a positive number.

    >>> scaled(16, 2), scaled(64, 0.125)
    (32, 8)
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not math.isfinite(width) or width <= 0:
        raise TaskError(f"width is a positive number such as 2 or 0.5, {width!r} was given")
    return max(1, round(channels * width))


def image_channels(model: str, input_shape: tuple[int, ...]) -> int:
    """The number of channels of an image input.

    Raises:
        TaskError: samples are no images.
    """
    if len(input_shape) != 3:
        raise TaskError(
            f"{model} reads images (channels, height, width), not samples of shape {input_shape}",
            hint="take model cnn for series and mlp for tables; if these are images, say -s task.options.kind=images",
        )
    return input_shape[0]
