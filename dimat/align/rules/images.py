"""Space: pooling, resampling, and what moves entries between channels and space. Space keeps its order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dimat.align.atoms import Dim
from dimat.align.operators import Context, Rule, Symbolic, register_operator


def _ordered(context: Context, kept: Sequence[Dim], output: int = 0) -> tuple[Dim, ...]:
    """The dimensions that are kept, then new ones in order."""
    return (*kept, *(context.fixed(length) for length in context.shapes[output][len(kept) :]))


def _pooling(spatial: int) -> Rule:
    def pool(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> list[tuple[Dim, ...]]:
        """Each channel by itself; some pools also tell where they found what they took."""
        context.freeze(*input.dims[-spatial:])
        return [_ordered(context, input.dims[:-spatial], i) for i in range(len(context.shapes))]

    return pool


for _n in (1, 2, 3):
    _kinds = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool", "fractional_max_pool")
    register_operator(*(f"{kind}{_n}d{tail}" for kind in _kinds for tail in ("", "_with_indices")))(_pooling(_n))


@register_operator("max_unpool1d", "max_unpool2d", "max_unpool3d")
def unpool(context: Context, input: Symbolic, indices: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Each channel goes back to the places that its pooling noted."""
    spatial = int(context.cause.operator[-2])
    context.freeze(*input.dims[-spatial:], *indices.dims[-spatial:])
    for one, other in zip(input.dims[:-spatial], indices.dims[:-spatial], strict=True):
        context.tie(one, other)
    return _ordered(context, input.dims[:-spatial])


@register_operator("interpolate", "upsample", "upsample_nearest", "upsample_bilinear")
def interpolate(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Everything behind batch and channels is space."""
    context.freeze(*input.dims[2:])
    return _ordered(context, input.dims[:2])


@register_operator("grid_sample")
def grid_sample(context: Context, input: Symbolic, grid: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Every channel is read at the same places."""
    context.freeze(*input.dims[2:], *grid.dims[1:])
    context.tie(input.dims[0], grid.dims[0])
    return _ordered(context, input.dims[:2])


@register_operator("pixel_shuffle")
def pixel_shuffle(context: Context, input: Symbolic, upscale_factor: int) -> tuple[Dim, ...]:
    """Channels of shape (C, r, r) become C channels of r times the height and width."""
    square = upscale_factor**2
    channels, inside = context.table.regroup([input.dims[-3]], (input.shape[-3] // square, square), context.cause)
    context.freeze(inside, *input.dims[-2:])
    return _ordered(context, (*input.dims[:-3], channels))


@register_operator("pixel_unshuffle")
def pixel_unshuffle(context: Context, input: Symbolic, downscale_factor: int) -> tuple[Dim, ...]:
    """The way back: every channel becomes r · r of a smaller height and width."""
    context.freeze(*input.dims[-2:])
    channels = (*input.dims[-3], *context.fixed(downscale_factor**2))
    return _ordered(context, (*input.dims[:-3], channels))


@register_operator("unfold")
def unfold(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Patches (im2col): every channel becomes a block of kernel positions; of a method along one dimension, nothing.

    Raises:
        ValueError: `Tensor.unfold`, which is another operator of this name.
    """
    if input.ndim != 4 or len(context.shapes[0]) != 3:
        raise ValueError("sliding windows along one dimension")
    context.freeze(*input.dims[2:])
    block = context.shapes[0][1] // input.shape[1]
    return _ordered(context, (input.dims[0], (*input.dims[1], *context.fixed(block))))


@register_operator("fold")
def fold(context: Context, input: Symbolic, output_size: Any, kernel_size: Any, *args: Any, **kw: Any) -> Any:
    """Patches are put back and added up where they overlap (col2im)."""
    block = math.prod(kernel_size) if isinstance(kernel_size, Sequence) else kernel_size**2
    channels, inside = context.table.regroup([input.dims[-2]], (input.shape[-2] // block, block), context.cause)
    context.freeze(inside, input.dims[-1])
    return _ordered(context, (*input.dims[:-2], channels))


@register_operator("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(context: Context, input: Symbolic, groups: int) -> tuple[Dim, ...]:
    """Channels (groups, each) are written (each, groups)."""
    pair = context.table.regroup([input.dims[1]], (groups, input.shape[1] // groups), context.cause)
    return (input.dims[0], (*pair[1], *pair[0]), *input.dims[2:])


FOURIER = [f"fft_{way}fft{tail}" for way in ("", "i", "r", "ir", "h", "ih") for tail in ("", "2", "n")]


@register_operator(*FOURIER)
def fourier(
    context: Context, input: Symbolic, size: Any = None, dim: Any = None, norm: Any = None, **sizes: Any
) -> tuple[Dim, ...]:
    """Space becomes frequencies; everything else does it side by side. Some call the size `n`, others `s`."""
    size = next((sizes[key] for key in ("n", "s") if key in sizes), size)
    name = context.cause.operator
    last = 2 if name.endswith("2") else input.ndim if name.endswith("n") else 1
    if dim is None and size is not None and name.endswith("n"):
        last = len(size)
    axes = (dim,) if isinstance(dim, int) else tuple(dim) if dim is not None else range(-last, 0)
    changed = {axis % input.ndim for axis in axes}
    context.unsupported(*(input.dims[i] for i in changed))
    shape = context.shapes[0]
    return tuple(context.fixed(shape[i]) if i in changed else own for i, own in enumerate(input.dims))


@register_operator("fft_fftshift", "fft_ifftshift")
def shifted(context: Context, input: Symbolic, dim: Any = None) -> tuple[Dim, ...]:
    """Frequencies turned round."""
    return fourier(context, input, None, tuple(range(input.ndim)) if dim is None else dim)
