"""What the tests of this folder share; it lets them import each other's kits, however pytest is started."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from dimat.modelfile import write_model

sys.path.insert(0, str(Path(__file__).parent))

Make = Callable[..., Path]


def random_model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(6, 4, generator=generator),
        "a.bias": torch.randn(6, generator=generator),
        "b.weight": torch.randn(3, 6, generator=generator),
        "scale": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 4),
        "steps": torch.tensor(seed),
    }


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a model into the test's folder, from a seed or tensors, and answers with its path."""

    def write(name: str, tensors: Mapping[str, torch.Tensor] | int) -> Path:
        path = tmp_path / f"{name}.safetensors"
        write_model(path, random_model(tensors) if isinstance(tensors, int) else tensors)
        return path

    return write


@pytest.fixture
def base(make: Make) -> Path:
    return make("base", 0)
