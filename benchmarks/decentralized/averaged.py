"""How good the mean of all agents' models is: what one would take home if the run ended there.

Weights and running statistics are averaged over the agents, and the statistics of batch norms are then taken anew on at
most 512 samples of the union of all shards. The measurement sees everybody's data; the agents do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROUNDS = (1, 3, 5, 10, 20)
"""Where it is measured, besides the last round."""


class Averaged:
    """Measures the averaged model of a run that is going on, from its checkpoints."""

    def __init__(self, task: Any, folder: Path, num_agents: int, rounds: int) -> None:
        self._task = task
        self._folder = folder
        self._num_agents = num_agents
        self._left = sorted({number for number in (*ROUNDS, rounds) if number <= rounds})
        self._model: torch.nn.Module | None = None
        self.accuracy: dict[int, float] = {}
        """By round."""

    def up_to(self, newest: int) -> None:
        """Measure the rounds up to `newest`, the last that every agent has done; older checkpoints go soon after."""
        while self._left and self._left[0] <= newest:
            number = self._left.pop(0)
            self.accuracy[number] = self._measure(number)

    def _measure(self, number: int) -> float:
        from dimat.calibrate import recalibrate
        from dimat.statedict import load_into
        from dimat.tasks import probe_batches

        if self._model is None:
            self._task.data(0, self._num_agents, 0)  # before a probe can be drawn; it is that of the union
            self._model = self._task.model()
        load_into(self._model, mean([self._model_of(agent, number) for agent in range(self._num_agents)]))
        recalibrate(self._model, probe_batches(self._task, "shared"))
        return float(self._task.evaluate(self._model)["accuracy"])

    def _model_of(self, agent: int, number: int) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        tensors = load_file(self._folder / "checkpoints" / str(agent) / f"{number}.safetensors")
        return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}


def mean(models: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The entrywise mean in float64, back in each tensor's own dtype; of counters, the first model's."""
    import torch

    return {
        name: torch.stack([model[name].double() for model in models]).mean(0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in models[0].items()
    }
