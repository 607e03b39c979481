"""A model on disk against the module whose tensors it holds: every difference is found before anything is computed.

Files store what modules share (tied weights) once, or under each name; old files may hold buffers that the module no
longer saves. Everything else must agree, name by name and shape by shape.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dimat.errors import PluginError, SchemaError, UsageError
from dimat.modelfile.model import ModelFile
from dimat.plugins import closest, load_object


def build_model(reference: str) -> nn.Module:
    """A fresh module from the factory that `package.module:object` or `path/to/file.py:object` names, in eval mode.

    It is on the CPU, and parameters of 16 bits and fewer are float32: rounding can then be told from mistakes.

    Raises:
        PluginError: nothing answers to the name, the factory fails, or makes something else.

    >>> build_model("torch.nn:Identity")
    Identity()
    """
    if ":" not in reference:
        raise PluginError(
            f"model factory {reference!r} is not of the form package.module:object or path/to/file.py:object",
            hint="write a function without arguments that returns the torch module, and name it: my_model.py:build",
        )
    factory = load_object("model factory", reference)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise PluginError(f"model factory {reference!r} is a {type(factory).__name__}, expected a function or class")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise PluginError(
            f"model factory {reference!r} is called without arguments, and cannot be: {error}",
            hint="write a function without arguments that calls it, and name that, as in my_model.py:build",
        ) from error
    except ValueError:  # a callable that tells nothing of its arguments
        pass
    try:
        model = factory()
        if isinstance(model, nn.Module):
            model.to("cpu")
    except Exception as error:  # somebody's code runs here, and may raise anything
        raise PluginError(f"model factory {reference!r} fails: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise PluginError(f"model factory {reference!r} returned a {type(model).__name__}, expected a torch.nn.Module")
    if any(one.is_floating_point() and one.itemsize < 4 for one in model.parameters()):
        model.float()
    return model.eval()


@dataclass(frozen=True, slots=True)
class Fit:
    """How the entries of a module's state dict are found among the tensors of a file.

    Attributes:
        stored: name in the state dict -> name in the file; several names share one where the module ties them.
        extra: names in the file that the module has as buffers it does not save; kept as they are.
    """

    stored: Mapping[str, str]
    extra: tuple[str, ...]

    def state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict, from the file's tensors; tied names give the same object."""
        return {name: tensors[stored] for name, stored in self.stored.items()}


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name in the state dict -> all names of the same tensor, itself included, in the order of the state dict.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    >>> model[1].weight = model[0].weight
    >>> tied_names(model)
    {'0.weight': ('0.weight', '1.weight'), '0.bias': ('0.bias',), '1.weight': ('0.weight', '1.weight')}
    """
    entries = {name: one for name, one in model.state_dict(keep_vars=True).items() if isinstance(one, Tensor)}
    names: dict[int, list[str]] = {}
    for name, tensor in entries.items():
        names.setdefault(id(tensor), []).append(name)
    return {name: tuple(names[id(tensor)]) for name, tensor in entries.items()}


def fit(model: nn.Module, file: ModelFile, reference: str) -> Fit:
    """Find the module's state dict in a file.

    Args:
        model: the module.
        file: the model on disk.
        reference: what the module came from, for messages.

    Raises:
        SchemaError: the first tensor in which they differ, and both shapes.
    """
    ties, shapes = tied_names(model), {name: tuple(one.shape) for name, one in _tensors(model).items()}
    stored: dict[str, str] = {}
    for name, names in ties.items():
        present = [one for one in (name, *names) if one in file.tensors]
        if not present:
            near = closest(name, [one for one in file.tensors if one not in ties])
            hint = f"the file has {near!r} instead" if near else None
            raise SchemaError(
                f"model {file.path} has no tensor {name!r} of shape {shapes[name]}, which the model of {reference} has",
                hint=hint,
            )
        stored[name] = present[0]
        found = file.tensors[present[0]].shape
        if found != shapes[name]:
            raise SchemaError(
                f"tensor {name!r} has shape {found} in {file.path}, and {shapes[name]} in the model of {reference}"
            )
    unsaved = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    extra = tuple(name for name in file.tensors if name not in ties)
    for name in extra:
        if name not in unsaved:
            near = closest(name, [one for one in ties if one not in file.tensors])
            hint = f"the model has {near!r} instead" if near else None
            shape = file.tensors[name].shape
            raise SchemaError(
                f"model {file.path} has a tensor {name!r} of shape {shape}, which the model of {reference} lacks",
                hint=hint,
            )
    return Fit(stored, extra)


def read_tensors(file: ModelFile, model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a file that fits, in the file's dtypes.

    Raises:
        UsageError: a parameter holds NaN or Inf, or names that the module ties hold different values.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ties, tensors = tied_names(model), file.read_all()
    for name, tensor in tensors.items():
        wide = tensor.float() if tensor.itemsize == 1 else tensor  # few operators know the floats of 8 bits
        if name in parameters and tensor.is_floating_point() and not torch.isfinite(wide).all():
            raise UsageError(f"model {file.path}: tensor {name!r} holds NaN or Inf, so it cannot be compared")
        first = next((one for one in ties.get(name, ()) if one in tensors), name)
        if first != name and not torch.equal(*(one.reshape(-1).view(torch.uint8) for one in (tensors[first], tensor))):
            raise SchemaError(f"model {file.path}: {first!r} and {name!r} differ, the model ties them")
    return tensors


def same_architecture(a: ModelFile, b: ModelFile, ties: Mapping[str, tuple[str, ...]]) -> None:
    """Raise SchemaError at the first tensor in which two models differ, with both shapes.

    A name that one file lacks is no difference when the file has the same tensor under another of its `ties`.
    """
    for one, other in ((a, b), (b, a)):
        for name, tensor in one.tensors.items():
            if name in other.tensors:
                found = other.tensors[name].shape
                if found != tensor.shape:
                    raise SchemaError(
                        f"the models are not of one architecture: tensor {name!r} has shape {tensor.shape} in "
                        f"{one.path}, and {found} in {other.path}"
                    )
            elif not any(alias in other.tensors for alias in ties.get(name, ())):
                near = closest(name, [one_of for one_of in other.tensors if one_of not in one.tensors])
                raise SchemaError(
                    f"the models are not of one architecture: tensor {name!r} of shape {tensor.shape} is in "
                    f"{one.path}, not in {other.path}",
                    hint=f"{other.path} has {near!r} instead" if near else None,
                )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: one for name, one in model.state_dict().items() if isinstance(one, Tensor)}
