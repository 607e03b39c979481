"""Attention and what stands around it: products over batches of heads, repeated heads, masks, rotary positions.

Heads are the batch of these products: both operands are held aligned along them, so the units inside of a head may
have an order of their own in every head. Where keys and values are repeated for several heads of queries, the copies
are alike and may change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, zip_longest
from typing import Any

from dimat.align.atoms import Dim
from dimat.align.operators import Context, Symbolic, register_operator
from dimat.align.rules.entrywise import entrywise


@register_operator("scaled_dot_product_attention")
def scaled_dot_product_attention(
    context: Context,
    query: Symbolic,
    key: Symbolic,
    value: Symbolic,
    attn_mask: Symbolic | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Dim, ...]:
    """Y = softmax(q kᵀ / √d + mask) v with q (..., L, d), k (..., S, d), v (..., S, d_v).

    With `enable_gqa` head h of the queries meets head h // (heads / kv heads) of the keys and values.
    """
    if key.shape[-2] != value.shape[-2]:
        raise ValueError("other numbers of keys than of values")  # some kernels of torch do not look
    batches = [tensor.dims[:-2] for tensor in (query, key, value)]
    if enable_gqa:
        batches = [_with_copies(context, tensor.dims[:-2], query.shape[-3]) for tensor in (query, key, value)]
    batch = broadcast(context, *batches)
    length, positions = query.dims[-2], key.dims[-2]
    context.contract(query.dims[-1], key.dims[-1], shared=batch, left=[length], right=[positions])
    context.contract(positions, value.dims[-2], shared=batch, left=[length], right=[value.dims[-1]])
    if is_causal:
        context.freeze(query.dims[-2], key.dims[-2])
    if attn_mask is not None:
        broadcast(context, (*batch, query.dims[-2], key.dims[-2]), attn_mask.dims)
    return (*batch, query.dims[-2], value.dims[-1])


@register_operator("einsum")
def einsum(context: Context, equation: str, *operands: Any) -> tuple[Dim, ...]:
    """Equal letters are matched; what no output letter names is summed over. A diagonal (`ii`) is not understood."""
    tensors = operands[0] if len(operands) == 1 and not isinstance(operands[0], Symbolic) else operands
    left, arrow, right = equation.replace(" ", "").partition("->")
    named = [_letters(part, tensor) for part, tensor in zip(left.split(","), tensors, strict=True)]
    for one, other in combinations(named, 2):
        common = [letter for letter in one if other.get(letter) and one[letter]]
        for letter in common:
            context.tie(one[letter], other[letter])
        context.witness([one[letter] for letter in common])
    size = {letter: next((own[letter] for own in named if own.get(letter)), ()) for own in named for letter in own}
    dots = sorted((name for name in size if len(name) > 1), reverse=True)  # outermost first
    if not arrow:
        right = "..." + "".join(sorted(letter for letter in size if left.count(letter) == 1))
    before, _, after = right.partition("...") if "..." in right else (right, "", "")
    kept = (*before, *(dots if "..." in right else ()), *after)
    for own in named:
        context.witness([dim for letter, dim in own.items() if letter in kept])
    return tuple(size[name] for name in kept)


@register_operator("tensordot")
def tensordot(context: Context, a: Symbolic, b: Symbolic, dims: Any = 2, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Some dimensions of both are summed over in pairs: the last of one with the first of the other, or as named."""
    named = (range(-dims, 0), range(dims)) if isinstance(dims, int) else dims
    left, right = ([i % one.ndim for i in several] for one, several in zip((a, b), named, strict=True))
    for i, j in zip(left, right, strict=True):
        context.tie(a.dims[i], b.dims[j])
    kept = [[own for i, own in enumerate(one.dims) if i not in gone] for one, gone in ((a, left), (b, right))]
    for dimensions in ([a.dims[i] for i in left], *kept):
        context.witness(dimensions)
    return (*kept[0], *kept[1])


@register_operator("baddbmm")
def baddbmm(
    context: Context, input: Symbolic, batch1: Symbolic, batch2: Symbolic, *, beta: Any = 1, alpha: Any = 1
) -> tuple[Dim, ...]:
    """Input + batch1 @ batch2 for each matrix of a batch."""
    batch = broadcast(context, batch1.dims[:-2], batch2.dims[:-2])
    rows, columns = batch1.dims[-2], batch2.dims[-1]
    context.contract(batch1.dims[-1], batch2.dims[-2], shared=batch, left=[rows], right=[columns])
    return broadcast(context, (*batch, batch1.dims[-2], batch2.dims[-1]), input.dims)


