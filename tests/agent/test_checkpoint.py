"""A checkpoint holds everything that the next round depends on, and comes back bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dimat.agent.checkpoint import Checkpoint, load_checkpoint, rounds_held, save_checkpoint
from dimat.agent.randomness import Randomness, capture, restore, seed_all
from dimat.errors import DimatError


class Loader:
    """Batches are not needed here, the generator is."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)


def draws(loader: Loader) -> list[float]:
    """One number from every stream that user code may draw from."""
    import random

    return [
        float(torch.rand(())),
        float(np.random.rand()),  # noqa: NPY002
        random.random(),
        float(torch.rand((), generator=loader.generator)),
    ]


def test_every_random_stream_comes_back_through_json() -> None:
    loader = Loader()
    seed_all(11)
    draws(loader)
    state = Randomness.from_json(json.loads(json.dumps(capture(loader).to_json())))
    expected = draws(loader)
    seed_all(99)
    loader.generator.manual_seed(99)
    restore(state, loader)
    assert draws(loader) == expected


def trained(optimizer: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    made = getattr(torch.optim, optimizer)(
        model.parameters(), lr=0.1, **({"momentum": 0.9} if optimizer == "SGD" else {})
    )
    for _ in range(3):
        made.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        made.step()
    return model, made


def checkpoint(round: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Checkpoint:
    return Checkpoint(round, dict(model.state_dict()), optimizer.state_dict(), capture(Loader()), basis_settled=True)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, name: str) -> None:
    model, optimizer = trained(name)
    save_checkpoint(tmp_path, checkpoint(7, model, optimizer), keep=2)
    found = load_checkpoint(tmp_path, 7)
    other, other_optimizer = trained(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(found.model)
    other_optimizer.load_state_dict(found.optimizer)
    batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
    for module, stepper in ((model, optimizer), (other, other_optimizer)):
        stepper.zero_grad()
        module(batch).square().sum().backward()
        stepper.step()
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert found.basis_settled


def test_the_base_of_the_next_merge_comes_back_where_it_is_another_model(tmp_path: Path) -> None:
    model, optimizer = trained("SGD")
    base = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_checkpoint(tmp_path, replace(checkpoint(1, model, optimizer), base=base), keep=2)
    save_checkpoint(tmp_path, checkpoint(2, model, optimizer), keep=2)
    found = load_checkpoint(tmp_path, 1)
    assert found.base is not None
    assert found.base.keys() == found.model.keys() == base.keys()
    assert all(torch.equal(found.base[name], tensor) for name, tensor in base.items())
    assert load_checkpoint(tmp_path, 2).base is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained("SGD")
    for round in range(1, 6):
        save_checkpoint(tmp_path, checkpoint(round, model, optimizer), keep=3)
    assert rounds_held(tmp_path) == [3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{round}.{kind}" for round in (3, 4, 5) for kind in ("json", "safetensors")
    ]


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    model, optimizer = trained("SGD")
    save_checkpoint(tmp_path, checkpoint(1, model, optimizer), keep=3)
    save_checkpoint(tmp_path, checkpoint(2, model, optimizer), keep=3)
    (tmp_path / "2.json").unlink()
    assert rounds_held(tmp_path) == [1]


@pytest.mark.parametrize("damaged", ["4.json", "4.safetensors"])
def test_a_damaged_one_is_named(tmp_path: Path, damaged: str) -> None:
    model, optimizer = trained("SGD")
    save_checkpoint(tmp_path, checkpoint(4, model, optimizer), keep=3)
    (tmp_path / damaged).write_bytes(b"\x00\x01")
    with pytest.raises(DimatError, match=r"4\.json cannot be read"):
        load_checkpoint(tmp_path, 4)


def test_tied_parameters_are_no_obstacle(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(3, 3, bias=False)
            self.b = torch.nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(tmp_path, checkpoint(1, model, optimizer), keep=1)
    assert torch.equal(load_checkpoint(tmp_path, 1).model["b.weight"], model.a.weight)


def test_what_was_usual_comes_back_and_older_checkpoints_know_nothing_of_it(tmp_path: Path) -> None:
    usual = {"parameters": (0.1 + 0.2, 1e-300), "buffers": ()}
    save_checkpoint(tmp_path, replace(checkpoint(3, *trained("SGD")), usual=usual), keep=2)
    assert load_checkpoint(tmp_path, 3).usual == usual
    path = tmp_path / "3.json"
    record = json.loads(path.read_text())
    del record["usual"]
    path.write_text(json.dumps(record))
    assert load_checkpoint(tmp_path, 3).usual == {}
