"""Small Hugging Face folders with the tensor names of Llama."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NUM_LAYERS = 4


def tensors(
    seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32, layers: int = NUM_LAYERS
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (11, 6), "model.norm.weight": (6,), "lm_head.weight": (11, 6)}
    for i in range(layers):
        shapes |= {
            f"model.layers.{i}.self_attn.q_proj.weight": (6, 6),
            f"model.layers.{i}.mlp.up_proj.weight": (8, 6),
            f"model.layers.{i}.input_layernorm.weight": (6,),
        }
    return {name: (scale * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}


def folder(
    path: Path | str, content: Mapping[str, Tensor], vocabulary: list[str] | None = None, dtype: str = "float32"
) -> Path:
    path = Path(path)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": dtype, "from": path.name}))
    if vocabulary is not None:
        words = {word: i for i, word in enumerate(vocabulary)}
        (path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": words}}))
    save_file(dict(content), path / "model.safetensors", {"format": "pt"})
    return path


def three(here: Path) -> dict[str, dict[str, Tensor]]:
    """`base`, and `a`, `b`, `c` that have moved away from it, as folders of these names."""
    base = tensors(0)
    made = {"base": base}
    for seed, name in enumerate("abc", 1):
        made[name] = {key: x + tensors(seed, 0.3)[key] for key, x in base.items()}
    for name, content in made.items():
        folder(here / name, content)
    return made


def load(path: Path | str) -> dict[str, Tensor]:
    return load_file(Path(path) / "model.safetensors")
