"""Shape: reshapes, parts and joins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dimat.align.atoms import Dim
from dimat.align.operators import Context, Symbolic, register_operator
from dimat.align.rules.lookup import look_up


@register_operator("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel")
def reshape(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """The same entries in the same order, cut into other dimensions."""
    shape = context.shapes[0]
    if math.prod(shape) != math.prod(input.shape):
        raise ValueError("entries of another size, as `view` makes them of another dtype")
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


@register_operator("movedim", "moveaxis")
def movedim(context: Context, input: Symbolic, source: Any, destination: Any) -> tuple[Dim, ...]:
    """Some dimensions go to other places, the rest keep their sequence."""
    pairs = [(source, destination)] if isinstance(source, int) else zip(source, destination, strict=True)
    places = {to % input.ndim: origin % input.ndim for origin, to in pairs}
    rest = iter([i for i in range(input.ndim) if i not in places.values()])
    return tuple(input.dims[places[at] if at in places else next(rest)] for at in range(input.ndim))


@register_operator("mT", "mH", "adjoint")
def matrix_transpose(context: Context, input: Symbolic) -> tuple[Dim, ...]:
    """The transpose of every matrix in a batch: the last two dimensions change places."""
    return transpose(context, input, -1, -2)


@register_operator("T", "t", "H")
def reverse(context: Context, input: Symbolic) -> tuple[Dim, ...]:
    """The transpose of a matrix; of other tensors all dimensions in the opposite order."""
    return input.dims[::-1]


@register_operator("expand", "expand_as", "broadcast_to")
def expand(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Repeats along dimensions of length one: what is repeated is alike, and may move."""
    return _expanded(context, input, context.shapes[0])


@register_operator("broadcast_tensors")
def broadcast_tensors(context: Context, *tensors: Any) -> list[tuple[Dim, ...]]:
    """Every tensor expanded to the shape of all."""
    several = tensors if isinstance(tensors[0], Symbolic) else tensors[0]
    return [_expanded(context, tensor, shape) for tensor, shape in zip(several, context.shapes, strict=True)]


def _expanded(context: Context, input: Symbolic, shape: Sequence[int]) -> tuple[Dim, ...]:
    new = len(shape) - input.ndim
    old = zip(input.dims, input.shape, shape[new:], strict=True)
    return (
        *(context.free(length) for length in shape[:new]),
        *(dim if before == after else context.free(after) for dim, before, after in old),
    )


CONSTANTS = [
    f"{new}{kind}{like}"
    for kind in ("zeros", "ones", "full", "empty")
    for new, like in (("", ""), ("new_", ""), ("", "_like"))
]