@register_operator("repeat_interleave")
def repeat_interleave(
    context: Context, input: Symbolic, repeats: int, dim: int, *, output_size: int | None = None
) -> tuple[Dim, ...]:
    """Every entry several times in a row: the copies are alike."""
    if not isinstance(repeats, int):
        raise TypeError("another number of copies for each entry")
    dims = list(input.dims)
    dims[dim] = (*dims[dim], *context.free(repeats))
    return tuple(dims)


@register_operator("repeat", "tile")
def repeat(context: Context, input: Symbolic, *sizes: Any, dims: Sequence[int] = ()) -> tuple[Dim, ...]:
    """The whole dimension several times in a row; new dimensions stand in front."""
    counts = tuple(sizes[0]) if sizes and isinstance(sizes[0], Sequence) else sizes or tuple(dims)
    pairs = zip_longest(reversed(counts), reversed(input.dims), fillvalue=None)
    return tuple((*context.free(1 if count is None else count), *(dim or ())) for count, dim in pairs)[::-1]


@register_operator("arange", "linspace", "eye", "tensor", "as_tensor")
def in_order(context: Context, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """A tensor of constants: positions, frequencies."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Symbolic):
            context.unsupported(*value.dims)
    return tuple(context.fixed(length) for length in context.shapes[0])


@register_operator("tril", "triu")
def triangle(context: Context, input: Symbolic, diagonal: int = 0) -> tuple[Dim, ...]:
    """Rows and columns are compared by their numbers."""
    context.freeze(*input.dims[-2:])
    return input.dims


@register_operator("roll", "flip", "cumsum", "cumprod", "logcumsumexp")
def along(
    context: Context, input: Symbolic, *args: Any, dims: Any = None, dim: Any = None, **kwargs: Any
) -> tuple[Dim, ...]:
    """What depends on the order along some dimensions: entry i of the answer is not entry i of the input.

    So these dimensions are new ones, and nothing inside of them has an order that follows the old.
    """
    name = context.cause.operator
    # flip takes its dimensions one by one or as one, the others behind what else they take
    given = args if name == "flip" else args[1:] if name == "roll" else args[:1]
    chosen = next((one for one in (dims, dim, *given[:1]) if one is not None), None)
    if chosen is None:  # roll as if there were one dimension
        changed = set(range(input.ndim))
    else:
        several = given if len(given) > 1 else (chosen,) if isinstance(chosen, int) else chosen
        changed = {one % input.ndim for one in several}
    context.unsupported(*(input.dims[i] for i in changed))
    new = context.table.fixed  # with the cause, so that what is read behind counts as frozen by it, too
    return tuple(new(input.shape[i], context.cause) if i in changed else own for i, own in enumerate(input.dims))


@register_operator("outer")
def outer(context: Context, input: Symbolic, vec2: Symbolic) -> tuple[Dim, ...]:
    """Every entry of one vector times every entry of the other."""
    return (*input.dims, *vec2.dims)


@register_operator("view_as_complex")
def pairs_to_complex(context: Context, input: Symbolic) -> tuple[Dim, ...]:
    """The last dimension holds real and imaginary part."""
    context.freeze(input.dims[-1])
    return input.dims[:-1]


@register_operator("view_as_real")
def complex_to_pairs(context: Context, input: Symbolic) -> tuple[Dim, ...]:
    """Real and imaginary part in a new last dimension."""
    return (*input.dims, context.fixed(2))


register_operator("polar", "complex", "real", "imag", "angle", "conj", "conj_physical", "resolve_conj")(entrywise)


def broadcast(context: Context, *operands: Sequence[Dim]) -> tuple[Dim, ...]:
    """Dimensions matched from the last one backwards; those of length one (which have no atoms) fit everything."""
    out: list[Dim] = []
    for column in zip_longest(*(reversed(dims) for dims in operands), fillvalue=()):
        long = [dim for dim in column if dim]
        for other in long[1:]:
            context.tie(long[0], other)
        out.append(long[0] if long else ())
    return tuple(reversed(out))


def _with_copies(context: Context, batch: Sequence[Dim], heads: int) -> tuple[Dim, ...]:
    """The batch dimensions, with the last one (the heads) repeated until there are `heads`."""
    copies = heads // context.table.length(batch[-1])
    return (*batch[:-1], (*batch[-1], *context.free(copies)))


def _letters(names: str, tensor: Symbolic) -> dict[str, Dim]:
    """The dimensions by letter; those under `...` are called `...1` (the last), `...2` and so on."""
    before, dots, after = names.partition("...")
    num_dots = tensor.ndim - len(before) - len(after)
    letters = [*before, *(f"...{i:03}" for i in range(num_dots, 0, -1)), *after]
    if len(set(letters)) != tensor.ndim or (num_dots and not dots):
        raise ValueError(f"{names!r} names a dimension twice")
    return dict(zip(letters, tensor.dims, strict=True))
