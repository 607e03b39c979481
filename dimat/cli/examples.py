"""Where a command gets inputs for a model that it knows nothing of: a file, shapes, or what the model itself offers.

--data FILE.npz            x_train of the arrays that the task `arrays` reads, scaled as it does
--data FILE.safetensors    one tensor is the positional argument, several are keyword arguments; samples come first
--input 1x3x32x32          random values of that shape; --input 2x16:int64 for tokens; one for each argument
model.example_inputs       a tensor, a tuple of arguments, a mapping of keyword arguments, or a function of nothing
example_inputs             the same, beside the factory in its module
model.dummy_inputs         what Hugging Face models have
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dimat.errors import PluginError, TaskError, UsageError
from dimat.plugins import closest, load_object, unknown

WAYS = (
    "give --input SHAPE[:dtype] (such as --input 1x3x32x32, or --input 2x16:int64 for tokens), or --data FILE (.npz or "
    ".safetensors), or write a function example_inputs() beside the factory that returns what the model is called with"
)
_EXAMPLE_SAMPLES = 4  # enough to tell samples from units, few enough to trace quickly
_MAX_BYTES = 2**31
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8,
                  torch.bool)
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs of a model; a batch is a tensor, a tuple of arguments, or a mapping of keyword arguments.

    Attributes:
        example: a small batch to trace and to check with.
        source: where it comes from, for messages.
        probe: batches to match by; empty unless they come from a data file.
    """

    example: Any
    source: str
    probe: tuple[Any, ...] = ()

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments of the example."""
        if isinstance(self.example, Mapping):
            return ()
        return (self.example,) if isinstance(self.example, Tensor) else tuple(self.example)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the example."""
        return dict(self.example) if isinstance(self.example, Mapping) else {}


