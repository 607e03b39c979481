"""Entries picked by a tensor of numbers or of truth: what they are picked from keeps its order, the rest moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dimat.align.atoms import Dim
from dimat.align.operators import Context, Symbolic, register_operator


def look_up(context: Context, input: Symbolic, items: Sequence[Any]) -> tuple[Dim, ...]:
    """`input[items]` where tensors stand side by side for some dimensions and all others are taken whole.

    Numbers i of any shape put their own dimensions in the place of those that they pick from; so does a mask along
    one dimension, whose output has as many entries as it has truths.

    Raises:
        ValueError: another form of index.
    """
    tensors = [item for item in items if isinstance(item, Symbolic)]
    whole = [slice(None)] * (input.ndim - sum(item is not Ellipsis for item in items))
    at = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    spread = [*items[:at], *whole, *items[at + 1 :]]
    first = next(i for i, item in enumerate(spread) if isinstance(item, Symbolic))
    last = first + len(tensors)
    others = [*spread[:first], *spread[last:]]
    if len(spread) != input.ndim or any(type(item) is not slice or item != slice(None) for item in others):
        raise ValueError("tensors as an index beside something else")
    # A table's rows are numbered by nature; units that are picked by number lose a freedom that they had.
    hold = context.unsupported if input.from_input else context.freeze
    hold(*input.dims[first:last])
    context.freeze(*(dim for tensor in tensors for dim in tensor.dims))
    num_new = len(context.shapes[0]) - len(others)
    if num_new != max(tensor.ndim for tensor in tensors):
        raise ValueError("a mask over several dimensions")
    new = context.shapes[0][first : first + num_new]
    return (*input.dims[:first], *(context.fixed(length) for length in new), *input.dims[last:])


@register_operator("gather", "take_along_dim")
def gather(context: Context, input: Symbolic, dim: int, index: Symbolic) -> tuple[Dim, ...]:
    """Entries along one dimension, other numbers at every place: out[i, j] = input[index[i, j], j] for dim 0."""
    at = dim % input.ndim
    context.freeze(input.dims[at])
    context.witness([own for i, own in enumerate(input.dims) if i != at])  # nothing inside follows where it came from
    out = list(index.dims)
    for i, (own, picks) in enumerate(zip(input.dims, index.dims, strict=True)):
        if i == at:
            continue
        if input.shape[i] == index.shape[i]:
            context.tie(own, picks)
        else:  # only the first entries are read, or one entry stands for all
            context.unsupported(own, picks)
            out[i] = context.fixed(context.shapes[0][i])
    return tuple(out)


@register_operator("index_add", "index_copy")
def index_add(
    context: Context, input: Symbolic, dim: int, index: Symbolic, source: Symbolic, **kwargs: Any
) -> tuple[Dim, ...]:
    """Entry i of the source goes to entry index[i] along one dimension (edges to their nodes)."""
    at = dim % input.ndim
    context.freeze(source.dims[at], *index.dims)
    context.unsupported(input.dims[at])
    context.witness([own for i, own in enumerate(source.dims) if i != at])
    for i, (own, other) in enumerate(zip(input.dims, source.dims, strict=True)):
        if i != at:
            context.tie(own, other)
    return input.dims


@register_operator("scatter", "scatter_add", "scatter_reduce")
def scatter(
    context: Context, input: Symbolic, dim: int, index: Symbolic, src: Symbolic | float, *args: Any, **kwargs: Any
) -> tuple[Dim, ...]:
    """out[index[i, j], j] = src[i, j] for dim 0, or their sum: with other numbers at every place."""
    at = dim % input.ndim
    sources = [index, src] if isinstance(src, Symbolic) else [index]
    context.freeze(*(one.dims[at] for one in sources))
    context.unsupported(input.dims[at])
    context.witness([own for i, own in enumerate(sources[-1].dims) if i != at])
    for i, own in enumerate(input.dims):
        for one in sources if i != at else []:
            if one.shape[i] == input.shape[i] == index.shape[i]:
                context.tie(own, one.dims[i])
            else:  # only the first entries are written or read
                context.unsupported(own, one.dims[i])
    return input.dims
