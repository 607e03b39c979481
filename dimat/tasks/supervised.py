"""Classification from arrays in memory: everything that `digits` and `arrays` share once their data is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from dimat.calibrate.probe import evaluating
from dimat.errors import TaskError
from dimat.tasks import partition as dealing
from dimat.tasks.base import PROBE_LIMIT
from dimat.tasks.loader import TensorLoader
from dimat.tasks.models import ModelSpec
from dimat.tasks.models.layout import takes_channels_last
from dimat.tasks.partition import Partition
from dimat.tasks.scaling import Scaling
from dimat.tasks.seeds import numpy_generator, torch_generator

# Larger test and probe batches are slower on a CPU: activations of 32×32 images leave its caches.
_PROBE_BATCH = 128
_TEST_BATCH = 128


@dataclass(frozen=True, slots=True, eq=False)  # so that a cache can go by which dataset it is
class Dataset:
    """Samples and labels as read; agents of one process share it and never write to it."""

    x_train: Tensor
    """(N, channels, ...) or (N, features), in the dtype it was stored in."""
    y_train: Tensor
    """(N,) int64, 0 <= y < number of classes."""
    x_test: Tensor
    y_test: Tensor
    scaling: Scaling
    """From stored samples to the float32 that models read."""
    class_names: tuple[str, ...]
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Arrays with one value per training sample that a partition may go by."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (channels, height, width), (channels, length) or (features,)."""
        return tuple(self.x_train.shape[1:])

    @property
    def num_classes(self) -> int:
        """The number of outputs of a classifier."""
        return len(self.class_names)


# Each of a thousand agents in one process asks for all shards, to take its own.
@lru_cache(maxsize=2)
def _dealt(dataset: Dataset, num_agents: int, partition: Partition, seed: int) -> list[npt.NDArray[np.int64]]:
    column = dataset.columns.get(partition.column) if partition.column else None
    return dealing.deal(dataset.y_train.numpy(), num_agents, partition, seed, column)


