"""Language models in plain torch, tiny: GPT-2, Llama and BERT as their papers and releases have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_attention import HEADS, KV_HEADS, SIZE, WIDTH, Case

WORDS, LENGTH = 19, 6


class Projection(nn.Module):
    """GPT-2's layer, whose weight is (in, out): one `addmm` over all tokens."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.2 * torch.randn(inside, outside)), nn.Parameter(torch.zeros(outside))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.bias.shape[0])


class GPT2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = Projection(WIDTH, 3 * WIDTH), Projection(WIDTH, WIDTH)
        self.up, self.down = Projection(WIDTH, 40), Projection(40, WIDTH)
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        parts = self.c_attn(self.ln_1(x)).split(WIDTH, dim=2)
        q, k, v = (part.view(batch, tokens, HEADS, SIZE).permute(0, 2, 1, 3) for part in parts)
        scores = torch.matmul(q, k.transpose(-1, -2)) / torch.full([], SIZE**0.5, dtype=x.dtype)
        least = torch.finfo(x.dtype).min
        scores = torch.where(self.mask[:, :, :tokens, :tokens], scores, least)
        y = torch.matmul(F.softmax(scores, dim=-1).type(v.dtype), v).permute(0, 2, 1, 3).contiguous()
        x = x + self.c_proj(y.view(batch, tokens, WIDTH))
        h = self.up(self.ln_2(x))
        return x + self.down(0.5 * h * (1.0 + torch.tanh(0.8 * (h + 0.044715 * torch.pow(h, 3.0)))))


class GPT2(nn.Module):
    """Learned positions, blocks with the norm in front, and the embedding again as the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.h = nn.ModuleList(GPT2Block() for _ in range(2))
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1])[None])
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class RMSNorm(nn.Module):
    """Spelled out, in the precision of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rotated(x: Tensor, style: str, dtype: torch.dtype) -> Tensor:
    """Rotary positions on (batch, heads, tokens, size), as halves, as interleaved pairs or as complex numbers."""
    speed = 1.0 / (100 ** (torch.arange(0, SIZE, 2) / SIZE))
    angle = torch.outer(torch.arange(x.shape[-2]), speed).to(dtype)
    if style == "halves":
        angle = torch.cat((angle, angle), dim=-1)
        half = torch.cat((-x[..., SIZE // 2 :], x[..., : SIZE // 2]), dim=-1)
        return x * angle.cos() + half * angle.sin()
    if style == "pairs":
        angle = torch.repeat_interleave(angle, 2, dim=-1)
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * angle.cos() + turned * angle.sin()
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(3).type_as(x)


class LlamaBlock(nn.Module):
    def __init__(self, style: str, spread: str, kv_heads: int) -> None:
        super().__init__()
        self.style, self.spread, self.kv_heads = style, spread, kv_heads
        self.q, self.o = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, kv_heads * SIZE, bias=False) for _ in range(2))
        self.gate, self.up = nn.Linear(WIDTH, 40, bias=False), nn.Linear(WIDTH, 40, bias=False)
        self.down = nn.Linear(40, WIDTH, bias=False)
        self.norm1, self.norm2 = RMSNorm(), RMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        y = self.norm1(x)
        q, k, v = (layer(y).view(batch, tokens, -1, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = rotated(q, self.style, x.dtype), rotated(k, self.style, x.dtype)
        groups = HEADS // self.kv_heads
        if self.spread == "expand" and groups > 1:
            k, v = (
                part[:, :, None, :, :].expand(batch, self.kv_heads, groups, tokens, SIZE).flatten(1, 2)
                for part in (k, v)
            )
        elif groups > 1:
            k, v = (torch.repeat_interleave(part, repeats=groups, dim=1) for part in (k, v))
        hidden = torch.triu(torch.full((tokens, tokens), float("-inf"), dtype=x.dtype), diagonal=1)
        scores = F.softmax(torch.matmul(q, k.transpose(2, 3)) * SIZE**-0.5 + hidden, dim=-1)
        x = x + self.o(torch.matmul(scores, v).transpose(1, 2).reshape(batch, tokens, WIDTH))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, style: str = "halves", spread: str = "expand", kv_heads: int = KV_HEADS) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(WORDS, WIDTH), RMSNorm()
        self.layers = nn.ModuleList(LlamaBlock(style, spread, kv_heads) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class BERTLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down, self.dropout = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH), nn.Dropout(0.1)

    def heads(self, x: Tensor) -> Tensor:
        return x.view((*x.size()[:-1], HEADS, SIZE)).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        weights = self.dropout(F.softmax(q @ k.transpose(-1, -2) / SIZE**0.5 + mask, dim=-1))
        y = (weights @ v).permute(0, 2, 1, 3).contiguous()
        x = self.norm1(self.dropout(self.out(y.view((*y.size()[:-2], WIDTH)))) + x)
        return self.norm2(self.dropout(self.down(F.gelu(self.up(x)))) + x)


class BERT(nn.Module):
    """Norm behind, token types, and a pooler on the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place, self.kind = (nn.Embedding(num, WIDTH, padding_idx=0) for num in (WORDS, LENGTH, 2))
        self.norm, self.layers = nn.LayerNorm(WIDTH), nn.ModuleList(BERTLayer() for _ in range(2))
        self.pooler, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        kinds = torch.zeros_like(ids)
        x = self.word(ids) + self.kind(kinds)
        x = self.norm(x + self.place(torch.arange(ids.shape[1])))
        mask = (1.0 - torch.ones(ids.shape).to(x.dtype)[:, None, None, :]) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


TWO = (2, HEADS, (SIZE, SIZE))
SHARED = (2, KV_HEADS, (HEADS // KV_HEADS, SIZE))  # the inside of rotated queries and keys keeps its order
LANGUAGE: dict[str, Case] = {
    "gpt-2": Case(GPT2, heads=TWO),
    "bert": Case(BERT, heads=TWO),
    "llama": Case(Llama, heads=SHARED),
    "llama, repeat_interleave": Case(lambda: Llama(spread="repeat"), heads=SHARED),
    "llama, pairs": Case(lambda: Llama("pairs"), heads=SHARED),
    "llama, complex": Case(lambda: Llama("complex"), heads=SHARED),
    "llama, all heads": Case(lambda: Llama(kv_heads=HEADS), heads=(2, HEADS, (SIZE,))),
}


def sentences(samples: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    return (torch.randint(1, WORDS, (samples, LENGTH), generator=torch.Generator().manual_seed(seed)),)
