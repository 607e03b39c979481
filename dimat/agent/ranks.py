"""An agent that owns several processes: they train together, and the first of them does everything else.

The *leader* (local rank 0) is the agent that others know: it speaks gRPC, gathers, folds, evaluates, saves checkpoints.
*Followers* only train. Before each round's training the leader hands its whole state to them (weights, buffers,
optimiser, random streams), so that a merge, a permutation or a resumed checkpoint needs no further words. Then
DistributedDataParallel averages the gradients:

    grad = 1/R * sum over ranks r of grad L(batch[r::R])

Every rank draws the same batches in the same order and takes its share of each, so with equal shares that is the
gradient of the whole batch: an agent of two ranks learns what it would learn alone, up to rounding (and up to batch
norm, which sees a share). What the ranks hold afterwards is compared.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import xxhash
from safetensors.torch import load
from torch.nn.parallel import DistributedDataParallel

from dimat.agent.checkpoint import pack, unpack
from dimat.agent.state import Agent
from dimat.agent.train import train_locally
from dimat.errors import DimatError
from dimat.statedict import parameters_of
from dimat.tasks.base import batch_size

log = logging.getLogger(__name__)

LEAVE = 0
"""The order that follows the last round; rounds count from one."""
PATIENCE = timedelta(hours=1)
"""How long a rank waits for another, beyond four deadlines of a round. A rank that dies is noticed at once."""


class Ranks:
    """The processes of one agent, as one of them sees them.

    Args:
        rank: this process, 0 for the leader.
        num_ranks: how many there are.
        store: torchrun's store under a prefix of this agent's own, through which they find each other.
    """

    def __init__(self, rank: int, num_ranks: int, store: Any) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self._store = store
        self._wrapped: DistributedDataParallel | None = None

    def start(self, agent: Agent) -> None:
        """Meet the others; from now on the agent's backward passes average over all ranks."""
        patience = PATIENCE + timedelta(seconds=4 * agent.config.exchange.timeout_s)
        dist.init_process_group("gloo", store=self._store, rank=self.rank, world_size=self.num_ranks, timeout=patience)
        self._wrapped = DistributedDataParallel(agent.model)

    def close(self) -> None:
        """Part from the others; a second call does nothing."""
        if self._wrapped is not None:
            self._wrapped = None
            dist.destroy_process_group()

    @property
    def model(self) -> DistributedDataParallel:
        """The agent's model, averaging gradients."""
        assert self._wrapped is not None, "not started"
        return self._wrapped

    def say(self, order: int, agent: Agent) -> None:
        """As the leader: what to do next (a round to train, or `LEAVE`), and the state to do it with."""
        tensors, record = pack(agent.after(max(0, order - 1)))
        _broadcast(np.array([order, len(tensors), len(record)], dtype=np.int64))
        for content in (tensors, record):
            _broadcast(np.frombuffer(content, dtype=np.uint8).copy())

    def hear(self, agent: Agent) -> int:
        """As a follower: take over the leader's state; returns its order."""
        order, *lengths = _broadcast(np.zeros(3, dtype=np.int64)).tolist()
        tensors, record = (_broadcast(np.zeros(length, dtype=np.uint8)).tobytes() for length in lengths)
        agent.become(unpack(load(tensors), json.loads(record)))
        return int(order)

    def mean(self, value: float) -> float:
        """The mean of `value` over the ranks."""
        total = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.num_ranks

    def compare(self, agent: Agent, when: str) -> str:
        """The digest of the agent's parameters, when all ranks hold the same.

        Raises:
            DimatError: one does not; ranks that went apart would not be one agent any more.
        """
        digest = xxhash.xxh3_64()
        for tensor in parameters_of(agent.model).values():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        mine = torch.tensor([digest.intdigest() >> 1], dtype=torch.int64)  # a signed integer holds 63 bits of it
        all_digests = [torch.zeros_like(mine) for _ in range(self.num_ranks)]
        dist.all_gather(all_digests, mine)
        apart = [rank for rank, other in enumerate(all_digests) if not torch.equal(other, all_digests[0])]
        if apart:
            raise DimatError(
                f"agent {agent.id}: after {when} its ranks {apart} hold other weights than its rank 0",
                hint="does the task change weights outside of its loss, or train with what only one rank has?",
            )
        return digest.hexdigest()


def train_agent(agent: Agent, number: int) -> float:
    """One round's local training: by this process alone, or as the leader of all the agent's ranks."""
    if agent.ranks is None:
        return train_locally(
            agent.task, agent.model, agent.loader, agent.optimizer, agent.config.train, number, agent.config.rounds
        )
    agent.ranks.say(number, agent)
    return _train_share(agent, agent.ranks, number)


def dismiss(agent: Agent) -> None:
    """As the leader: give the followers the agent's last state and let them go."""
    if agent.ranks is not None:
        agent.ranks.say(LEAVE, agent)
        _last_words(agent, agent.ranks)


def follow(agent: Agent, ranks: Ranks) -> None:
    """Train when the leader says so, until it says that it is over.

    Raises:
        DimatError: the leader or another rank is gone, or training failed.
    """
    try:
        while (order := ranks.hear(agent)) != LEAVE:
            _train_share(agent, ranks, order)
        _last_words(agent, ranks)
    except RuntimeError as error:  # what gloo raises when a connection closes
        raise DimatError(f"agent {agent.id}: rank {ranks.rank} cannot go on: {error}") from error


def _train_share(agent: Agent, ranks: Ranks, number: int) -> float:
    config = agent.config
    shares = Shares(agent.loader, ranks.rank, ranks.num_ranks)
    loss = train_locally(agent.task, ranks.model, shares, agent.optimizer, config.train, number, config.rounds)
    ranks.compare(agent, f"training in round {number}")
    return ranks.mean(loss)


def _last_words(agent: Agent, ranks: Ranks) -> None:
    digest = ranks.compare(agent, "the last round")
    log.info("agent %d: rank %d of %d leaves with weights %s", agent.id, ranks.rank, ranks.num_ranks, digest)


class Shares:
    """A loader's batches, of each one rank's share.

    Args:
        loader: batches of the whole agent.
        rank: whose share.
        num_ranks: among how many.
    """

    def __init__(self, loader: Any, rank: int, num_ranks: int) -> None:
        self._loader = loader
        self._rank = rank
        self._num_ranks = num_ranks

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield share_of(batch, self._rank, self._num_ranks)


def share_of(batch: Any, rank: int, num_ranks: int) -> Any:
    """Every `num_ranks`-th sample of a batch, from sample `rank` on; all ranks get the same number.

    Where the batch cannot be dealt evenly its first samples are dealt a second time, as by torch's DistributedSampler.
    Tensors are looked for in tuples, lists and mappings; what is no tensor goes to all ranks.

    >>> share_of((torch.arange(5), "five"), rank=1, num_ranks=2)
    (tensor([1, 3, 0]), 'five')
    """
    size = batch_size(batch)
    chosen = torch.arange(rank, -(-size // num_ranks) * num_ranks, num_ranks) % size
    return _pick(batch, chosen)


def _pick(batch: Any, chosen: torch.Tensor) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[chosen] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: _pick(value, chosen) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_pick(part, chosen) for part in batch)
    return batch


def _broadcast(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rank 0's array in every rank, in place."""
    dist.broadcast(torch.from_numpy(array), src=0)
    return array