@register_operator(*CONSTANTS)
def constant(context: Context, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Entries that are all alike: also inside of each other, dimensions may have any order."""
    if any(isinstance(value, Symbolic) for value in (*args[1:], *kwargs.values())):
        raise TypeError("filled with a tensor")
    dims: list[Dim] = []
    for length in context.shapes[0]:
        dims.append(context.table.free(length, follows=dims))
    return tuple(dims)


@register_operator("pad")
def pad(
    context: Context, input: Symbolic, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> tuple[Dim, ...]:
    """A border of one value has no order; any other border repeats what stands beside it. `pad` counts from the end."""
    dims = list(input.dims)
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        at = -1 - i
        if not before and not after:
            continue
        if mode != "constant" or isinstance(value, Symbolic):
            context.unsupported(dims[at])
            dims[at] = context.fixed(context.shapes[0][at])
        else:
            inside = context.cut(dims[at], max(-before, 0), input.shape[at] - max(-after, 0))
            border = [context.free(max(length, 0)) for length in (before, after)]
            dims[at] = context.join([dim for dim in (border[0], inside, border[1]) if context.table.length(dim)])
    return tuple(dims)


@register_operator("chunk", "split", "tensor_split", "split_with_sizes")
def parts(context: Context, input: Symbolic, *args: Any, **kwargs: Any) -> list[tuple[Dim, ...]]:
    """A dimension that is cut up: its pieces move each for itself."""
    cut = [i for i in range(input.ndim) if any(shape[i] != input.shape[i] for shape in context.shapes)]
    if not cut:
        return [input.dims for _ in context.shapes]
    (at,) = cut
    if sum(shape[at] for shape in context.shapes) != input.shape[at]:
        raise ValueError("pieces that do not follow each other")
    out, start = [], 0
    for shape in context.shapes:
        dims = list(input.dims)
        dims[at] = context.cut(input.dims[at], start, start + shape[at])
        out.append(tuple(dims))
        start += shape[at]
    return out


@register_operator("glu")
def gated(context: Context, input: Symbolic, dim: int = -1) -> tuple[Dim, ...]:
    """The first half times the sigmoid of the second."""
    dims, half = list(input.dims), input.shape[dim] // 2
    first, second = (context.cut(dims[dim], start, start + half) for start in (0, half))
    context.tie(first, second)
    dims[dim] = first
    return tuple(dims)


@register_operator("narrow")
def narrow(context: Context, input: Symbolic, dim: int, start: int, length: int) -> tuple[Dim, ...]:
    """A slice of one dimension."""
    dims = list(input.dims)
    start = start % input.shape[dim] if start < 0 else start
    dims[dim] = context.cut(dims[dim], start, start + length)
    return tuple(dims)


@register_operator("unbind")
def unbind(context: Context, input: Symbolic, dim: int = 0) -> list[tuple[Dim, ...]]:
    """One output for each entry of a dimension, which stays in order."""
    at = dim % input.ndim
    return [tuple(context.select(input.dims, at, index)) for index in range(len(context.shapes))]


@register_operator("select")
def select(context: Context, input: Symbolic, dim: int, index: int) -> tuple[Dim, ...]:
    """One entry of a dimension, which stays in order."""
    return tuple(context.select(input.dims, dim % input.ndim, index % input.shape[dim]))


@register_operator("index_select")
def index_select(context: Context, input: Symbolic, dim: int, index: Symbolic) -> tuple[Dim, ...]:
    """Entries along one dimension, by their numbers: it must keep its order, and the numbers lend theirs."""
    dims = list(input.dims)
    context.unsupported(dims[dim])
    dims[dim] = index.dims[0] if index.ndim else ()
    return tuple(dims)


@register_operator("cat", "concat", "concatenate")
def concatenate(
    context: Context, tensors: Sequence[Symbolic], dim: int = 0, *, axis: int | None = None
) -> tuple[Dim, ...]:
    """One after the other along a dimension; the other dimensions are tied."""
    whole = [tensor for tensor in tensors if tensor.shape != (0,)]  # an empty tensor joins with any shape
    where = (dim if axis is None else axis) % whole[0].ndim
    out = list(whole[0].dims)
    for other in whole[1:]:
        for i, own in enumerate(other.dims):
            if i != where:
                context.tie(out[i], own)
    out[where] = context.join([tensor.dims[where] for tensor in whole if tensor.shape[where]])
    return tuple(out)


@register_operator("hstack", "vstack", "row_stack")
def stacked_parts(context: Context, tensors: Sequence[Symbolic]) -> tuple[Dim, ...]:
    """One after the other along the second dimension (of vectors the only one), or along the first."""
    rows = context.cause.operator != "hstack"
    if rows and tensors[0].ndim < 2:
        raise ValueError("vectors become rows")
    return concatenate(context, tensors, 0 if rows or tensors[0].ndim == 1 else 1)


@register_operator("stack")
def stack(context: Context, tensors: Sequence[Symbolic], dim: int = 0) -> tuple[Dim, ...]:
    """Along a new dimension, which stays in order and tells the others apart."""
    new = context.fixed(len(tensors))
    out = [context.table.stack(dims, new, context.cause) for dims in zip(*(one.dims for one in tensors), strict=True)]
    out.insert(dim % (tensors[0].ndim + 1), new)
    return tuple(out)


@register_operator("getitem")
def getitem(context: Context, input: Symbolic, index: Any) -> tuple[Dim, ...]:
    """Numbers, slices, None, `...` and tensors: a slice becomes a segment, what a number picks from stays in order."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not (item is None or item is Ellipsis or type(item) in (int, slice)) for item in items):
        return look_up(context, input, items)
    used = sum(isinstance(item, (int, slice)) for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    items[at : at + 1] = [slice(None)] * (input.ndim - used)
    dims = list(input.dims)
    numbers: list[tuple[int, int]] = []  # (position among those left, number), the last first: earlier ones stay
    position = -1
    for item, length in zip([item for item in items if item is not None], input.shape, strict=True):
        position += 1
        if isinstance(item, int):
            numbers.insert(0, (position, item % length))
            continue
        span = range(*item.indices(length))
        if span.step == 1 or len(span) <= 1:
            dims[position] = context.cut(dims[position], span.start, span.start + len(span))
        else:
            context.unsupported(dims[position])
            dims[position] = context.fixed(len(span))
    for where, number in numbers:
        dims = list(context.select(dims, where, number))
    left = iter(dims)
    return tuple(() if item is None else next(left) for item in items if not isinstance(item, int))


@register_operator("setitem")
def setitem(context: Context, input: Symbolic, index: Any, value: Any) -> list[tuple[Dim, ...]]:
    """What is written to a part has the dimensions of that part, as broadcasting matches them."""
    part = getitem(context, input, index)
    if isinstance(value, Symbolic):
        for back in range(1, min(value.ndim, len(part)) + 1):
            if value.shape[-back] != 1:
                context.tie(part[-back], value.dims[-back])
    return []
