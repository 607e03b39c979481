"""What a check of a task finds, how it makes the task, and how it looks at batches; shared by all checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dimat.tasks.base import tensors_of

MAX_BATCHES = 200
"""Batches of an epoch that are looked at: enough for small data, bounded for large."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    status: Literal["ok", "warning", "problem"]
    message: str
    cure: str = ""


def ok(check: str, message: str) -> Finding:
    """What is as it should be."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, cure: str) -> Finding:
    """What runs, but probably not as meant."""
    return Finding(check, "warning", message, cure)


def problem(check: str, message: str, cure: str) -> Finding:
    """What must be mended before the task can run."""
    return Finding(check, "problem", message, cure)


@dataclass(frozen=True, slots=True)
class Trial:
    """How the task is made and asked, the same for every check."""

    make: Callable[[], Any]
    num_agents: int
    seed: int

    def seeded_model(self, task: Any, seed: int) -> Any:
        """A model of the task, initialised as the runtime does it."""
        torch.manual_seed(seed)
        return task.model()

    def shard(self, agent: int) -> tuple[Any, Any]:
        """A fresh task and its loader; torch's global generator starts alike, as it does in a run."""
        task = self.make()
        torch.manual_seed(self.seed)
        return task, task.data(agent, self.num_agents, self.seed)


def epoch_of(loader: Any) -> list[Any]:
    """An epoch's batches, at most `MAX_BATCHES`; copied, as a loader may reuse its buffers."""
    batches = []
    for batch in loader:
        batches.append([tensor.clone() for tensor in tensors_of(batch)])
        if len(batches) == MAX_BATCHES:
            break
    return batches


def row_list(batches: list[Any]) -> list[bytes]:
    """The bytes of every sample, from the largest tensor of its batch: inputs are larger than labels."""
    largest = [max(tensors_of(batch), key=torch.numel) for batch in batches]
    return [_bytes(row) for tensor in largest for row in (tensor if tensor.dim() else tensor[None])]


def rows(batches: list[Any]) -> set[bytes]:
    """`row_list` without repetitions."""
    return set(row_list(batches))


def generator_state(loader: Any) -> bytes:
    """The state of the loader's own generator; empty when it has none."""
    generator = getattr(loader, "generator", None)
    return _bytes(generator.get_state()) if isinstance(generator, torch.Generator) else b""


def same(left: Any, right: Any) -> bool:
    """Equal bit by bit, whatever is nested in what."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())
