"""my_task: what the agents of a run learn, and from what. Written by `dimat new`; it runs as it is.

The data is made up: ten classes of points in 16 dimensions, three clusters each. Put your own in its place, then:

    dimat check task my_task.py:Task     what is wrong, if anything, and what cures it
    dimat run my_task.yaml               five agents on this machine
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dimat.tasks import PROBE_LIMIT, TensorLoader


class Task:
    """One agent's view of the task: every agent makes its own object and calls `data` once with its own number.

    Parameters of __init__ are options of the config, such as `-s task.options.noise=0.5`. Of what every config has, it
    may take `model`, `data`, `partition` and `batch_size` by naming them, as it does with `batch_size` here.
    """

    def __init__(self, batch_size: int = 32, noise: float = 0.7) -> None:
        self.batch_size = batch_size
        self.x_train, self.y_train = make_points(4000, noise, seed=1)
        self.x_test, self.y_test = make_points(1000, noise, seed=2)
        self.own: Tensor | None = None

    def model(self) -> nn.Module:
        """A fresh model. Its random start comes from torch's global generator: do not seed here, the caller does."""
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def data(self, agent: int, num_agents: int, seed: int) -> TensorLoader:
        """Batches of this agent's own samples: the same for the same arguments, disjoint from those of other agents.

        Each iteration over the loader is one epoch in a new order. TensorLoader is quick for tensors in memory. A torch
        DataLoader will do too: give it `generator=torch.Generator().manual_seed(...)`, so that a run can be continued.
        """
        order = torch.randperm(len(self.x_train), generator=torch.Generator().manual_seed(seed))
        self.own = order[agent::num_agents]
        shuffling = torch.Generator().manual_seed(1000 * seed + agent)
        return TensorLoader(self.x_train[self.own], self.y_train[self.own], self.batch_size, shuffling)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """What training minimises: a scalar tensor with a gradient. `batch` is what the loader yields."""
        x, y = batch
        return functional.cross_entropy(model(x), y)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """`accuracy` and `loss` on samples that no agent trains on, the same for all agents."""
        was_training = model.training
        model.eval()
        with torch.no_grad():
            logits = model(self.x_test)
        model.train(was_training)
        return {
            "accuracy": float((logits.argmax(1) == self.y_test).float().mean()),
            "loss": float(functional.cross_entropy(logits, self.y_test)),
        }

    def probe(self) -> list[Tensor]:
        """At most 512 of the agent's own samples, as inputs of the model: aligning compares units on them.

        The same on every call; no random numbers, no augmentation. A model of several arguments gets tuples.
        """
        if self.own is None:
            raise RuntimeError("call data() before probe()")
        return [self.x_train[self.own[:PROBE_LIMIT]]]

    def labels(self) -> dict[str, int]:
        """Optional: how many samples of each class this agent has, for the report."""
        if self.own is None:
            raise RuntimeError("call data() before labels()")
        counts = torch.bincount(self.y_train[self.own], minlength=10)
        return {str(label): int(count) for label, count in enumerate(counts)}


def make_points(num_points: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Points around 30 centres that are the same for every seed; centre c belongs to class c mod 10."""
    centres = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randint(30, (num_points,), generator=draw)
    return centres[chosen] + noise * torch.randn(num_points, 16, generator=draw), chosen % 10
