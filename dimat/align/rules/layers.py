"""Layers: what contracts one dimension and makes another, and what normalises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dimat.align.atoms import Dim
from dimat.align.operators import Context, Symbolic, register_operator


@register_operator("linear")
def linear(context: Context, input: Symbolic, weight: Symbolic, bias: Symbolic | None = None) -> tuple[Dim, ...]:
    """Y = x Wᵀ + b with W of shape (out, in)."""
    context.contract(input.dims[-1], weight.dims[-1], left=input.dims[:-1], right=weight.dims[:-1])
    out = weight.dims[:-1]
    if bias is not None and out:
        context.tie(out[0], bias.dims[0])
    return (*input.dims[:-1], *out)


@register_operator("conv1d", "conv2d", "conv3d")
def convolution(
    context: Context,
    input: Symbolic,
    weight: Symbolic,
    bias: Symbolic | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Dim, ...]:
    """Weight of shape (out, in / groups, kernel...): groups may change places, and channels inside of each."""
    spatial = weight.ndim - 2
    channels, out = input.dims[-spatial - 1], weight.dims[0]
    context.freeze(*weight.dims[2:], *input.dims[-spatial:])
    several, each = context.table.regroup([channels], (groups, weight.shape[1]), context.cause)
    outer, inner = context.table.regroup([out], (groups, weight.shape[0] // groups), context.cause)
    context.tie(several, outer)
    context.contract(each, weight.dims[1], shared=[several], left=input.dims[: -spatial - 1], right=[inner])
    out = (*outer, *inner)
    if bias is not None:
        context.tie(out, bias.dims[0])
    space = tuple(context.fixed(length) for length in context.shapes[0][-spatial:])
    return (*input.dims[: -spatial - 1], out, *space)


@register_operator("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    context: Context,
    input: Symbolic,
    weight: Symbolic,
    bias: Symbolic | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> tuple[Dim, ...]:
    """Weight of shape (in, out / groups, kernel...)."""
    spatial = weight.ndim - 2
    channels, out = input.dims[-spatial - 1], weight.dims[1]
    context.freeze(*weight.dims[2:], *input.dims[-spatial:])
    several, each = context.table.regroup([channels], (groups, weight.shape[0] // groups), context.cause)
    outer, inner = context.table.regroup([weight.dims[0]], (groups, weight.shape[0] // groups), context.cause)
    context.tie(several, outer)
    context.contract(each, inner, shared=[several], left=input.dims[: -spatial - 1], right=[out])
    out = (*several, *out)
    if bias is not None:
        context.tie(out, bias.dims[0])
    space = tuple(context.fixed(length) for length in context.shapes[0][-spatial:])
    return (*input.dims[: -spatial - 1], out, *space)


@register_operator("batch_norm", "instance_norm")
def batch_norm(
    context: Context,
    input: Symbolic,
    running_mean: Symbolic | None = None,
    running_var: Symbolic | None = None,
    weight: Symbolic | None = None,
    bias: Symbolic | None = None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Dim, ...]:
    """Each channel (dimension 1) by itself."""
    for vector in (running_mean, running_var, weight, bias):
        if vector is not None:
            context.tie(input.dims[1], vector.dims[0])
    context.witness(input.dims[:2])
    return input.dims


@register_operator("layer_norm", "rms_norm")
def layer_norm(
    context: Context,
    input: Symbolic,
    normalized_shape: Sequence[int],
    weight: Symbolic | None = None,
    bias: Symbolic | float | None = None,
    eps: float | None = None,
) -> tuple[Dim, ...]:
    """Statistics over the last dimensions do not care about their order; scale and shift move along."""
    for affine in (weight, bias):
        if isinstance(affine, Symbolic):
            for dim, own in zip(input.dims[-len(normalized_shape) :], affine.dims, strict=True):
                context.tie(dim, own)
    context.witness(input.dims[: -len(normalized_shape)])
    return input.dims


@register_operator("group_norm")
def group_norm(
    context: Context,
    input: Symbolic,
    num_groups: int,
    weight: Symbolic | None = None,
    bias: Symbolic | None = None,
    eps: float = 1e-5,
) -> tuple[Dim, ...]:
    """Groups may change places, and channels inside of each."""
    for vector in (weight, bias):
        if vector is not None:
            context.tie(input.dims[1], vector.dims[0])
    groups = context.table.regroup([input.dims[1]], (num_groups, input.shape[1] // num_groups), context.cause)
    context.witness([input.dims[0], groups[0]])
    context.witness([input.dims[0], tuple(atom for dim in groups for atom in dim)])
    return (input.dims[0], tuple(atom for dim in groups for atom in dim), *input.dims[2:])


@register_operator("embedding")
def embedding(context: Context, input: Symbolic, weight: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Rows are chosen by their number, so they stay; columns are units."""
    context.freeze(weight.dims[0])
    return (*input.dims, weight.dims[1])


