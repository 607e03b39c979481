"""Distances and losses: two tensors are compared entry by entry, and some dimensions are summed over."""

from __future__ import annotations

from typing import Any

from dimat.align.atoms import Dim
from dimat.align.operators import Context, Symbolic, register_operator
from dimat.align.rules.attention import broadcast

PAIRED = """
    mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div
    poisson_nll_loss soft_margin_loss
"""


@register_operator(*PAIRED.split())
def paired_loss(context: Context, input: Symbolic, target: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """One number for all pairs of entries, or one for each."""
    others = [value for value in (*args, *kwargs.values()) if isinstance(value, Symbolic)]
    pairs = broadcast(context, *(one.dims for one in (input, target, *others)))
    return pairs if context.shapes[0] else ()


@register_operator("cross_entropy", "nll_loss")
def class_loss(
    context: Context, input: Symbolic, target: Symbolic, weight: Symbolic | None = None, *args: Any, **kwargs: Any
) -> tuple[Dim, ...]:
    """Classes are numbered from outside; everything else is matched with the targets."""
    at = min(input.ndim - 1, 1)
    context.freeze(input.dims[at], *(weight.dims if weight is not None else ()))
    rest = (*input.dims[:at], *input.dims[at + 1 :])
    classes_given = target.ndim == input.ndim
    if classes_given:
        context.tie(input.dims[at], target.dims[at])
    own = (*target.dims[:at], *target.dims[at + 1 :]) if classes_given else target.dims
    for one, other in zip(rest, own, strict=True):
        context.tie(one, other)
    return rest if context.shapes[0] else ()


@register_operator("cosine_similarity", "pairwise_distance")
def similarity(
    context: Context, x1: Symbolic, x2: Symbolic, dim: Any = None, *args: Any, **kwargs: Any
) -> tuple[Dim, ...]:
    """Vectors along one dimension: of a cosine the one that is named, of a distance the last."""
    pairs = broadcast(context, x1.dims, x2.dims)
    named = 1 if dim is None else dim
    at = named % len(pairs) if context.cause.operator == "cosine_similarity" else len(pairs) - 1
    rest = (*pairs[:at], *pairs[at + 1 :])
    context.witness(rest)
    return rest if len(context.shapes[0]) == len(rest) else (*pairs[:at], (), *pairs[at + 1 :])


@register_operator("cdist")
def distances(context: Context, x1: Symbolic, x2: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Every row of one matrix against every row of the other, summed over the columns."""
    batch = broadcast(context, x1.dims[:-2], x2.dims[:-2])
    context.contract(x1.dims[-1], x2.dims[-1], shared=batch, left=[x1.dims[-2]], right=[x2.dims[-2]])
    return (*batch, x1.dims[-2], x2.dims[-2])
