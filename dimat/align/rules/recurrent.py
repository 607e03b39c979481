"""Recurrent modules: one order of units for a layer's state, its cell and every gate.

A layer with H units and G gates (four in an LSTM, three in a GRU, one in a plain RNN) keeps

    W_ih of shape (G·H, inputs),   W_hh of shape (G·H, outputs),   biases of shape (G·H,),

whose rows are (G, H): gate by gate, and in every gate the same units. The state h that W_hh reads is what the layer
puts out, so its columns carry those units, too; only an LSTM with a projection W_hr of shape (P, H) puts out P units
of another kind. Every direction of every layer has units of its own.

The rules belong to the module classes, so a module is one operator: what cuDNN or a C++ loop does inside is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils.rnn import PackedSequence

from dimat.align.atoms import Dim
from dimat.align.operators import Context, Symbolic, register_operator


@register_operator(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(
    context: Context, module: nn.RNNBase, input: Symbolic | PackedSequence, hx: Any = None
) -> list[tuple[Dim, ...]]:
    """Layers on top of each other; both directions of one are joined for the next.

    The answers are the output (or what is inside of a packed one), the last h and, of an LSTM, the last c.
    """
    x = context.parameter(input.data) if isinstance(input, PackedSequence) else input
    packed = isinstance(input, PackedSequence)
    is_batched = not packed and x.ndim == 3
    outer = x.dims[:-1]
    context.freeze(outer[1 if is_batched and module.batch_first else 0])  # time
    # h and c of all layers have shape (layers · directions, batch, units); without a batch that dimension is missing.
    batch: tuple[Dim, ...] = (outer[0 if module.batch_first else 1],) if is_batched else ()
    if packed:
        batch = (context.fixed(context.shapes[-1][1]),)
    before = list(hx) if isinstance(hx, (tuple, list)) else [] if hx is None else [hx]
    for state in before:
        for own, dim in zip(state.dims[1:-1], batch, strict=True):
            context.tie(own, dim)
    features = x.dims[-1]
    after: list[list[Dim]] = []  # (h, c) of every direction of every layer
    directions = 2 if module.bidirectional else 1
    for row, tensors in enumerate(module.all_weights):
        weights = [context.parameter(tensor) for tensor in tensors]
        projection = weights.pop() if module.proj_size else None
        after.append(_layer(context, features, weights, module.hidden_size, projection))
        for state, own in zip(before, after[-1], strict=False):  # all but an LSTM carry h alone
            context.tie(context.select(state.dims, 0, row)[-1], own)
        if len(after) % directions == 0:
            features = context.join([h for h, _ in after[-directions:]])
    new = context.fixed(len(after))
    states = [
        (new, *batch, context.table.stack([one[i] for one in after], new, context.cause))
        for i in range(2 if _has_cell(module) else 1)
    ]
    indices = [tensor for tensor in input[1:] if tensor is not None] if isinstance(input, PackedSequence) else []
    return [(*outer, features), *(context.parameter(tensor).dims for tensor in indices), *states]


@register_operator(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def cell(context: Context, module: nn.RNNCellBase, input: Symbolic, hx: Any = None) -> list[tuple[Dim, ...]]:
    """One step of one layer."""
    tensors = (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    weights = [context.parameter(tensor) for tensor in tensors if tensor is not None]
    after = _layer(context, input.dims[-1], weights, module.hidden_size)
    before = list(hx) if isinstance(hx, (tuple, list)) else [] if hx is None else [hx]
    for state, own in zip(before, after, strict=False):
        for dim, outer in zip(state.dims[:-1], input.dims[:-1], strict=True):
            context.tie(dim, outer)
        context.tie(state.dims[-1], own)
    return [(*input.dims[:-1], own) for own in after[: 2 if _has_cell(module) else 1]]


@register_operator("pack_padded_sequence")
def pack(context: Context, input: Symbolic, lengths: Symbolic, batch_first: bool = False) -> list[tuple[Dim, ...]]:
    """Steps of all sequences behind each other, without the padding; what stands at each step is not touched."""
    context.freeze(*input.dims[:2], *lengths.dims)
    return [_ordered(context, 0, input.dims[2:]), _ordered(context, 1)]


@register_operator("pad_packed_sequence")
def pad(context: Context, data: Symbolic, batch_sizes: Symbolic, *args: Any) -> list[tuple[Dim, ...]]:
    """What `pack` undid."""
    context.freeze(data.dims[0], *batch_sizes.dims)
    return [_ordered(context, 0, data.dims[1:]), _ordered(context, 1)]


def _ordered(context: Context, output: int, kept: tuple[Dim, ...] = ()) -> tuple[Dim, ...]:
    """New dimensions that stay in order, then those that are kept."""
    shape = context.shapes[output]
    return (*(context.fixed(length) for length in shape[: len(shape) - len(kept)]), *kept)


def _layer(
    context: Context, features: Dim, weights: Sequence[Symbolic], size: int, projection: Symbolic | None = None
) -> list[Dim]:
    """Tie one direction of one layer; the dimensions of its output h and of its cell c."""
    rows: list[Dim] = []
    for weight in weights:
        gates, units = context.table.regroup([weight.dims[0]], (weight.shape[0] // size, size), context.cause)
        context.freeze(gates)
        rows.append(units)
    for units in rows[1:]:
        context.tie(rows[0], units)
    cell = out = rows[0]
    if projection is not None:
        context.contract(cell, projection.dims[1], right=projection.dims[:1])
        out = projection.dims[0]
    context.contract(features, weights[0].dims[1], right=weights[0].dims[:1])
    context.contract(out, weights[1].dims[1], right=weights[1].dims[:1])
    return [out, cell]


def _has_cell(module: nn.Module) -> bool:
    return isinstance(module, (nn.LSTM, nn.LSTMCell))
