"""Agents that train as one: the plain loop's run up to rounding, and a reason where that cannot be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.agent.build import build_agent
from dimat.agent.checkpoint import load_checkpoint
from dimat.agent.train import train_locally
from dimat.config import RunConfig, load_config
from dimat.coordinator import Store
from dimat.errors import ConfigError, UsageError
from dimat.messages import Report
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.simulate.stack import stack, unstack, update
from dimat.tasks.digits import DigitsTask
from dimat.transport.memory import MemoryHub, MemoryTransport

SMALL = ["task.model.name=mlp", "task.model.hidden=[16]", "train.epochs=2", "rounds=3", "agents=5"]


def small(*settings: str) -> RunConfig:
    return load_config(None, [*SMALL, *settings])


def run(config: RunConfig, folder: Path) -> Path:
    simulate(config, prepare(config, folder))
    return folder


def states(folder: Path, config: RunConfig) -> list[dict[str, torch.Tensor]]:
    """Weights, buffers and optimiser of every agent after the last round."""
    found = []
    for agent in range(config.agents):
        kept = load_checkpoint(folder / "checkpoints" / str(agent), config.rounds)
        slots = {
            f"{index}.{key}": torch.as_tensor(value)
            for index, of in kept.optimizer["state"].items()
            for key, value in of.items()
        }
        found.append({**kept.model, **slots})
    return found


def reports(folder: Path) -> dict[tuple[int, int], Report]:
    with Store.open(folder, read_only=True) as store:
        return {(report.agent, report.round): report for report in store.reports()}


def events(folder: Path) -> list[str]:
    with Store.open(folder, read_only=True) as store:
        return [event.text for event in store.events() if event.kind == "vectorise"]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["train.weight_decay=0.01", "train.momentum=0"],
        ["train.optimizer=adam", "train.lr=0.003", "train.weight_decay=0.01"],
        ["train.optimizer=adamw", "train.lr=0.003", "train.weight_decay=0.1"],
        ["task.model.batchnorm=true"],
        ["merge.optimizer_state=reset", "topology.graph=complete"],
        ["topology.graph=exponential"],
    ],
)
def test_a_run_is_that_of_the_plain_loop_up_to_rounding(tmp_path: Path, more: list[str]) -> None:
    """Shards differ in size: agents have other numbers of batches, and last batches of other sizes."""
    plain_config, config = small("init=same", *more), small("init=same", *more, "simulation.vectorise=on")
    plain, together = run(plain_config, tmp_path / "plain"), run(config, tmp_path / "together")
    for mine, other in zip(states(plain, plain_config), states(together, config), strict=True):
        assert mine.keys() == other.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(other[name], tensor, rtol=2e-3, atol=2e-4)
    told, as_one = reports(plain), reports(together)
    assert told.keys() == as_one.keys()
    for key, report in told.items():
        for name in ("loss", "lr", "loss_before", "loss_after"):
            assert as_one[key].metrics[name] == pytest.approx(report.metrics[name], rel=2e-3, abs=1e-5)
        assert as_one[key].metrics["accuracy"] == pytest.approx(report.metrics["accuracy"], abs=0.006)
    assert not events(together)


def test_it_really_is_done_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    loss = DigitsTask.losses

    def counting(self: DigitsTask, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        return loss(self, model, batch)

    monkeypatch.setattr(DigitsTask, "losses", counting)
    monkeypatch.setattr("dimat.simulate.together.train_agent", lambda *_: pytest.fail("trained one by one"))
    run(small("rounds=1", "agents=4", "task.partition.scheme=iid", "simulation.vectorise=on"), tmp_path / "run")
    assert len(calls) == pytest.approx(2 * 12, abs=3), "one call a step for four agents, 360 samples each, and one"


def test_a_run_that_is_vectorised_and_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = small("simulation.vectorise=on", "rounds=4")
    whole = states(run(config, tmp_path / "whole"), config)
    folder = run(config, tmp_path / "halves")
    for agent in range(5):
        for ending in ("json", "safetensors"):
            (folder / "checkpoints" / str(agent) / f"4.{ending}").unlink()
    for mine, other in zip(whole, states(run(config, folder), config), strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_unequal_steps_of_adam_are_each_agents_own(tmp_path: Path) -> None:
    config = small("train.optimizer=adam", "merge.optimizer_state=keep", "simulation.vectorise=on", "rounds=1")
    steps = {int(state["0.step"]) for state in states(run(config, tmp_path / "run"), config)}
    assert len(steps) > 1


class Noisy(DigitsTask):
    """A model that draws random numbers when it trains."""

    def model(self) -> torch.nn.Module:
        """With dropout."""
        layers = (torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Dropout(0.5))
        return torch.nn.Sequential(*layers, torch.nn.Linear(16, 10))


class Peeking(DigitsTask):
    """A loss that looks at values, which a stack of models does not have."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Python decides by a number."""
        loss = super().loss(model, batch)
        return loss * 2 if float(loss.detach()) > 1e9 else loss


class Later(DigitsTask):
    """A loss that looks at values from the second step on: for batches of another size than the first."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The last batch is smaller."""
        loss = super().loss(model, batch)
        return loss * 2 if len(batch[1]) % 32 and float(loss.detach()) > 1e9 else loss


