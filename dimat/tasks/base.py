"""The contract of a task: the model, the data of agent i of n, the loss and the evaluation. What the user brings.

A task object is made for one agent and does not know that other agents exist. The five methods below are required;
more are used where a task has them:

    shared_probe()   like `probe`, but drawn from the union of all shards, as the published DIMAT does
    labels()         how many samples of each class the agent's shard has, after `data`
    num_samples      size of the agent's shard, after `data`

And by a simulation that trains many models as one (`simulation.vectorise`):

    losses(model, batch)    the loss of each sample, of which `loss` is the mean: batches of unequal size can be joined
    test_batches()          the batches that `evaluate` goes through, the same for all agents
    score(model, batch)     sums over one of them by name, as tensors without dimensions, for a model in eval mode
    verdict(scores)         what `evaluate` returns, from the scores of all batches as plain numbers
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dimat import plugins
from dimat.errors import TaskError

PROBE_LIMIT = 512
"""The most samples that a probe has: enough to correlate units, little enough to cost nothing beside training."""


@runtime_checkable
class Task(Protocol):
    """What an agent asks of a task."""

    def model(self) -> nn.Module:
        """A fresh module whose random initialisation comes from torch's global generator, which the caller seeds."""

    def data(self, agent: int, num_agents: int, seed: int) -> Iterable[Any]:
        """The batches of this agent's own shard; iterating once is an epoch, iterating again reshuffles.

        A loader that shuffles holds its `generator: torch.Generator` as an attribute, seeded by `seed` and `agent`: the
        runtime saves and restores its state, so that a continued run sees the batches it would have seen.
        """

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar to minimise, attached to the graph of `model`."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """At least `accuracy` and `loss` on a test set that all agents share; leaves the model as it was."""

    def probe(self) -> Sequence[Any]:
        """At most 512 samples of the agent's own shard, in batches for the model: a tensor, or a tuple of arguments.

        Needs `data` before it. Deterministic and without drawing random numbers.
        """


REQUIRED = ("model", "data", "loss", "evaluate", "probe")


def missing_methods(task: object) -> list[str]:
    """The names of required methods that `task` does not have.

    >>> missing_methods(object())
    ['model', 'data', 'loss', 'evaluate', 'probe']
    """
    return [name for name in REQUIRED if not callable(getattr(task, name, None))]


def require_methods(task: object, reference: str) -> None:
    """Pass when `task` has every required method.

    Raises:
        TaskError: names the missing methods and those that exist.
    """
    missing = missing_methods(task)
    if not missing:
        return
    # Statically: a property that needs `data` first must not be asked here.
    own = [name for name in dir(task) if not name.startswith("_") and callable(inspect.getattr_static(task, name))]
    near = {name: plugins.closest(name, [other for other in own if other not in REQUIRED]) for name in missing}
    words = [f"{name} (is {other!r} meant to be it?)" if other else name for name, other in near.items()]
    raise TaskError(
        f"task {reference} has no method {', '.join(words)}; "
        f"required: {', '.join(REQUIRED)}; it has: {', '.join(own) or 'none'}",
        hint="`dimat new NAME` writes a task with every method",
    )


def speaks_for(task: object, detail: str, whole: str) -> bool:
    """Whether method `detail` tells what method `whole` does: it exists, and `whole` was not overridden after it.

    >>> class Task:
    ...     def loss(self): ...
    ...     def losses(self): ...
    >>> class Other(Task):
    ...     def loss(self): ...
    >>> speaks_for(Task(), "losses", "loss"), speaks_for(Other(), "losses", "loss")
    (True, False)
    """
    classes = type(task).__mro__
    where = {
        name: next((place for place, one in enumerate(classes) if name in vars(one)), len(classes))
        for name in (detail, whole)
    }
    return where[detail] < len(classes) and where[detail] <= where[whole]


def model_inputs(batch: Any) -> tuple[Any, ...]:
    """One element of a probe as the positional arguments of the model.

    >>> len(model_inputs(torch.zeros(4, 3))), len(model_inputs((torch.zeros(4, 3), torch.zeros(4))))
    (1, 2)
    """
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def probe_batches(task: Task, source: str = "local") -> list[tuple[Any, ...]]:
    """The probe as a list of argument tuples for the model; `data` has been called.

    Args:
        task: whose probe.
        source: `local`, the agent's own shard, or `shared`, the union of all shards.

    Raises:
        TaskError: the probe is empty or above 512 samples, the source is unknown, or the task has no `shared_probe`.
    """
    methods = {"local": "probe", "shared": "shared_probe"}
    if source not in methods:
        raise TaskError(plugins.unknown("probe", source, methods))
    method = getattr(task, methods[source], None)
    if method is None:
        raise TaskError(
            f"{type(task).__name__} has no method {methods[source]}, which probe: {source} asks for",
            hint="write the method, or take probe: local",
        )
    batches = [model_inputs(batch) for batch in method()]
    if not batches:
        raise TaskError(f"{type(task).__name__}.{methods[source]} returned no batch, expected at least one")
    size = sum(batch_size(batch) for batch in batches)
    if size > PROBE_LIMIT:
        raise TaskError(
            f"{type(task).__name__}.{methods[source]} returned {size} samples, expected at most {PROBE_LIMIT}"
        )
    return batches


def batch_size(batch: Any) -> int:
    """The number of samples of a batch: the first dimension of the first tensor found in it; 1 when there is none.

    >>> batch_size({"ids": torch.zeros(5, 7), "mask": torch.zeros(5, 7)})
    5
    """
    first = next(tensors_of(batch), None)
    return 1 if first is None or first.dim() == 0 else first.shape[0]


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings, depth first; mappings in the order of their keys' text."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for key in sorted(batch, key=str):
            yield from tensors_of(batch[key])
    elif isinstance(batch, tuple | list):
        for part in batch:
            yield from tensors_of(part)


def label_histogram(task: Task) -> dict[str, int] | None:
    """How many samples of each class the agent's shard has, None when the task does not tell; `data` was called."""
    labels = getattr(task, "labels", None)
    return None if labels is None else {str(name): int(count) for name, count in labels().items()}


def preflight(task: Task, num_agents: int, seed: int) -> list[dict[str, int] | None]:
    """Deal every agent's shard and make one model, so that what cannot run is said before anything starts.

    Returns the label histogram of each agent in order of id. Torch's global generator is left as it was; the task's
    shard is the last agent's afterwards, so take a fresh task for training.

    Raises:
        TaskError: what the task's own data, partition or model raise.
    """
    with torch.random.fork_rng(devices=[]):
        task.model()
    histograms = []
    for agent in range(num_agents):
        task.data(agent, num_agents, seed)
        histograms.append(label_histogram(task))
    return histograms