def find_examples(
    model: nn.Module,
    reference: str,
    data: Path | None,
    inputs: list[str],
    *,
    batch_size: int,
    max_samples: int,
    seed: int,
) -> Examples:
    """The first source that there is, in the order of the module's docstring; floats in the model's own dtype.

    Args:
        model: the module that will be called.
        reference: the factory it came from, `package.module:object` or `path/to/file.py:object`.
        data: the file of `--data`.
        inputs: every `--input`.
        batch_size: samples in a batch of the probe.
        max_samples: samples in the probe; a random choice when the file has more.
        seed: of that choice, and of random inputs.

    Raises:
        UsageError: the source is not what it should be, or there is none; the message tells all ways.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
    if data is not None:
        samples = _from_file(data, max_samples, generator)
        count = len(next(iter(samples.values())) if isinstance(samples, dict) else samples)
        batches = [_cast(_rows(samples, start, batch_size), dtype) for start in range(0, count, batch_size)]
        return Examples(_cast(_rows(samples, 0, _EXAMPLE_SAMPLES), dtype), str(data), tuple(batches))
    if inputs:
        values = tuple(_random_input(text, model, generator) for text in inputs)
        return Examples(_cast(values, dtype), " ".join(f"--input {text}" for text in inputs))
    offered = _offered(model, reference)
    if offered is None:
        raise UsageError(
            f"an example input is needed to find and prove which units may move, and {reference} offers none", hint=WAYS
        )
    return Examples(_cast(offered[0], dtype), offered[1])


def _from_file(path: Path, max_samples: int, generator: torch.Generator) -> Tensor | dict[str, Tensor]:
    if not path.is_file():
        kinds = (".npz", ".safetensors")
        there = sorted(one.name for one in path.parent.iterdir() if one.suffix in kinds) if path.parent.is_dir() else []
        near = closest(path.name, there)
        beside = f" Did you mean {near!r}?" if near else f" Beside it: {', '.join(there) or 'no data file'}."
        raise UsageError(f"data file {path} {'is a folder' if path.is_dir() else 'does not exist'}.{beside}")
    if path.suffix == ".npz":
        return _from_arrays(path, max_samples, generator)
    if path.suffix != ".safetensors":
        raise UsageError(
            f"data file {path} is neither an .npz nor a .safetensors file",
            hint="safetensors.torch.save_file({'x': inputs}, 'data.safetensors') writes what the model is called with",
        )
    from dimat.modelfile import open_model

    tensors = dict(sorted(open_model(path).read_all().items()))
    sizes = {name: tensor.shape[0] if tensor.ndim else 0 for name, tensor in tensors.items()}
    if len(set(sizes.values())) > 1 or not all(sizes.values()):
        told = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise UsageError(f"data file {path}: expected samples along the first dimension, equally many; it has {told}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise UsageError(f"data file {path}: tensor {name!r} holds NaN or Inf")
    rows = _chosen(next(iter(sizes.values())), max_samples, generator)
    picked = {name: tensor[rows] for name, tensor in tensors.items()}
    return picked if len(picked) > 1 else next(iter(picked.values()))


def _from_arrays(path: Path, max_samples: int, generator: torch.Generator) -> Tensor:
    from dimat.tasks.arrays import ArraysTask

    try:
        dataset = ArraysTask(data=str(path), model="mlp").dataset()
    except TaskError as error:
        hint = "or write the model's inputs as a .safetensors file: they are passed on as they are"
        meant_for_runs = error.hint is None or "task.options" in error.hint
        raise TaskError(str(error), hint=hint if meant_for_runs else f"{error.hint}; {hint}") from error
    return dataset.scaling.apply(dataset.x_train[_chosen(len(dataset.x_train), max_samples, generator)])


def _chosen(count: int, limit: int, generator: torch.Generator) -> Tensor:
    """At random, since files are often sorted by class."""
    return torch.randperm(count, generator=generator)[:limit]


def _rows(samples: Tensor | dict[str, Tensor], start: int, count: int) -> Any:
    if isinstance(samples, dict):
        return {name: tensor[start : start + count] for name, tensor in samples.items()}
    return samples[start : start + count]


def _random_input(text: str, model: nn.Module, generator: torch.Generator) -> Tensor:
    size, colon, kind = text.partition(":")
    if not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)*", size) or (colon and not kind):
        raise UsageError(
            f"--input {text!r} is not of the form SHAPE[:dtype], such as 1x3x32x32, or 2x16:int64 for tokens"
        )
    if kind and kind not in _DTYPES:
        raise UsageError(f"--input {text!r}: {unknown('dtype', kind, _DTYPES)}")
    dtype, shape = _DTYPES[kind or "float32"], torch.Size(int(length) for length in re.split("[x,]", size))
    if shape.numel() * dtype.itemsize > _MAX_BYTES:
        raise UsageError(f"--input {text!r} takes {shape.numel() * dtype.itemsize:,} bytes, at most {_MAX_BYTES:,}")
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    # Tokens: whatever every table of the model has a row for.
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    top = 2 if dtype == torch.bool else min(tables, default=2)
    return torch.randint(min(top, torch.iinfo(torch.uint8).max), shape, generator=generator).to(dtype)


def _offered(model: nn.Module, reference: str) -> tuple[Any, str] | None:
    """What the model or the factory's module offers, and who offered it."""
    where = reference.rpartition(":")[0]
    offers = [(getattr(model, "example_inputs", None), "model.example_inputs")]
    with suppress(PluginError):  # the module has been imported before, so there is only one thing that can fail
        offers.append((load_object("function", f"{where}:example_inputs"), f"{where}:example_inputs"))
    offers.append((getattr(model, "dummy_inputs", None), "model.dummy_inputs"))
    for value, source in offers:
        if value is None:
            continue
        try:
            answer = value() if callable(value) else value
        except Exception as error:  # somebody's code runs here, and may raise anything
            raise UsageError(f"{source} fails: {type(error).__name__}: {error}", hint=WAYS) from error
        if not isinstance(answer, Tensor | tuple | list | Mapping):
            raise UsageError(
                f"{source} gives {type(answer).__name__}, expected a tensor, a tuple of arguments or a mapping of "
                "keyword arguments"
            )
        return answer, source
    return None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in `dtype`, at every depth of tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return tuple(_cast(item, dtype) for item in value) if isinstance(value, tuple | list) else value
