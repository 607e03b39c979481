"""An agent's own checkpoint: everything that the next round depends on, and nothing else.

    checkpoints/<agent>/<round>.safetensors    weights as `model.<name>`; optimiser tensors as `optimizer.<i>.<key>`;
                                               the base of the next merge as `base.<name>` where it is another model,
                                               what the run's algorithm remembers as `algorithm.<name>`
    checkpoints/<agent>/<round>.json           counters, the optimiser's numbers, random streams

The JSON is written last and names the round complete; both are written beside, fsynced and renamed. No pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dimat.agent.randomness import Randomness
from dimat.errors import DimatError
from dimat.files import write_atomically

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of an agent after a round."""

    round: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    """As `Optimizer.state_dict()`."""
    randomness: Randomness
    basis_settled: bool
    base: dict[str, torch.Tensor] | None = None
    """What the next merge takes for the models' ancestor; None where that is `model`, or the method has none."""
    usual: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What `merge.checks` compare the next merge with."""
    algorithm: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the run's `algorithm` remembers from one exchange to the next."""


def pack(checkpoint: Checkpoint) -> tuple[bytes, bytes]:
    """The two files of a checkpoint as bytes: tensors as safetensors, the rest as JSON."""
    # Clones: tied parameters share memory, which the format refuses.
    tensors = {f"model.{name}": tensor.clone().contiguous() for name, tensor in checkpoint.model.items()}
    tensors |= {f"base.{name}": tensor.clone().contiguous() for name, tensor in (checkpoint.base or {}).items()}
    tensors |= {f"algorithm.{name}": tensor.clone().contiguous() for name, tensor in checkpoint.algorithm.items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in checkpoint.optimizer["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.clone().contiguous()
            else:
                numbers.setdefault(str(index), {})[key] = value
    record = {
        "format": FORMAT,
        "round": checkpoint.round,
        "basis_settled": checkpoint.basis_settled,
        "optimizer": {"numbers": numbers, "param_groups": checkpoint.optimizer["param_groups"]},
        "randomness": checkpoint.randomness.to_json(),
        "usual": {what: list(distances) for what, distances in checkpoint.usual.items()},
    }
    return save(tensors), json.dumps(record).encode()


def unpack(tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> Checkpoint:
    """The checkpoint whose files hold `tensors` and `record`."""
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in record["optimizer"]["numbers"].items()}
    model: dict[str, torch.Tensor] = {}
    base: dict[str, torch.Tensor] = {}
    algorithm: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        owner, _, rest = name.partition(".")
        if owner == "model":
            model[rest] = tensor
        elif owner == "base":
            base[rest] = tensor
        elif owner == "algorithm":
            algorithm[rest] = tensor
        else:
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor
    return Checkpoint(
        round=record["round"],
        model=model,
        optimizer={"state": state, "param_groups": record["optimizer"]["param_groups"]},
        randomness=Randomness.from_json(record["randomness"]),
        basis_settled=record["basis_settled"],
        base=base or None,
        usual={what: tuple(distances) for what, distances in record.get("usual", {}).items()},
        algorithm=algorithm,
    )


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write `checkpoint` into `folder` and delete all but the newest `keep`.

    Raises:
        OSError: the disk refused. Nothing of this checkpoint is left, and those before it are all there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, record = pack(checkpoint)
    try:
        write_atomically(folder / f"{checkpoint.round}.safetensors", tensors)
        write_atomically(folder / f"{checkpoint.round}.json", record)
    except OSError:
        # Half a checkpoint is no use to anybody, and takes the room that the next one needs.
        if not (folder / f"{checkpoint.round}.json").is_file():
            (folder / f"{checkpoint.round}.safetensors").unlink(missing_ok=True)
        raise
    _delete(folder, rounds_held(folder)[:-keep])


def drop_checkpoints_after(folder: Path, round: int) -> None:
    """Delete the checkpoints of all rounds after `round`."""
    _delete(folder, [held for held in rounds_held(folder) if held > round])


def _delete(folder: Path, rounds: list[int]) -> None:
    for old in rounds:
        # The JSON goes first: half a checkpoint must never look whole.
        (folder / f"{old}.json").unlink(missing_ok=True)
        (folder / f"{old}.safetensors").unlink(missing_ok=True)


def load_checkpoint(folder: Path, round: int) -> Checkpoint:
    """The checkpoint of `round`.

    Raises:
        DimatError: it is missing or damaged; the file is named.
    """
    path = folder / f"{round}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / f"{round}.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        hint = "start over with --fresh, or delete this round's two files to continue from an older one"
        raise DimatError(f"checkpoint {path} cannot be read: {error}", hint=hint) from error
    return unpack(tensors, record)


def rounds_held(folder: Path) -> list[int]:
    """Rounds with a whole checkpoint in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.stem)
        for path in folder.glob("*.json")
        if path.stem.isdigit() and path.with_suffix(".safetensors").is_file()
    )
