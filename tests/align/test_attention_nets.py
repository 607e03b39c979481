"""Transformers: heads change places, units move inside of heads, and nothing that the nets compute changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_attention import CASES, HEADS, SIZE, WIDTH, Around, Block, Case, Packed, around, example, make
from zoo_language import LANGUAGE, sentences

from dimat.align import (
    PermutationSpec,
    activation_matching,
    calls,
    match_activations,
    operators,
    permutation_spec,
    register_operator,
    weight_matching,
)

ALL = {**CASES, **LANGUAGE}


def inputs(name: str, samples: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    return sentences(samples, seed) if name in LANGUAGE else example(CASES[name], samples, seed)


def error_under(spec: PermutationSpec, model: nn.Module, x: tuple[Tensor, ...], seed: int) -> float:
    """‖Δy‖₂ / ‖y‖₂, with nothing of `verify`: a permuted copy of the model answers."""
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), spec.random(seed)))
    with torch.no_grad():
        y = model(*x)
        return float((other(*x) - y).norm() / y.norm())


@pytest.mark.parametrize("name", ALL)
def test_random_permutations_leave_outputs_unchanged(name: str) -> None:
    case, model = ALL[name], make(ALL[name])
    spec = permutation_spec(model, *inputs(name))
    num, blocks, parts = case.heads
    assert [(g.num_blocks, g.parts) for g in spec.groups if g.structure != "plain"] == [(blocks, parts)] * num
    assert spec.coverage() >= case.coverage
    assert spec.frozen == ()
    assert all(group.taps for group in spec.groups)
    x = inputs(name, 3, seed=1)
    wide = tuple(one.double() if one.is_floating_point() else one for one in x)
    for seed in range(3):
        assert error_under(spec, model.float(), x, seed) <= 1e-5
        assert error_under(spec, model.double(), wide, seed) <= 1e-12


@pytest.mark.parametrize("name", ["vit, fused qkv", "vit, separate"])
def test_most_of_a_vision_transformer_moves(name: str) -> None:
    spec = permutation_spec(make(CASES[name]), *inputs(name))
    assert spec.coverage() >= 0.95
    # Per block the heads with (q and k, v) units, and the MLP; the residual stream; nothing else.
    assert sorted((g.structure, g.size) for g in spec.groups) == sorted(
        [("plain", WIDTH)] + 2 * [("heads", 2 * WIDTH), ("plain", 40)]
    )


def test_queries_keys_and_values_of_a_packed_weight_move_apart_and_only_heads_together() -> None:
    spec = permutation_spec(make(CASES["qkv by unbind"]), *inputs("qkv by unbind"))
    (group,) = [g for g in spec.groups if g.structure == "heads"]
    order = torch.arange(3 * WIDTH, dtype=torch.float32)
    state = make(CASES["qkv by unbind"]).state_dict()
    moved = spec.apply({**state, "blocks.0.attention.qkv.bias": order}, {group.name: spec.random(3)[group.name]})
    q, k, v = moved["blocks.0.attention.qkv.bias"].view(3, HEADS, SIZE).long()
    assert torch.equal(k - q, torch.full_like(q, WIDTH))  # unit by unit the same order: they meet in q kᵀ
    assert torch.equal((v - 2 * WIDTH) // SIZE, q // SIZE)  # head by head the same heads
    assert not torch.equal((v - 2 * WIDTH) % SIZE, q % SIZE)  # inside of them an order of its own
    assert not torch.equal((q % SIZE)[0], (q % SIZE)[1])  # another one in every head
    assert sorted(q.flatten().tolist()) == list(range(WIDTH))


@pytest.mark.parametrize("name", [name for name in LANGUAGE if name.startswith("llama")])
def test_rotated_queries_and_keys_move_as_whole_heads_and_values_also_inside(name: str) -> None:
    model = make(LANGUAGE[name])
    spec = permutation_spec(model, *sentences())
    state = model.state_dict()
    moved = spec.apply(state, spec.random(0) | {"embed.weight:1": torch.arange(WIDTH)})
    rows = {key: state[f"layers.0.{key}.weight"].view(-1, SIZE, WIDTH) for key in "qkv"}
    found = {key: moved[f"layers.0.{key}.weight"].view(-1, SIZE, WIDTH) for key in "qkv"}
    where = {
        key: [next((i for i, old in enumerate(rows[key]) if torch.equal(old, new)), None) for new in found[key]]
        for key in "qkv"
    }
    assert sorted(where["q"]) == list(range(HEADS))
    assert sorted(where["k"]) == list(range(len(rows["k"])))
    copies = HEADS // len(rows["k"])
    assert [head // copies for head in where["q"][::copies]] == where["k"]  # queries stay with their keys
    assert set(where["v"]) == {None}
    assert all(
        torch.equal(found["v"][i].sort(0).values, rows["v"][old].sort(0).values) for i, old in enumerate(where["k"])
    )


class Odd(nn.Module):
    """Attention with something unusual in the middle."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        if how == "talking heads":
            self.mix = nn.Linear(HEADS, HEADS)
        if how in ("mean of heads", "scaled, one head read"):
            self.read = nn.Linear(SIZE, WIDTH)
        if how == "scaled, one head read":
            self.scale = nn.Parameter(torch.rand(HEADS, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, HEADS, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.how == "talking heads":
            scores = self.mix((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
            return self.o((scores @ v).transpose(1, 2).flatten(2))
        if self.how == "tiled":
            y = F.scaled_dot_product_attention(q, k[:, :2].repeat(1, 2, 1, 1), v[:, 2:].tile((2, 1, 1)))
            return self.o(y.transpose(1, 2).flatten(2))
        if self.how == "every head with every head":
            scores = torch.einsum("bhid,bgjd->bhgij", q, q).softmax(-1).mean((1, 2))
            return self.o((scores[:, None] @ v).transpose(1, 2).flatten(2))
        if self.how == "sum of every head with every head":
            pairs = torch.tanh(q[:, :, None] + q[:, None])
            return self.o(pairs.mean(2).transpose(1, 2).flatten(2)) + self.o(v.transpose(1, 2).flatten(2))
        if self.how == "mean of heads":
            return self.read(F.scaled_dot_product_attention(q, k, v).mean(1))
        if self.how == "diagonal":
            return self.o(v.transpose(1, 2).flatten(2)) * torch.einsum("bhii->bih", q @ k.mT).mean(-1, keepdim=True)
        if self.how == "three at once":
            scores = (q @ k.mT).softmax(-1)
            return torch.einsum(
                "bhij,bhjd,hdo->bio", scores, v, self.o.weight.view(WIDTH, HEADS, SIZE).permute(1, 2, 0)
            )
        if self.how == "dots":
            scores = torch.einsum("...id,...jd", q, k).softmax(-1)
            return torch.einsum("bh...d,ohd->b...o", scores @ v, self.o.weight.view(WIDTH, HEADS, SIZE))
        if self.how == "lists":
            scores = torch.einsum(q, [0, 1, 2, 3], k, [0, 1, 4, 3], [0, 1, 2, 4]).softmax(-1)
            return self.o((scores @ v).transpose(1, 2).flatten(2))
        if self.how == "masked":
            places = torch.arange(tokens)
            near = (places[:, None] - places[None]).abs() < 3
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(HEADS, 1, 1) + near.to(x), scale=0.3)
            kept = y[..., torch.arange(tokens) < 4, :]
            return self.o(F.pad(kept, (0, 0, 0, tokens - 4)).transpose(1, 2).flatten(2))
        if self.how == "turned round":  # the first head's units meet the last one's
            return self.o((v * q + v.flip(1)).roll(1, 2).transpose(1, 2).flatten(2)) + self.o(
                k.transpose(1, 2).flatten(2)
            )
        if self.how == "gathered":
            order = (q.detach() * 0).long() + torch.tensor([2, 0, 3, 1])[:, None, None]
            return self.o((v + torch.gather(v, 1, order)).transpose(1, 2).flatten(2))
        if self.how == "added to others":
            order = torch.tensor([2, 0, 3, 1])
            return self.o(
                v.index_add(1, order, v).scatter_add(1, order[:, None, None].expand_as(v), k).transpose(1, 2).flatten(2)
            )
        if self.how == "scaled, one head read":
            v = v * self.scale[:, None]
            return self.o(v.transpose(1, 2).flatten(2)) + self.read(v[:, 1])
        assert self.how == "picked"
        order = torch.tensor([2, 0, 3, 1])
        y = F.scaled_dot_product_attention(q[:, order], k.index_select(1, order), v)
        return self.o(torch.gather(y, 3, torch.arange(SIZE).flip(0).expand_as(y)).transpose(1, 2).flatten(2))


ODD = {  # the structured groups that are left, by blocks and parts; queries or keys that nobody uses are free, too
    "talking heads": [(HEADS, (SIZE,)), (HEADS, (SIZE,))],
    "every head with every head": [(HEADS, (SIZE,)), (HEADS, (SIZE,))],
    "sum of every head with every head": [(HEADS, (SIZE,))],
    "mean of heads": [(HEADS, (SIZE,))],
    "diagonal": None,
    "three at once": [(HEADS, (SIZE, SIZE))],
    "dots": [(HEADS, (SIZE, SIZE))],
    "lists": None,
    "tiled": None,
    "masked": [(HEADS, (SIZE, SIZE))],
    "picked": None,
    "turned round": [],
    "gathered": None,
    "added to others": None,
    "scaled, one head read": None,
}


@pytest.mark.parametrize("how", ODD)
def test_unusual_attention_never_gives_a_wrong_group(how: str) -> None:
    case = Case(around(lambda: Odd(how)))
    model = make(case).double()
    spec = permutation_spec(model, *(one.double() for one in example(case)))
    if ODD[how] is not None:
        assert [(g.num_blocks, g.parts) for g in spec.groups if g.structure != "plain"] == ODD[how]
    assert spec.by_name["stem.weight:0"].size == WIDTH  # whatever happens to heads, the stream moves
    for seed in range(4):
        assert error_under(spec, model, tuple(one.double() for one in example(case, 3, seed=1)), seed) <= 1e-12


def test_packed_attention_is_one_operator_for_whoever_teaches_a_rule_and_frozen_where_it_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = make(CASES["packed"]), inputs("packed")
    monkeypatch.setattr(calls, "_body", lambda func: None)
    closed = permutation_spec(model, *x)
    assert [entry.operator for entry in closed.frozen] == ["multi_head_attention_forward"]
    assert error_under(closed, model, x, 0) <= 1e-5
    monkeypatch.undo()
    monkeypatch.setattr(operators, "OPERATORS", dict(operators.OPERATORS))

    taught: list[tuple[tuple[int, ...], ...]] = []

    @register_operator("multi_head_attention_forward")
    def rule(context: operators.Context, *args: object, **kwargs: object) -> list[object]:
        taught.append(context.shapes)
        return []

    assert permutation_spec(model, *x).frozen == closed.frozen
    assert taught == [((5, 2, WIDTH), (2, HEADS, 5, 5))]


def test_a_layer_that_attends_in_two_ways_keeps_what_both_allow() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed = Packed()

        def forward(self, x: Tensor) -> Tensor:
            self.packed.keys = "own"
            y = self.packed(x)
            self.packed.keys = "other order"
            return y + self.packed(x)

    model = make(Case(lambda: Around(Block(Both())))).double()
    x = tuple(one.double() for one in example(CASES["packed"]))
    spec = permutation_spec(model, *x)
    assert "heads" in {group.structure for group in spec.groups}
    assert max(error_under(spec, model, x, seed) for seed in range(3)) <= 1e-12


@pytest.mark.parametrize("name", ["vit, fused qkv", "vit, separate", "encoder, both first", "gpt-2", "llama", "bert"])
def test_a_permuted_copy_is_recovered(name: str) -> None:
    model = make(ALL[name])
    spec = permutation_spec(model, *inputs(name))
    hidden = spec.random(5)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), hidden))
    for seed in range(3):
        found = weight_matching(spec, model.state_dict(), other.state_dict(), seed=seed)
        assert spec.moved(spec.compose(hidden, found)) <= 0.01
    probe = [inputs(name, 16, seed) for seed in (1, 2, 3)]
    by_probe = match_activations(spec, model, other, probe)
    wrong = spec.moved(spec.compose(hidden, by_probe.perms)) * sum(group.size for group in spec.groups)
    assert wrong <= by_probe.constant
    assert by_probe.constant == 0


def test_activations_inside_of_packed_attention_are_compared() -> None:
    """Two models whose packed heads differ in nothing but their order, and by noise: the probe tells."""
    model = make(CASES["packed"])
    spec = permutation_spec(model, *inputs("packed"))
    (group,) = [g for g in spec.groups if g.structure == "heads"]
    assert {tap.place.part for tap in group.taps} >= {0, 1}
    other = copy.deepcopy(model)
    hidden = {group.name: spec.random(2)[group.name]}
    state = spec.apply(model.state_dict(), hidden)
    generator = torch.Generator().manual_seed(0)
    other.load_state_dict({k: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator) for k, t in state.items()})
    found = activation_matching(spec, model, other, [inputs("packed", 64, 4)])
    assert spec.moved(spec.compose(hidden, found)) == 0
