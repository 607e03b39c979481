"""A task that plain numpy can follow: least squares on fixed batches, in float64, and a run of it step by step.

Each round is one step, so that the checkpoints of a run are its trajectory.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from dimat.agent.randomness import seed_all
from dimat.config import RunConfig, load_config
from dimat.coordinator import Store
from dimat.messages import Report
from dimat.runfolder import prepare
from dimat.seeds import derive_seed
from dimat.simulate import simulate
from dimat.topology import load_topology

NUM_AGENTS, NUM_FEATURES, NUM_BATCHES = 4, 3, 1
LR = 0.05
Vector = np.ndarray


def samples(agent: int) -> tuple[Vector, Vector]:
    """Six samples of one agent's own; the last column of x is 1."""
    random = np.random.default_rng(100 + agent)
    x = np.column_stack([random.normal(size=(6, NUM_FEATURES)), np.ones(6)])
    return x, random.normal(size=6) + agent


def gradient(agent: int, theta: Vector) -> Vector:
    """Of the mean squared error on the agent's samples."""
    x, y = samples(agent)
    return 2 / len(y) * x.T @ (x @ theta - y)


class LeastSquares:
    """The same as a task of dimat's."""

    def model(self) -> torch.nn.Module:
        return torch.nn.Linear(NUM_FEATURES, 1, dtype=torch.float64)

    def data(self, agent: int, num_agents: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        x, y = samples(agent)
        self._batch = torch.from_numpy(x[:, :-1].copy()), torch.from_numpy(y)
        return [self._batch]

    @property
    def num_samples(self) -> int:
        return 6

    def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.mse_loss(model(batch[0])[:, 0], batch[1])

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"accuracy": 0.0, "loss": float(self.loss(model, self._batch))}

    def probe(self) -> list[torch.Tensor]:
        return [self._batch[0]]


def start(agent: int, init: str = "different", seed: int = 0) -> Vector:
    """Where an agent begins."""
    seed_all(derive_seed(seed, "init", *([agent] if init == "different" else [])))
    layer = torch.nn.Linear(NUM_FEATURES, 1, dtype=torch.float64)
    return np.append(layer.weight.detach().numpy()[0], layer.bias.detach().numpy())


def config_of(*settings: str) -> RunConfig:
    return load_config(
        None,
        [
            f"task.name={__file__}:LeastSquares", f"agents={NUM_AGENTS}", "rounds=4", f"train.lr={LR}",
            "train.lr_schedule=constant", "algorithm.steps=1", "train.batch_size=6", *settings,
        ],
    )  # fmt: skip


def trajectory(folder: Path, *settings: str) -> list[Vector]:
    """One (agents, parameters) array for the start and after every round that the checkpoints still hold."""
    config = config_of(*settings)
    simulate(config, prepare(config, folder))
    return [np.stack([start(agent, config.init, config.seed) for agent in range(config.agents)]), *held(folder, config)]


def held(folder: Path, config: RunConfig) -> list[Vector]:
    """The models of all rounds, from the checkpoints."""
    rounds = []
    for round in range(1, config.rounds + 1):
        rows = []
        for agent in range(config.agents):
            tensors = load_file(folder / "checkpoints" / str(agent) / f"{round}.safetensors")
            rows.append(np.append(tensors["model.weight"].numpy()[0], tensors["model.bias"].numpy()))
        rounds.append(np.stack(rows))
    return rounds


def expected(begin: Vector, num_steps: int, step: Callable[[int, Vector], Vector]) -> list[Vector]:
    """The oracle's trajectory: `step(k, x)` from the models after k steps to those after k + 1."""
    path = [begin]
    for k in range(num_steps):
        path.append(step(k, path[-1]))
    return path


def matrix(graph: str, round: int = 0, seed: int = 0) -> Vector:
    return load_topology(graph, NUM_AGENTS, seed=seed).matrix(round)


def gradients(x: Vector) -> Vector:
    """Of all agents, each at its own model."""
    return np.stack([gradient(agent, x[agent]) for agent in range(len(x))])


def assert_same(found: Sequence[Vector], oracle: Sequence[Vector], tolerance: float = 1e-12) -> None:
    assert len(found) == len(oracle) > 2
    for step, (mine, plain) in enumerate(zip(found, oracle, strict=True)):
        np.testing.assert_allclose(mine, plain, rtol=0, atol=tolerance, err_msg=f"after step {step}")


def reports(folder: Path) -> dict[tuple[int, int], Report]:
    with Store.open(folder, read_only=True) as store:
        return {(report.agent, report.round): report for report in store.reports()}
