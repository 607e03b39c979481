"""Local training: learning rates by epoch, and one optimiser step per batch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dimat.agent.train import learning_rate, make_optimizer, train_locally
from dimat.config import TrainConfig


@given(epoch=st.integers(0, 39))
def test_cosine_falls_from_lr_to_zero(epoch: int) -> None:
    config = TrainConfig(lr=0.2)
    expected = 0.2 * math.cos(math.pi * epoch / 80) ** 2
    assert learning_rate(config, epoch, 40) == pytest.approx(expected)


def test_constant_is_constant() -> None:
    config = TrainConfig(lr=0.2, lr_schedule="constant")
    assert {learning_rate(config, epoch, 40) for epoch in range(40)} == {0.2}


class Line:
    """Fit y = 2 x by least squares."""

    def loss(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (model(batch) - 2 * batch).square().mean()


def test_a_round_is_epochs_times_batches_of_sgd() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    config = TrainConfig(epochs=2, lr=0.1, momentum=0.0, lr_schedule="constant")
    batches = [torch.ones(4, 1), torch.ones(4, 1)]
    optimizer = make_optimizer(config, model)
    model.eval()
    loss = train_locally(Line(), model, batches, optimizer, config, round=1, rounds=1)
    # w <- w - 0.1 * 2 (w - 2), four times from zero
    weights = [2 * (1 - 0.8**step) for step in range(5)]
    assert float(model.weight.detach()) == pytest.approx(weights[4], rel=1e-6)
    assert loss == pytest.approx(((weights[2] - 2) ** 2 + (weights[3] - 2) ** 2) / 2, rel=1e-5)
    assert model.training


def test_the_last_rounds_take_smaller_steps() -> None:
    model = torch.nn.Linear(1, 1)
    config = TrainConfig(epochs=1, lr=0.1)
    optimizer = make_optimizer(config, model)
    train_locally(Line(), model, [torch.ones(1, 1)], optimizer, config, round=10, rounds=10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(learning_rate(config, 9, 10))


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_the_optimiser_is_the_one_that_was_named(name: str, kind: str) -> None:
    config = TrainConfig.model_validate({"optimizer": name, "lr": 0.03, "weight_decay": 0.5})
    optimizer = make_optimizer(config, torch.nn.Linear(1, 1))
    assert type(optimizer).__name__ == kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
