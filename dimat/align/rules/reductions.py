"""Reductions: what is summed over, counted or sorted has no order; where something was found tells the order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dimat.align.atoms import Dim
from dimat.align.operators import Context, Symbolic, register_operator
from dimat.align.rules.entrywise import entrywise

REDUCTIONS = """
    mean sum amax amin var std prod logsumexp var_mean std_mean nanmean nansum any all count_nonzero
"""


@register_operator(*REDUCTIONS.split())
def reduction(context: Context, input: Symbolic, dim: Any = None, *args: Any, **kwargs: Any) -> list[tuple[Dim, ...]]:
    """What is reduced has no order; the other dimensions stay."""
    axes = kwargs.get("axis", dim)
    if axes is None or isinstance(axes, bool) or (isinstance(axes, Sequence) and not axes):  # var(unbiased) is a bool
        gone = set(range(input.ndim))
    else:
        gone = {axis % input.ndim for axis in ((axes,) if isinstance(axes, int) else axes)}
    return [_without(input, gone, shape) for shape in context.shapes]


@register_operator("norm", "vector_norm", "linalg_vector_norm")
def norm(
    context: Context, input: Symbolic, p: Any = None, dim: Any = None, *args: Any, **kwargs: Any
) -> list[tuple[Dim, ...]]:
    """A norm over one or more dimensions; of a matrix only that of its entries does not ask for their order."""
    if isinstance(p, str) and p != "fro":
        raise ValueError("a norm of matrices")
    return reduction(context, input, dim)


@register_operator("linalg_norm")
def norm_of_vectors(
    context: Context, A: Symbolic, ord: Any = None, dim: Any = None, *args: Any, **kwargs: Any
) -> list[tuple[Dim, ...]]:
    """A norm along one dimension, or of all entries.

    Raises:
        ValueError: a norm of matrices.
    """
    if not isinstance(dim, int) and ord is not None:
        raise ValueError("a norm of matrices")
    return reduction(context, A, dim)


@register_operator("max", "min", "median", "nanmedian", "argmax", "argmin")
def extremes(
    context: Context, input: Symbolic, dim: Any = None, *args: Any, **kwargs: Any
) -> list[tuple[Dim, ...]] | tuple[Dim, ...]:
    """The largest of a dimension, or the larger of two tensors; where it was found tells the order to who asks."""
    other = kwargs.get("other", dim)
    if isinstance(other, Symbolic):
        return entrywise(context, input, other)
    if dim is None:
        context.freeze(*(input.dims if context.cause.operator.startswith("arg") else ()))
        return [_without(input, set(range(input.ndim)), shape) for shape in context.shapes]
    where = len(context.shapes) - 1  # behind the values, if they are asked for
    context.reveal(where, input.dims[dim])
    return [_without(input, {dim % input.ndim}, shape) for shape in context.shapes]


@register_operator("sort", "argsort")
def sorting(context: Context, input: Symbolic, dim: int = -1, *args: Any, **kwargs: Any) -> list[tuple[Dim, ...]]:
    """A dimension by its values, and where they stood, which tells the order to who asks."""
    at = dim % input.ndim
    context.reveal(len(context.shapes) - 1, input.dims[at])
    context.witness([own for i, own in enumerate(input.dims) if i != at])
    new = [context.fixed(shape[at]) for shape in context.shapes]
    return [(*input.dims[:at], own, *input.dims[at + 1 :]) for own in new]


@register_operator("topk")
def largest(
    context: Context, input: Symbolic, k: int, dim: int = -1, *args: Any, **kwargs: Any
) -> list[tuple[Dim, ...]]:
    """The first entries of a sorted dimension."""
    return sorting(context, input, dim)


def _without(input: Symbolic, gone: set[int], shape: Sequence[int]) -> tuple[Dim, ...]:
    if len(shape) == input.ndim:  # keepdim
        return tuple(() if i in gone else dim for i, dim in enumerate(input.dims))
    return tuple(dim for i, dim in enumerate(input.dims) if i not in gone)
