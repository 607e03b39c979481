"""A run that is over in a second: two classes of digits would be too few, a small net and few rounds are enough."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dimat.config import RunConfig, load_config
from dimat.runfolder import prepare
from dimat.simulate import simulate

SMALL = ["task.model.name=mlp", "task.model.hidden=[16]", "train.epochs=1", "train.batch_size=64", "rounds=4", "agents=4"]


@pytest.fixture
def small() -> Callable[..., RunConfig]:
    return lambda *settings: load_config(None, [*SMALL, *settings])


def run(config: RunConfig, folder: Path) -> Path:
    """Simulate in `folder`; returns it."""
    simulate(config, prepare(config, folder))
    return folder


def weights(folder: Path, agent: int, round: int) -> dict[str, torch.Tensor]:
    """The weights that an agent's checkpoint holds."""
    return load_file(folder / "checkpoints" / str(agent) / f"{round}.safetensors")
