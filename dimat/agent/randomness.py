"""The state of every random stream that local training may draw from, as a value.

torch's, numpy's and Python's global streams and the generator of the train loader. Checkpoints keep it, so that a
continued run draws what an undisturbed one would; the simulator swaps it, so that agents in one process draw what they
would in processes of their own.
"""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Randomness:
    """A frozen copy of all streams."""

    torch_stream: torch.Tensor
    numpy_stream: dict[str, Any]
    python_stream: tuple[Any, ...]
    loader_stream: torch.Tensor | None

    def to_json(self) -> dict[str, Any]:
        """The streams as JSON values."""
        keys = self.numpy_stream["state"]
        return {
            "torch": _encode(self.torch_stream),
            "numpy": {**self.numpy_stream, "state": {"key": [int(k) for k in keys["key"]], "pos": int(keys["pos"])}},
            "python": [self.python_stream[0], list(self.python_stream[1]), self.python_stream[2]],
            "loader": None if self.loader_stream is None else _encode(self.loader_stream),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Randomness:
        """The streams that `to_json` wrote."""
        keys = values["numpy"]["state"]
        return cls(
            torch_stream=_decode(values["torch"]),
            numpy_stream={**values["numpy"], "state": {**keys, "key": np.array(keys["key"], dtype=np.uint32)}},
            python_stream=(values["python"][0], tuple(values["python"][1]), values["python"][2]),
            loader_stream=None if values["loader"] is None else _decode(values["loader"]),
        )


def seed_all(seed: int) -> None:
    """Seed the global streams of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  user code draws from the legacy stream
    random.seed(seed)


def capture(loader: Any) -> Randomness:
    """The streams as they stand; `loader` is asked for its `generator`, if it has one."""
    generator = getattr(loader, "generator", None)
    return Randomness(
        torch_stream=torch.get_rng_state(),
        numpy_stream=dict(np.random.get_state(legacy=False)),  # noqa: NPY002
        python_stream=random.getstate(),
        loader_stream=generator.get_state() if isinstance(generator, torch.Generator) else None,
    )


def restore(state: Randomness, loader: Any) -> None:
    """Put the streams back to `state`."""
    torch.set_rng_state(state.torch_stream)
    np.random.set_state(state.numpy_stream)  # noqa: NPY002
    random.setstate(state.python_stream)
    generator = getattr(loader, "generator", None)
    if state.loader_stream is not None and isinstance(generator, torch.Generator):
        generator.set_state(state.loader_stream)


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8).clone()
