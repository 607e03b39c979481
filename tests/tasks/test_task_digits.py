from __future__ import annotations

import pytest
import torch
from torch import nn

from dimat.errors import TaskError
from dimat.tasks import load_task
from dimat.tasks.digits import load_digits


def test_the_split_keeps_every_digit_and_its_label() -> None:
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    ours = load_digits()
    images = torch.cat([ours.x_train, ours.x_test]).flatten(1).tolist()
    labels = torch.cat([ours.y_train, ours.y_test]).tolist()
    assert sorted(zip(images, labels, strict=True)) == sorted(zip(x.astype(int).tolist(), y.tolist(), strict=True))
    shares = ours.y_test.bincount() / (ours.y_train.bincount() + ours.y_test.bincount())
    assert ((shares - 0.2).abs() < 0.005).all()


def test_images_are_scaled_to_minus_one_to_one() -> None:
    x = torch.cat([x for x, _ in load_task("digits").data(0, 1, 0)])
    assert x.shape[1:] == (1, 8, 8)
    assert (x.min(), x.max(), x.dtype) == (-1, 1, torch.float32)


def test_the_demo_model_learns_digits_from_one_shard() -> None:
    task = load_task("digits", partition="iid")
    torch.manual_seed(0)
    model, loader = task.model(), task.data(0, 5, 0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(8):
        for batch in loader:
            optimiser.zero_grad()
            task.loss(model, batch).backward()
            optimiser.step()
    assert task.evaluate(model)["accuracy"] > 0.93


def test_evaluation_is_accuracy_and_mean_cross_entropy_over_the_whole_test_set() -> None:
    task, data = load_task("digits", model="cnn"), load_digits()
    model = task.model()
    model.norm1.eval()  # a frozen layer must still be frozen afterwards
    modes = [module.training for module in model.modules()]
    result = task.evaluate(model)
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        logits = model.eval()(data.x_test.float() / 8 - 1)
    assert result["accuracy"] == pytest.approx(float((logits.argmax(1) == data.y_test).double().mean()))
    assert result["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, data.y_test)), rel=1e-5)
    assert torch.equal(task.correct(model), logits.argmax(1) == data.y_test)


def test_modes_are_put_back_when_the_model_fails() -> None:
    task, model = load_task("digits"), nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    with pytest.raises(RuntimeError):
        task.evaluate(model)
    assert all(module.training for module in model.modules())


def test_an_agent_outside_the_run_is_refused() -> None:
    for agent in (-1, 5):
        with pytest.raises(TaskError, match=f"agent {agent} is not one of the 5 agents"):
            load_task("digits").data(agent, 5, 0)