@register_operator("embedding_bag")
def embedding_bag(context: Context, input: Symbolic, weight: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Rows are chosen by their number and added up bag by bag; columns are units."""
    others = [value for value in (*args, *kwargs.values()) if isinstance(value, Symbolic)]
    context.freeze(weight.dims[0], *(dim for tensor in (input, *others) for dim in tensor.dims))
    return (context.fixed(context.shapes[0][0]), weight.dims[1])


@register_operator("matmul", "bmm", "mm", "sparse_mm")
def matmul(context: Context, input: Symbolic, other: Symbolic) -> tuple[Dim, ...]:
    """The inner dimension is summed over; leading ones broadcast."""
    rows, columns = input.dims[-2:-1], other.dims[-1:] if other.ndim > 1 else ()
    batch: list[Dim] = []
    for back in range(max(input.ndim, other.ndim), 2, -1):
        long = [t.dims[-back] for t in (input, other) if t.ndim >= back and t.shape[-back] != 1]
        if len(long) == 2:
            context.tie(*long)
        batch.append(long[0] if long else ())
    summed = other.dims[-2] if other.ndim > 1 else other.dims[0]
    context.contract(input.dims[-1], summed, shared=batch, left=rows, right=columns)
    return (*batch, *rows, *columns)


@register_operator("dot", "vdot", "inner", "mv")
def inner_product(context: Context, input: Symbolic, other: Symbolic) -> tuple[Dim, ...]:
    """The last dimensions are summed over together; all others stand side by side."""
    if input.ndim and other.ndim:
        context.contract(input.dims[-1], other.dims[-1], left=input.dims[:-1], right=other.dims[:-1])
    return (*input.dims[:-1], *other.dims[:-1]) if input.ndim and other.ndim else input.dims + other.dims


@register_operator("rmatmul")
def reflected_matmul(context: Context, input: Symbolic, other: Symbolic) -> tuple[Dim, ...]:
    """`other @ input`."""
    return matmul(context, other, input)


@register_operator("addmm")
def addmm(context: Context, input: Symbolic, mat1: Symbolic, mat2: Symbolic, **kwargs: Any) -> tuple[Dim, ...]:
    """Input + mat1 @ mat2."""
    out = matmul(context, mat1, mat2)
    for own, dim, length in zip(input.dims[::-1], out[::-1], input.shape[::-1], strict=False):
        if length != 1:
            context.tie(own, dim)
    return out


@register_operator("bilinear")
def bilinear(
    context: Context, input1: Symbolic, input2: Symbolic, weight: Symbolic, bias: Symbolic | None = None
) -> tuple[Dim, ...]:
    """y_k = x_1ᵀ W_k x_2 + b_k with W of shape (out, in 1, in 2)."""
    for one, two in zip(input1.dims[:-1], input2.dims[:-1], strict=True):
        context.tie(one, two)
    out, *inside = weight.dims
    context.contract(input1.dims[-1], inside[0], left=input1.dims[:-1], right=[out, inside[1]])
    context.contract(input2.dims[-1], inside[1], left=input2.dims[:-1], right=[out])
    if bias is not None:
        context.tie(weight.dims[0], bias.dims[0])
    return (*input1.dims[:-1], weight.dims[0])


@register_operator("weight_norm", "norm_except_dim")
def weight_norm(context: Context, v: Symbolic, g: Symbolic | int = 2, dim: int = 0) -> tuple[Dim, ...]:
    """W = g v / ‖v‖, with one norm for each entry of a dimension (or one for all, when `dim` is -1)."""
    norms = tuple(own if i == dim else () for i, own in enumerate(v.dims))
    context.witness(norms)
    if isinstance(g, int):  # only the norms are asked for
        return norms if dim >= 0 else ()
    for own, other, length in zip(v.dims[::-1], g.dims[::-1], g.shape[::-1], strict=False):
        if length != 1:
            context.tie(own, other)
    return v.dims
