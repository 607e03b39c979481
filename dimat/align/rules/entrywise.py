"""Operators that work entry by entry, and those that treat every entry of a dimension alike."""

from __future__ import annotations

import math
from typing import Any

from dimat.align.atoms import Dim
from dimat.align.operators import Context, Symbolic, register_operator

ACTIVATIONS = """
    relu relu6 leaky_relu rrelu elu selu celu gelu silu mish softplus sigmoid tanh hardtanh hardswish
    hardsigmoid logsigmoid log_sigmoid softsign tanhshrink softshrink hardshrink threshold
"""
ENTRYWISE = """
    add sub mul div truediv floordiv floor_divide true_divide mod remainder fmod pow rsub radd rmul rdiv
    rtruediv rpow iadd isub imul itruediv idiv ipow neg abs pos exp exp2 expm1 log log1p log2 sqrt rsqrt
    square reciprocal sin cos erf sign round floor ceil clamp clip clamp_min clamp_max nan_to_num maximum
    minimum fmax fmin where lerp addcmul addcdiv masked_fill eq ne lt le gt ge logical_and logical_or
    logical_not isnan isinf isfinite and or invert dropout alpha_dropout dropout1d dropout2d dropout3d
    feature_alpha_dropout contiguous clone detach data float double half bfloat16 alias identity positive
    requires_grad copy fill zero tan asin acos atan atan2 arctan arctan2 sinh cosh asinh acosh atanh sinc erfc
    logit lgamma digamma hypot xlogy logaddexp logaddexp2 copysign trunc frac sgn heaviside absolute negative multiply
    subtract divide isclose logical_xor xor bitwise_and bitwise_or bitwise_xor bitwise_not
"""


@register_operator(*ACTIVATIONS.split(), nonlinear=True)
@register_operator(*ENTRYWISE.split())
def entrywise(context: Context, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Every tensor is matched with the others as broadcasting does."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Symbolic)]
    if context.cause.operator == "where" and len(args) + len(kwargs) == 1:
        raise TypeError("`where` with a condition alone gives positions")
    shape = context.shapes[0]
    out: list[Dim] = []
    for back in range(len(shape), 0, -1):
        long = [t.dims[-back] for t in tensors if t.ndim >= back and t.shape[-back] != 1]
        for other in long[1:]:
            context.tie(long[0], other)
        out.append(long[0] if long else context.fixed(shape[-back]))
    return tuple(out)


@register_operator("softmax", "log_softmax", "softmin")
def softmax(context: Context, input: Symbolic, dim: int | None = None, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Divided by a sum over one dimension, which does not care about its order."""
    if dim is None:
        raise TypeError("softmax without a dimension")
    return _divided(context, input, dim)


@register_operator("normalize")
def normalize(
    context: Context, input: Symbolic, p: float = 2.0, dim: int = 1, *args: Any, **kwargs: Any
) -> tuple[Dim, ...]:
    """Divided by a norm over one dimension."""
    return _divided(context, input, dim)


def _divided(context: Context, input: Symbolic, dim: int) -> tuple[Dim, ...]:
    at = dim % input.ndim
    context.witness([own for i, own in enumerate(input.dims) if i != at])
    return input.dims


@register_operator("to", "type", "type_as", "cpu", "cuda")
def converted(context: Context, x: Symbolic, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Another dtype or device."""
    return x.dims


@register_operator("prelu", nonlinear=True)
def prelu(context: Context, x: Symbolic, weight: Symbolic) -> tuple[Dim, ...]:
    """One slope for all, or one for each channel."""
    if math.prod(weight.shape) > 1:
        context.tie(weight.dims[0], x.dims[1])
    return x.dims