class Lying(DigitsTask):
    """Says that its loss is the mean of other losses than it is."""

    def losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Half as much."""
        return super().losses(model, batch) / 2


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("Noisy", "draws random numbers"),
        ("Peeking", "RuntimeError"),
        ("Later", "RuntimeError"),
        ("Lying", "its loss is"),
    ],
)
def test_what_cannot_be_stacked_is_trained_one_by_one_and_said(tmp_path: Path, task: str, reason: str) -> None:
    settings = ["merge.align=none", "rounds=2", "agents=3", f"task.name={__file__}:{task}", "train.epochs=1"]
    settings += ["task.model=mlp"]
    plain, auto = (load_config(None, [*settings, f"simulation.vectorise={word}"]) for word in ("off", "auto"))
    expected = states(run(plain, tmp_path / "plain"), plain)
    folder = run(auto, tmp_path / "auto")
    for mine, other in zip(expected, states(folder, auto), strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in mine), "streams and batches as if never tried"
    assert len(events(folder)) == 1
    assert reason in events(folder)[0]
    must = load_config(None, [*settings, "simulation.vectorise=on"])
    with pytest.raises(UsageError, match=r"(?s)simulation.vectorise is on.*" + reason):
        run(must, tmp_path / "on")


def test_an_algorithm_that_exchanges_at_every_step_is_not_stacked(tmp_path: Path) -> None:
    settings = ["algorithm=dsgd", "algorithm.steps=2", "rounds=1", "agents=3"]
    folder = run(small(*settings, "simulation.vectorise=auto"), tmp_path / "auto")
    assert "dsgd exchanges within a round" in events(folder)[0]
    with pytest.raises(ConfigError, match="single steps are not stacked"):
        run(small(*settings, "simulation.vectorise=on"), tmp_path / "on")


def test_convolutions_are_stacked_only_when_asked_for(tmp_path: Path) -> None:
    settings = ["task.model={name: cnn, width: 0.125}", "rounds=1", "agents=3", "train.epochs=1", "init=same"]
    configs = {word: load_config(None, [*settings, f"simulation.vectorise={word}"]) for word in ("off", "auto", "on")}
    folders = {word: run(config, tmp_path / word) for word, config in configs.items()}
    ends = {word: states(folders[word], config) for word, config in configs.items()}
    for agent in range(3):
        for name, tensor in ends["off"][agent].items():
            assert torch.equal(ends["auto"][agent][name], tensor)
            torch.testing.assert_close(ends["on"][agent][name], tensor, rtol=5e-3, atol=5e-4)
    assert "convolutions" in events(folders["auto"])[0]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["sgd", "adam", "adamw"]), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.03]),
    st.integers(1, 4), st.integers(0, 1000),
)  # fmt: skip
def test_the_stacked_update_is_torchs_own(kind: str, momentum: float, decay: float, count: int, seed: int) -> None:
    """The oracle: torch's optimiser on each model, with gradients of its own and a learning rate of its own."""
    generator = torch.Generator().manual_seed(seed)
    models = [torch.nn.Linear(3, 2) for _ in range(count)]

    def make(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
        made = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
        return made(model.parameters(), lr=lr, weight_decay=decay)

    rates = [0.01 * (place + 1) for place in range(count)]
    optimizers = [make(model, rate) for model, rate in zip(models, rates, strict=True)]
    copies = [torch.nn.Linear(3, 2) for _ in range(count)]
    for model, copy in zip(models, copies, strict=True):
        copy.load_state_dict(model.state_dict())
    copied = [make(model, rate) for model, rate in zip(copies, rates, strict=True)]
    for _ in range(3):  # the state goes out and in again
        gradients = {
            name: torch.randn(count, *tensor.shape, generator=generator)
            for name, tensor in models[0].named_parameters()
        }
        for place, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name][place].clone()
            optimizer.step()
        stacked = stack(copies, copied)
        update(stacked, gradients, copied[0], torch.tensor(rates))
        unstack(stacked, copies, copied)
    for model, copy, optimizer, other in zip(models, copies, optimizers, copied, strict=True):
        for name, parameter in model.named_parameters():
            mine = dict(copy.named_parameters())[name]
            torch.testing.assert_close(mine, parameter, rtol=1e-5, atol=1e-6)
            slots: Mapping[str, Any] = optimizer.state[parameter]
            assert slots.keys() == other.state[mine].keys()
            for key, value in slots.items():
                torch.testing.assert_close(torch.as_tensor(other.state[mine][key]), torch.as_tensor(value))


def test_a_host_trains_what_the_plain_loop_trains_from_any_state(tmp_path: Path) -> None:
    """In the middle of a run, with momentum and other rates, the next epochs are still those of the plain loop."""
    config = small("simulation.vectorise=on", "rounds=3", "init=same")
    folder = run(config, tmp_path / "run")
    hub = MemoryHub()
    agent = build_agent(config, 1, folder, "s", lambda schema: MemoryTransport(1, "s", schema, hub))
    agent.resume(2)
    loss = train_locally(agent.task, agent.model, agent.loader, agent.optimizer, config.train, 3, config.rounds)
    assert reports(folder)[1, 3].metrics["loss"] == pytest.approx(loss, rel=1e-3)
