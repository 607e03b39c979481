"""Models of transformers are merged as the folders that save_pretrained wrote, and load back."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dimat.cli.app import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def llama(seed: int, dtype: torch.dtype, *, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()  # type: ignore[no-any-return]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dimat", "merge", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def by_parameter(of: Callable[..., torch.Tensor], *models: nn.Module, tied: bool) -> nn.Module:
    """A float32 model of computed parameters. Its buffers are fresh: `half` would round the angles of its positions."""
    model = llama(9, torch.float32, tied=tied)
    with torch.no_grad():
        for mine, *given in zip(*(one.parameters() for one in (model, *models)), strict=True):
            mine.copy_(of(*given))
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model(torch.arange(24).reshape(2, 12)).logits
    return answer.float()


@pytest.mark.parametrize("tied", [True, False])
def test_the_mean_of_two_has_the_logits_of_the_mean(monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    models = [llama(seed, torch.float16, tied=tied) for seed in (0, 1)]
    for model, name in zip(models, "ab", strict=True):
        model.save_pretrained(name, max_shard_size="20KB")  # several shards
    assert Path("a/model.safetensors.index.json").exists()
    assert run(monkeypatch, "mean", "a", "b", "--out", "out") == 0
    by_hand = by_parameter(lambda x, y: ((x.float() + y.float()) / 2).half(), *models, tied=tied)
    found = AutoModelForCausalLM.from_pretrained("out")
    assert {one.dtype for one in found.parameters()} == {torch.float16}
    assert (found.lm_head.weight.data_ptr() == found.model.embed_tokens.weight.data_ptr()) == tied
    torch.testing.assert_close(logits(found.float()), logits(by_hand), rtol=1e-5, atol=1e-5)
    with safe_open("out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert ("lm_head.weight" in json.loads(Path("a/model.safetensors.index.json").read_text())["weight_map"]) != tied


def test_another_dtype_is_what_transformers_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    half = llama(0, torch.float16, tied=True)
    half.save_pretrained("a")
    assert run(monkeypatch, "mean", "a", "--dtype", "float32", "--out", "out") == 0
    found = AutoModelForCausalLM.from_pretrained("out")
    assert {one.dtype for one in found.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(found), logits(by_parameter(lambda x: x, half, tied=True)))


def test_a_terminal_sees_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    llama(0, torch.float32, tied=True).save_pretrained("a")
    monkeypatch.setattr(Console, "is_terminal", True)
    assert run(monkeypatch, "mean", "a", "--out", "out") == 0
    assert "merging into out" in capsys.readouterr().err
    assert run(monkeypatch, "mean", "a", "--out", "quiet", "-q") == 0
    assert "merging" not in capsys.readouterr().err