class SupervisedTask(ABC):
    """Cross-entropy on one agent's shard of a `Dataset`, accuracy on the test samples that all agents share.

    Args:
        model: a model's name, or a mapping with `name` and options.
        partition: a scheme's name, or a mapping with `scheme` and options.
        batch_size: training samples per step.

    Raises:
        TaskError, PluginError: a model or partition that does not exist; the data itself is read at first use.
    """

    def __init__(self, *, model: str | Mapping[str, Any], partition: str | Mapping[str, Any], batch_size: int) -> None:
        self._model = ModelSpec.parse(model)
        self._partition = Partition.parse(partition)
        self._batch_size = batch_size
        self._channels_last: bool | None = None  # found at first use
        self._shard: tuple[int, int, npt.NDArray[np.int64]] | None = None  # agent, seed, indices

    @abstractmethod
    def dataset(self) -> Dataset:
        """The samples, read once per process."""

    @property
    def scaling(self) -> Scaling:
        """The data's, with images laid out as dimat's own models are fastest on; users' models get the usual layout."""
        dataset = self.dataset()
        if self._channels_last is None:
            self._channels_last = takes_channels_last(self._model, dataset.input_shape, dataset.num_classes)
        return replace(dataset.scaling, channels_last=self._channels_last)

    def model(self) -> nn.Module:
        """A fresh model for the shape of the samples and the number of classes."""
        dataset = self.dataset()
        return self._model.build(dataset.input_shape, dataset.num_classes)

    def data(self, agent: int, num_agents: int, seed: int) -> TensorLoader:
        """The loader of this agent's own shard."""
        if not 0 <= agent < num_agents:
            raise TaskError(f"agent {agent} is not one of the {num_agents} agents 0 to {num_agents - 1}")
        dataset = self.dataset()
        shard = _dealt(dataset, num_agents, self._partition, seed)[agent]
        chosen = torch.from_numpy(shard)
        loader = TensorLoader(
            dataset.x_train[chosen],
            dataset.y_train[chosen],
            self._batch_size,
            torch_generator(seed, "shuffle", agent),
            self.scaling,
        )
        self._shard = (agent, seed, shard)
        return loader

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of the batch, on the model's device."""
        device = next(model.parameters()).device
        return functional.cross_entropy(model(batch[0].to(device)), batch[1].to(device))

    def losses(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The cross-entropy of each sample: `loss` is their mean."""
        device = next(model.parameters()).device
        return functional.cross_entropy(model(batch[0].to(device)), batch[1].to(device), reduction="none")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """`accuracy` (share of test samples that are classified rightly) and `loss` (mean cross-entropy)."""
        with evaluating(model):
            scores = [self.score(model, batch) for batch in self.test_batches()]
        return self.verdict([{name: float(value) for name, value in score.items()} for score in scores])

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples and labels that all agents are tested on."""
        dataset = self.dataset()
        for start in range(0, len(dataset.y_test), _TEST_BATCH):
            rows = slice(start, start + _TEST_BATCH)
            yield self.scaling.apply(dataset.x_test[rows]), dataset.y_test[rows]

    def score(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """`right`, how many samples of the batch are classified rightly, and `loss`, the sum of cross-entropies."""
        device = next(model.parameters()).device
        logits, y = model(batch[0].to(device)), batch[1].to(device)
        return {"right": (logits.argmax(1) == y).sum(), "loss": functional.cross_entropy(logits, y, reduction="sum")}

    def verdict(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """What `evaluate` returns, from the sums over all test batches."""
        num_samples = len(self.dataset().y_test)
        return {
            "accuracy": sum(score["right"] for score in scores) / num_samples,
            "loss": sum(score["loss"] for score in scores) / num_samples,
        }

    def correct(self, model: nn.Module) -> Tensor:
        """Which test samples are classified rightly: (num_samples,) bool, in the order of the data."""
        device = next(model.parameters()).device
        with evaluating(model):
            right = [model(x.to(device)).argmax(1) == y.to(device) for x, y in self.test_batches()]
        return torch.cat(right).cpu()

    def probe(self) -> list[Tensor]:
        """At most 512 samples of this agent's own shard, in equal batches; the same on every call."""
        agent, seed, shard = self._own_shard("probe")
        return self._sample(shard, numpy_generator(seed, "probe", agent))

    def shared_probe(self) -> list[Tensor]:
        """At most 512 samples of the union of all shards; the same on every call and for every agent."""
        _, seed, _ = self._own_shard("shared_probe")
        return self._sample(np.arange(len(self.dataset().y_train)), numpy_generator(seed, "shared probe"))

    def labels(self) -> dict[str, int]:
        """How many samples of each class this agent's shard has, classes without samples included."""
        dataset, (_, _, shard) = self.dataset(), self._own_shard("labels")
        counts = dealing.histogram(dataset.y_train.numpy()[shard], dataset.num_classes)
        return dict(zip(dataset.class_names, counts, strict=True))

    @property
    def num_samples(self) -> int:
        """The size of this agent's shard."""
        return len(self._own_shard("num_samples")[2])

    def _own_shard(self, asked: str) -> tuple[int, int, npt.NDArray[np.int64]]:
        if self._shard is None:
            raise TaskError(f"{asked} needs the agent's own shard: call data(agent, num_agents, seed) first")
        return self._shard

    def _sample(self, indices: npt.NDArray[np.int64], random: np.random.Generator) -> list[Tensor]:
        chosen = random.permutation(indices)[:PROBE_LIMIT]
        # Equal parts: a last batch of one sample would be of no use to batch norm.
        parts = np.array_split(chosen, -(-len(chosen) // _PROBE_BATCH))
        dataset = self.dataset()
        return [self.scaling.apply(dataset.x_train[torch.from_numpy(part)]) for part in parts]
