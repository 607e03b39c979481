"""Space and shape: pooling, reductions, reshapes, parts and joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dimat.align.axes import Dim
from dimat.align.operators import Context, Rule, Symbolic, register_operator
from dimat.align.rules.entrywise import entrywise


def _pooling(spatial: int) -> Rule:
    def pool(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
        context.freeze(*input.dims[-spatial:])
        return (*input.dims[:-spatial], *(context.fixed(length) for length in context.shapes[0][-spatial:]))

    return pool


for _n in (1, 2, 3):
    _kinds = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
    register_operator(*(f"{kind}{_n}d" for kind in _kinds))(_pooling(_n))


@register_operator("interpolate", "upsample")
def interpolate(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Everything behind batch and channels is space."""
    context.freeze(*input.dims[2:])
    return (*input.dims[:2], *(context.fixed(length) for length in context.shapes[0][2:]))


@register_operator("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp")
def reduction(context: Context, input: Symbolic, dim: Any = None, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """What is reduced has no order; the other dimensions stay."""
    axes = kwargs.get("axis", dim)
    if axes is None or isinstance(axes, bool) or (isinstance(axes, Sequence) and not axes):  # var(unbiased) is a bool
        gone = set(range(input.ndim))
    else:
        gone = {axis % input.ndim for axis in ((axes,) if isinstance(axes, int) else axes)}
    shape = context.shapes[0]
    if len(shape) == input.ndim:
        return tuple(() if i in gone else dim for i, dim in enumerate(input.dims))
    return tuple(dim for i, dim in enumerate(input.dims) if i not in gone)


@register_operator("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel")
def reshape(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """The same entries in the same order, cut into other dimensions."""
    shape = context.shapes[0]
    return tuple(context.table.regroup(input.dims, shape, context.cause))


@register_operator("permute")
def permute(context: Context, input: Symbolic, *order: Any, dims: Any = ()) -> tuple[Dim, ...]:
    """Dimensions in another order."""
    order = order or (dims,)
    order = tuple(order[0]) if isinstance(order[0], Sequence) else order
    return tuple(input.dims[int(i)] for i in order)


@register_operator("transpose", "swapaxes", "swapdims")
def transpose(context: Context, input: Symbolic, dim0: int, dim1: int) -> tuple[Dim, ...]:
    """Two dimensions change places."""
    dims = list(input.dims)
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return tuple(dims)


@register_operator("mT")
def matrix_transpose(context: Context, input: Symbolic) -> tuple[Dim, ...]:
    """The transpose of every matrix in a batch: the last two dimensions change places."""
    return transpose(context, input, -1, -2)


@register_operator("T", "t")
def reverse(context: Context, input: Symbolic) -> tuple[Dim, ...]:
    """The transpose of a matrix; of other tensors all dimensions in the opposite order."""
    return input.dims[::-1]


@register_operator("expand", "expand_as", "broadcast_to")
def expand(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Repeats along dimensions of length one."""
    shape = context.shapes[0]
    return entrywise(context, input) if len(shape) >= input.ndim else input.dims


@register_operator("pad")
def pad(context: Context, input: Symbolic, pad: Sequence[int], *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Dimensions that get a border stay in order; `pad` counts from the last one."""
    dims = list(input.dims)
    for i in range(len(pad) // 2):
        if pad[2 * i] or pad[2 * i + 1]:
            context.unsupported(dims[-1 - i])
            dims[-1 - i] = context.fixed(context.shapes[0][-1 - i])
    return tuple(dims)


@register_operator("chunk", "split", "tensor_split", "narrow")
def parts(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> list[tuple[Dim, ...]]:
    """A dimension that is cut stays in order; the others move."""
    for i, dim in enumerate(input.dims):
        if any(shape[i] != input.shape[i] for shape in context.shapes):
            context.unsupported(dim)
    return [
        tuple(dim if n == m else context.fixed(n) for dim, n, m in zip(input.dims, shape, input.shape, strict=True))
        for shape in context.shapes
    ]


@register_operator("unbind")
def unbind(context: Context, input: Symbolic, dim: int = 0) -> list[tuple[Dim, ...]]:
    """One output for each entry of a dimension, which stays in order."""
    context.unsupported(input.dims[dim])
    rest = tuple(own for i, own in enumerate(input.dims) if i != dim % input.ndim)
    return [rest] * len(context.shapes)


@register_operator("cat", "concat", "concatenate")
def concatenate(
    context: Context, tensors: Sequence[Symbolic], dim: int = 0, *, axis: int | None = None
) -> tuple[Dim, ...]:
    """Joined dimensions stay in order; the others are tied."""
    where = (dim if axis is None else axis) % tensors[0].ndim
    out = list(tensors[0].dims)
    for other in tensors[1:]:
        for i, own in enumerate(other.dims):
            if i != where:
                context.tie(out[i], own)
    context.unsupported(*(tensor.dims[where] for tensor in tensors))
    out[where] = context.fixed(context.shapes[0][where])
    return tuple(out)


@register_operator("getitem")
def getitem(context: Context, input: Symbolic, index: Any) -> tuple[Dim, ...]:
    """Numbers, slices, None and `...`: a dimension that is not taken whole stays in order."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not (item is None or item is Ellipsis or isinstance(item, (int, slice))) for item in items):
        # A tensor as an index says which entry is which: neither it nor what it picks from may change its order.
        picked = [dim for item in items if isinstance(item, Symbolic) for dim in item.dims]
        context.unsupported(*input.dims, *picked)
        return tuple(context.fixed(length) for length in context.shapes[0])
    used = sum(isinstance(item, (int, slice)) for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    items[at : at + 1] = [slice(None)] * (input.ndim - used)
    out: list[Dim] = []
    rest = iter(zip(input.dims, input.shape, strict=True))
    for item in items:
        if item is None:
            out.append(())
            continue
        dim, length = next(rest)
        if isinstance(item, slice) and range(*item.indices(length)) == range(length):
            out.append(dim)
            continue
        context.unsupported(dim)
        if isinstance(item, slice):
            out.append(context.fixed(len(range(*item.indices(length)))))
    return tuple(out)
