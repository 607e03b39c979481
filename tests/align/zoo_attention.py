"""Transformers in plain torch, tiny, and every way in which attention is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, SIZE, KV_HEADS = 24, 4, 6, 2
"""Width of the stream, heads, units of a head, heads of keys and values where queries share them."""


class Fused(nn.Module):
    """One linear layer for queries, keys and values, told apart by a view with a dimension of three."""

    def __init__(self, how: str = "unbind") -> None:
        super().__init__()
        self.how = how
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x)
        if self.how == "chunk":
            q, k, v = (part.view(batch, tokens, HEADS, SIZE).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        elif self.how == "last":  # every head owns its three parts, as in GPT-NeoX
            qkv = qkv.view(batch, tokens, HEADS, 3 * SIZE)
            q, k, v = (qkv[..., i * SIZE : (i + 1) * SIZE].transpose(1, 2) for i in range(3))
        else:
            qkv = qkv.reshape(batch, tokens, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0) if self.how == "unbind" else (qkv[0], qkv[1], qkv[2])
        scores = (q @ k.transpose(-2, -1)) * SIZE**-0.5
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, WIDTH))


class Separate(nn.Module):
    """A layer each for queries, keys and values; `how` is the way in which they are brought together."""

    def __init__(self, how: str = "sdpa", kv_heads: int = HEADS, *, norm: bool = False) -> None:
        super().__init__()
        self.how, self.kv_heads = how, kv_heads
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, kv_heads * SIZE), nn.Linear(WIDTH, kv_heads * SIZE)
        self.q_norm = nn.LayerNorm(SIZE) if norm else nn.Identity()
        self.k_norm = nn.LayerNorm(SIZE) if norm else nn.Identity()
        if how == "alibi":
            self.slope = nn.Parameter(torch.rand(HEADS, 1, 1))
        if how == "relative":
            self.bias = nn.Parameter(torch.randn(HEADS, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q_norm(self.q(x).view(batch, tokens, HEADS, SIZE))
        k = self.k_norm(self.k(x).view(batch, tokens, self.kv_heads, SIZE))
        v = self.v(x).view(batch, tokens, self.kv_heads, SIZE)
        if self.how == "einsum":
            scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(SIZE)
            return self.o(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(batch, tokens, WIDTH))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.how == "expand":
            k, v = (
                y[:, :, None].expand(-1, -1, HEADS // KV_HEADS, -1, -1).reshape(batch, HEADS, tokens, SIZE)
                for y in (k, v)
            )
        elif self.how == "repeat_interleave":
            k, v = (y.repeat_interleave(HEADS // KV_HEADS, dim=1) for y in (k, v))
        if self.how in ("sdpa", "expand", "repeat_interleave"):
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "sdpa, mask":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(tokens, tokens).tril().bool())
        elif self.how == "sdpa, grouped":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        elif self.how in ("bmm", "baddbmm"):
            flat = [y.reshape(batch * HEADS, tokens, SIZE) for y in (q, k, v)]
            if self.how == "bmm":
                scores = torch.bmm(flat[0], flat[1].transpose(1, 2)) * SIZE**-0.5
            else:
                mask = torch.zeros(batch * HEADS, tokens, tokens)
                scores = torch.baddbmm(mask.to(x), flat[0], flat[1].mT, beta=1, alpha=SIZE**-0.5)
            y = torch.bmm(F.softmax(scores, dim=2), flat[2]).view(batch, HEADS, tokens, SIZE)
        else:
            scores = torch.matmul(q, k.transpose(2, 3)) * SIZE**-0.5
            if self.how == "alibi":
                place = torch.arange(tokens, dtype=x.dtype)
                scores = scores + self.slope * (place[None, :] - place[:, None])
            elif self.how == "relative":
                scores = scores + self.bias
            elif self.how == "causal":
                hidden = torch.ones(tokens, tokens).triu(1).bool()
                scores = scores.masked_fill(hidden, float("-inf"))
            y = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.o(y.transpose(1, 2).contiguous().view(batch, tokens, WIDTH))


class Packed(nn.Module):
    """`nn.MultiheadAttention` with each of its options; `keys` says where keys and values come from."""

    def __init__(self, keys: str = "own", **options: Any) -> None:
        super().__init__()
        self.keys = keys
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
        if keys == "other widths":
            self.k, self.v = nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 14)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if self.keys == "other widths":
            return self.attention(x, self.k(x), self.v(x), need_weights=False)[0]
        if self.keys == "other order":
            padded = torch.arange(tokens).expand(batch, tokens) == tokens - 1
            y, average = self.attention(x, x.flip(1), x, key_padding_mask=padded)
            return y + average.sum(-1, keepdim=True)
        hidden = torch.ones(tokens, tokens).triu(1).bool()
        y, weights = self.attention(x, x, x, attn_mask=hidden, average_attn_weights=False)
        return y + weights.mean((1, 2, 3))[:, None, None]


class Windows(nn.Module):
    """Swin: attention inside of shifted windows, with a table of biases looked up by distance."""

    def __init__(self, side: int = 4, window: int = 2) -> None:
        super().__init__()
        self.side, self.window = side, window
        self.inner = Fused("index")
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, HEADS))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None, :] + window - 1).permute(1, 2, 0)
        index = apart[..., 0] * (2 * window - 1) + apart[..., 1]
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, side, w = len(x), self.side, self.window
        x = torch.roll(x.view(batch, side, side, WIDTH), shifts=(-1, -1), dims=(1, 2))
        x = x.view(batch, side // w, w, side // w, w, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, WIDTH)
        qkv = self.inner.qkv(x).reshape(len(x), w * w, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(w * w, w * w, HEADS).permute(2, 0, 1).contiguous()
        scores = (qkv[0] * SIZE**-0.5) @ qkv[1].transpose(-2, -1) + bias.unsqueeze(0)
        x = self.inner.proj((scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(len(x), w * w, WIDTH))
        x = x.view(batch, side // w, side // w, w, w, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(batch, side, side, WIDTH)
        return torch.roll(x, shifts=(1, 1), dims=(1, 2)).view(batch, side * side, WIDTH)


class Buckets(nn.Module):
    """T5: a bias for each head and bucket of distance, by an embedding; no scaling of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Separate()
        self.bias = nn.Embedding(5, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        place = torch.arange(tokens)
        bias = self.bias((place[None, :] - place[:, None]).clamp(-2, 2) + 2).permute(2, 0, 1).unsqueeze(0)
        own = self.inner
        q, k, v = (layer(x).view(batch, tokens, HEADS, SIZE).transpose(1, 2) for layer in (own.q, own.k, own.v))
        scores = torch.matmul(q, k.transpose(3, 2))
        scores += bias
        weights = F.softmax(scores.float(), dim=-1).type_as(scores)
        return own.o(torch.matmul(weights, v).transpose(1, 2).reshape(batch, tokens, WIDTH))


class Block(nn.Module):
    """Attention and an MLP on a residual stream, each behind its norm."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 40), nn.GELU(), nn.Linear(40, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Around(nn.Module):
    """Series in, classes out: a stem, blocks and a head around any attention."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(7, WIDTH), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(1))


class ViT(nn.Module):
    """Patches by a convolution, a class token, learned positions, blocks with the norm in front."""

    def __init__(self, attention: Callable[[], nn.Module], depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(0.2 * torch.randn(1, 5, WIDTH))
        self.blocks = nn.ModuleList(Block(attention()) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Mixer(nn.Module):
    """MLP-Mixer: one MLP over the tokens of each channel, one over the channels of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(7, WIDTH), nn.Linear(WIDTH, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(5, 11), nn.GELU(), nn.Linear(11, 5))
        self.channels = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norms[1](x))).mean(dim=1))


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 40, **options), 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
    )


class Decoder(nn.Module):
    """`nn.TransformerDecoder` between linear layers: attention to itself under a mask, and to a memory."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem, self.memory, self.head = nn.Linear(7, WIDTH), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 40, batch_first=True, **options)
        self.decoder = nn.TransformerDecoder(layer, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.head(self.decoder(self.stem(x), self.memory(memory), tgt_mask=mask))


@dataclass(frozen=True)
class Case:
    """A model, what it takes, how much of it can move, and its attention groups: how many, blocks and parts of each."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((5, 7),)
    coverage: float = 0.95
    heads: tuple[int, int, tuple[int, ...]] = (1, HEADS, (SIZE, SIZE))


def around(attention: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Around(Block(attention()))


IMAGE = ((3, 8, 8),)
GROUPED = (1, KV_HEADS, (HEADS // KV_HEADS, SIZE, SIZE))
TWO, FOUR = (2, HEADS, (SIZE, SIZE)), (4, HEADS, (SIZE, SIZE))
CASES: dict[str, Case] = {
    "vit, fused qkv": Case(lambda: ViT(Fused), IMAGE, heads=TWO),
    "vit, separate": Case(lambda: ViT(Separate), IMAGE, heads=TWO),
    "mixer": Case(Mixer, heads=(0, 0, ())),
    "encoder, norm last": Case(lambda: Around(encoder()), heads=TWO),
    "encoder, norm first": Case(lambda: Around(encoder(norm_first=True, activation="gelu")), heads=TWO),
    "encoder, batch first": Case(lambda: Around(encoder(batch_first=True)), heads=TWO),
    "encoder, both first": Case(lambda: Around(encoder(batch_first=True, norm_first=True)), heads=TWO),
    "decoder": Case(Decoder, ((5, 7), (4, 6)), heads=FOUR),
    "decoder, norm first": Case(lambda: Decoder(norm_first=True), ((5, 7), (4, 6)), heads=FOUR),
    "packed": Case(around(Packed)),
    "packed, no bias": Case(around(lambda: Packed(bias=False))),
    "packed, other order": Case(around(lambda: Packed("other order"))),
    "packed, added keys": Case(around(lambda: Packed(add_bias_kv=True, add_zero_attn=True))),
    "packed, other widths": Case(around(lambda: Packed("other widths", kdim=10, vdim=14))),
    "swin": Case(around(Windows), ((16, 7),)),
    "t5": Case(around(Buckets)),
    "q and k norm": Case(around(lambda: Separate("matmul", norm=True)), heads=(1, HEADS, (SIZE,))),
    **{f"qkv by {how}": Case(around(lambda how=how: Fused(how))) for how in ("unbind", "index", "chunk", "last")},
    **{
        how: Case(around(lambda how=how: Separate(how)))
        for how in ("matmul", "sdpa", "sdpa, mask", "einsum", "bmm", "baddbmm", "alibi", "relative", "causal")
    },
    **{
        f"grouped, {how}": Case(around(lambda how=how: Separate(how, KV_HEADS)), heads=GROUPED)
        for how in ("expand", "repeat_interleave", "sdpa, grouped")
    },
}


def example(case: Case, samples: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(samples, *shape, generator=generator) for shape in case.shapes)


def make(case: Case, seed: int = 0) -> nn.Module:
    """A model with distinct values everywhere a fresh one has constants, so that every unit is its own."""
    torch.manual_seed(seed)
    model = case.build()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    return model.eval()
