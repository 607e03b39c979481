"""Who gets which samples: pure functions from labels and a seed to one array of indices per agent.

Every scheme is seeded, deals disjoint shards, loses nothing and leaves no agent without samples:

    iid         each class dealt equally
    dirichlet   of each class, agent i gets the share p_i with p ~ Dirichlet(alpha, ..., alpha) (arXiv 1909.06335)
    classes     class c goes to agent c mod n, the non-IID partition of DIMAT (arXiv 2404.08079)
    column      a natural partition: one agent per value, or group of values, of an array such as a person's id
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dimat import plugins
from dimat.errors import TaskError
from dimat.tasks.seeds import numpy_generator

Indices = npt.NDArray[np.int64]

SCHEMES = ("iid", "dirichlet", "classes", "column")


@dataclass(frozen=True, slots=True)
class Partition:
    """A scheme and its options, as a config's `partition:` says them.

    Options of another scheme are kept unused, so that `-s task.partition.scheme=iid` works beside an `alpha`.
    """

    scheme: str = "iid"
    alpha: float = 0.5
    """Concentration of `dirichlet`: 0.1 leaves an agent few classes, 100 is nearly `iid`."""
    min_samples: int = 2
    """The least that `dirichlet` leaves an agent, where there are enough: batch norm cannot train on one."""
    column: str | None = None
    """Name of the array with one value per training sample, for `column`."""

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise TaskError(plugins.unknown("partition scheme", str(self.scheme), SCHEMES))
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
            raise TaskError(f"partition: alpha is a positive number such as 0.5, {self.alpha!r} was given")
        if isinstance(self.min_samples, bool) or not isinstance(self.min_samples, int) or self.min_samples < 1:
            raise TaskError(f"partition: min_samples is a whole number of at least 1, {self.min_samples!r} was given")
        if self.scheme == "column" and not self.column:
            raise TaskError(
                "partition scheme column needs the name of an array in the data file",
                hint="for example partition: {scheme: column, column: subject_train}",
            )

    @classmethod
    def parse(cls, given: str | Mapping[str, Any]) -> Partition:
        """Read a scheme's name or a mapping with `scheme` and options.

        Raises:
            TaskError: an unknown scheme or option, or a value out of range.

        >>> Partition.parse({"scheme": "dirichlet", "alpha": 0.1}).alpha
        0.1
        """
        if isinstance(given, str):
            return cls(given)
        if not isinstance(given, Mapping):
            raise TaskError(f"partition is a scheme or a mapping such as {{scheme: iid}}, {given!r} was given")
        known = list(cls.__dataclass_fields__)
        for key in given:
            if key not in known:
                raise TaskError(f"partition: {plugins.unknown('option', str(key), known)}")
        return cls(**given)


def deal(
    labels: npt.NDArray[np.integer[Any]],
    num_agents: int,
    partition: Partition,
    seed: int,
    column: npt.NDArray[Any] | None = None,
) -> list[Indices]:
    """Split samples 0..N-1 among the agents.

    Args:
        labels: class of each sample, shape (N,).
        num_agents: number of shards.
        partition: scheme and options.
        seed: fixes the shards; `column` does not depend on it.
        column: one value per sample, shape (N,), for scheme `column`.

    Returns:
        One sorted array of indices per agent, in order of id; disjoint, together 0..N-1, none of them empty.

    Raises:
        TaskError: more agents than samples (or than values of the column), or fewer than one agent.

    >>> [shard.tolist() for shard in deal(np.array([0, 1, 0, 1]), 2, Partition("classes"), seed=0)]
    [[0, 2], [1, 3]]
    """
    if num_agents < 1:
        raise TaskError(f"data is dealt to at least one agent, {num_agents} was given")
    if num_agents > len(labels):
        raise TaskError(
            f"{num_agents} agents share {len(labels)} training samples, expected at least one sample each",
            hint="take fewer agents or more data",
        )
    random = numpy_generator(seed, "partition", partition.scheme)
    if partition.scheme == "column":
        shards = by_column(labels, num_agents, column, str(partition.column))
    elif partition.scheme == "dirichlet":
        shards = dirichlet(labels, num_agents, random, partition.alpha, partition.min_samples)
    elif partition.scheme == "classes":
        shards = by_class(labels, num_agents, random)
    else:
        shards = iid(labels, num_agents, random)
    return [np.sort(shard).astype(np.int64) for shard in shards]


def iid(labels: npt.NDArray[Any], num_agents: int, random: np.random.Generator) -> list[Indices]:
    """Deal each class like cards, going on with the next agent where the class before ended.

    So the shards differ by at most one sample, in each class and in total.
    """
    cards = np.concatenate(_shuffled_classes(labels, random))
    return [cards[agent::num_agents] for agent in range(num_agents)]


def dirichlet(
    labels: npt.NDArray[Any], num_agents: int, random: np.random.Generator, alpha: float, min_samples: int
) -> list[Indices]:
    """Cut each class at shares drawn from Dirichlet(alpha); below the minimum, the largest shard gives."""
    pieces: list[list[Indices]] = [[] for _ in range(num_agents)]
    for members in _shuffled_classes(labels, random):
        shares = random.dirichlet(np.full(num_agents, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for agent, piece in enumerate(np.split(members, cuts)):
            pieces[agent].append(piece)
    shards = [np.concatenate(parts) for parts in pieces]
    least = min(min_samples, len(labels) // num_agents)
    for agent in range(num_agents):
        while len(shards[agent]) < least:
            # With `least` at most the mean size, the largest shard stays at or above it.
            donor = max(range(num_agents), key=lambda other: (len(shards[other]), -other))
            moved = int(random.integers(len(shards[donor])))
            shards[agent] = np.append(shards[agent], shards[donor][moved])
            shards[donor] = np.delete(shards[donor], moved)
    return shards


def by_class(labels: npt.NDArray[Any], num_agents: int, random: np.random.Generator) -> list[Indices]:
    """Class c to agent c mod n, classes counted among those that occur.

    With more agents than classes, agents c, c + C, c + 2C, ... of C classes share class c in equal parts.
    """
    classes = _shuffled_classes(labels, random)
    if num_agents <= len(classes):
        return [np.concatenate(classes[agent::num_agents]) for agent in range(num_agents)]
    shards: list[Indices] = [np.empty(0, np.int64)] * num_agents
    for rank, members in enumerate(classes):
        sharers = range(rank, num_agents, len(classes))
        if len(members) < len(sharers):
            raise TaskError(
                f"partition classes: class {labels[members[0]]} has {len(members)} samples for {len(sharers)} agents",
                hint="take fewer agents, or scheme iid or dirichlet",
            )
        for agent, piece in zip(sharers, np.array_split(members, len(sharers)), strict=True):
            shards[agent] = piece
    return shards


def by_column(labels: npt.NDArray[Any], num_agents: int, column: npt.NDArray[Any] | None, name: str) -> list[Indices]:
    """All samples of one value to one agent; the largest value first, each to the agent that has least so far."""
    if column is None:
        raise TaskError(f"partition column: the data has no array {name!r}")
    if column.shape != labels.shape:
        raise TaskError(
            f"partition column: {name} has shape {column.shape}, expected one value per sample, {labels.shape}"
        )
    if column.dtype.kind == "f" and np.isnan(column).any():
        raise TaskError(f"partition column: {name} has NaN among its values")
    values, member_of, counts = np.unique(column, return_inverse=True, return_counts=True)
    if num_agents > len(values):
        raise TaskError(
            f"partition column: {num_agents} agents share the {len(values)} values of {name}, expected one value each",
            hint=f"take at most {len(values)} agents",
        )
    agent_of = np.empty(len(values), np.int64)
    load = [0] * num_agents
    for value in np.argsort(-counts, kind="stable"):
        lightest = min(range(num_agents), key=lambda agent: (load[agent], agent))
        agent_of[value] = lightest
        load[lightest] += int(counts[value])
    owner = agent_of[member_of.reshape(-1)]
    return [np.flatnonzero(owner == agent) for agent in range(num_agents)]


def histogram(labels: npt.NDArray[Any], num_classes: int) -> list[int]:
    """How many samples each class 0..C-1 has.

    >>> histogram(np.array([0, 2, 2]), 4)
    [1, 0, 2, 0]
    """
    return [int(count) for count in np.bincount(labels, minlength=num_classes)]


def balanced_subset(labels: npt.NDArray[Any], num_samples: int) -> Indices:
    """`num_samples` of all samples with the classes as equal as they can be; sorted, the same on every call.

    >>> balanced_subset(np.array([0, 0, 0, 0, 1, 1]), 4).tolist()[2:]
    [4, 5]
    """
    classes = _shuffled_classes(labels, numpy_generator(0, "subset"))
    rank = np.concatenate([np.arange(len(members)) for members in classes])
    # Stable: everyone's first before anyone's second, classes in order.
    order = np.concatenate(classes)[np.argsort(rank, kind="stable")]
    return np.sort(order[:num_samples])


def stratified_split(labels: npt.NDArray[Any], test_share: float) -> tuple[Indices, Indices]:
    """Indices of the training and of the test samples: of each class the same share is for testing, on every call.

    >>> [len(part) for part in stratified_split(np.array([0] * 10 + [1] * 5), 0.2)]
    [12, 3]
    """
    train, test = [], []
    for members in _shuffled_classes(labels, numpy_generator(0, "split")):
        num_test = round(len(members) * test_share)
        test.append(members[:num_test])
        train.append(members[num_test:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _shuffled_classes(labels: npt.NDArray[Any], random: np.random.Generator) -> list[Indices]:
    return [random.permutation(np.flatnonzero(labels == value)) for value in np.unique(labels)]
