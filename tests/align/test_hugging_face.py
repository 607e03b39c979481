"""Models as `transformers` builds them, with random weights: nothing is fetched, no tokenizer is needed."""

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dimat.align import PermutationSpec, match_activations, permutation_spec, weight_matching

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
import transformers

WORDS, WIDTH, HEADS, SIZE = 37, 24, 4, 6
SHAPE = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 40,
}  # fmt: skip


def gpt2(attention: str) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=12, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=40, bos_token_id=1,
        eos_token_id=2, use_cache=False, attn_implementation=attention,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(attention: str) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=WORDS, max_position_embeddings=16, num_key_value_heads=2, use_cache=False, **SHAPE,
        attn_implementation=attention,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS, max_position_embeddings=16, **SHAPE, attn_implementation=attention
    )
    return transformers.BertForSequenceClassification(config)


def vit(attention: str) -> nn.Module:
    config = transformers.ViTConfig(image_size=16, patch_size=4, **SHAPE, attn_implementation=attention)
    return transformers.ViTForImageClassification(config)


# What moves beside the residual stream and the MLPs: blocks and parts of the attention groups, one for each layer.
MODELS: dict[Callable[[str], nn.Module], tuple[float, tuple[int, tuple[int, ...]]]] = {
    gpt2: (0.99, (HEADS, (SIZE, SIZE))),
    llama: (0.99, (2, (HEADS // 2, SIZE))),  # rotated queries and keys keep their order inside of a head
    bert: (0.99, (HEADS, (SIZE, SIZE))),
    vit: (0.95, (HEADS, (SIZE, SIZE))),
}


class InDouble(TorchFunctionMode):
    """Llama computes its norms and softmax in float32 whatever it is given: here what it calls float32 is float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if getattr(func, "__name__", "") == "float":
            func = Tensor.double
        return func(*(wide(value) for value in args), **{key: wide(value) for key, value in (kwargs or {}).items()})


def make(build: Callable[[str], nn.Module], attention: str) -> nn.Module:
    torch.manual_seed(0)
    model = build(attention).eval()
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        for parameter in model.parameters():  # fresh norms and biases are all alike, which would hide a wrong order
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def example(model: nn.Module, samples: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if hasattr(model.config, "image_size"):
        return torch.randn(samples, 3, 16, 16, generator=generator)
    return torch.randint(3, WORDS, (samples, 7), generator=generator)


def error_under(spec: PermutationSpec, model: nn.Module, x: Tensor, seed: int) -> float:
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), spec.random(seed)))
    with torch.no_grad():
        y = model(x).logits
        return float((other(x).logits - y).norm() / y.norm())


both = pytest.mark.parametrize("attention", ["eager", "sdpa"])
every = pytest.mark.parametrize("build", MODELS, ids=[build.__name__ for build in MODELS])


@both
@every
def test_random_permutations_leave_outputs_unchanged(build: Callable[[str], nn.Module], attention: str) -> None:
    model = make(build, attention)
    spec = permutation_spec(model, example(model))
    least, heads = MODELS[build]
    assert spec.coverage() >= least
    assert spec.frozen == ()
    assert [(g.num_blocks, g.parts) for g in spec.groups if g.structure == "heads"] == [heads] * 2
    assert [g.size for g in spec.groups if g.structure == "plain" and g.size == 40] == [40, 40]
    assert all(group.taps for group in spec.groups)
    x = example(model, 3, seed=1)
    for seed in range(3):
        assert error_under(spec, model.float(), x.float() if x.is_floating_point() else x, seed) <= 1e-5
        with InDouble():
            assert error_under(spec, model.double(), x.double() if x.is_floating_point() else x, seed) <= 1e-12


@both
@every
def test_a_permuted_copy_is_recovered(build: Callable[[str], nn.Module], attention: str) -> None:
    model = make(build, attention)
    spec = permutation_spec(model, example(model))
    hidden = spec.random(4)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), hidden))
    found = weight_matching(spec, model.state_dict(), other.state_dict())
    assert spec.moved(spec.compose(hidden, found)) <= 0.01
    by_probe = match_activations(spec, model, other, [example(model, 32, seed) for seed in (1, 2)])
    assert by_probe.constant == 0
    assert spec.moved(spec.compose(hidden, by_probe.perms)) == 0


def test_a_cache_that_the_model_returns_keeps_keys_and_values_in_order() -> None:
    """What is answered has readers outside: with `use_cache` heads must stay, without it they move."""
    model = make(llama, "sdpa")
    model.config.use_cache = True
    spec = permutation_spec(model, example(model))
    # Queries that share keys may still change places among themselves.
    assert [(g.structure, g.parts) for g in spec.groups if g.parts] == [("blocks", (HEADS // 2,))] * 2
    assert error_under(spec, model, example(model), 0) <= 1e-5
