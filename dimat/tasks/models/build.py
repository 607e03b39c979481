"""From what a config says under `model:` to a module: `cnn`, `{name: resnet20, width: 2}` or `module:factory`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dimat import plugins
from dimat.errors import DimatError, TaskError
from dimat.tasks.models.cnn import cnn
from dimat.tasks.models.mlp import mlp
from dimat.tasks.models.resnet20 import resnet20
from dimat.tasks.models.vgg16_bn import vgg16_bn

BUILTIN: Mapping[str, Callable[..., nn.Module]] = {"cnn": cnn, "mlp": mlp, "resnet20": resnet20, "vgg16_bn": vgg16_bn}

_SHAPES = ("input_shape", "num_classes")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's name, its factory and its options, checked against each other.

    >>> ModelSpec.parse({"name": "mlp", "hidden": [16]}).build((1, 8, 8), 10).head
    Linear(in_features=16, out_features=10, bias=True)
    """

    name: str
    factory: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: str | Mapping[str, Any]) -> ModelSpec:
        """Read a name or a mapping with `name` and the factory's options.

        Raises:
            PluginError: no model has that name.
            TaskError: the mapping has no name, or an option that the factory does not have.
        """
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            raise TaskError(
                f"model is a name or a mapping such as {{name: resnet20, width: 2}}, {given!r} was given; "
                f"available: {', '.join(sorted(BUILTIN))}"
            )
        name = given["name"]
        options = {key: value for key, value in given.items() if key != "name"}
        factory = plugins.resolve("model", name, BUILTIN)
        if not callable(factory):
            raise TaskError(f"model {name!r} is a {type(factory).__name__}, expected a function that makes a module")
        parameters = inspect.signature(factory).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            known = [parameter.name for parameter in parameters if parameter.name not in _SHAPES]
            for key in options:
                if key not in known:
                    raise TaskError(f"model {name}: {plugins.unknown('option', str(key), known)}")
        return cls(name, factory, options)

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """A fresh module; its random initialisation comes from torch's global generator.

        A factory of the user's own is handed `input_shape` and `num_classes` where it has parameters of these names.

        Raises:
            TaskError: the options do not fit the input, or the factory failed or made no module.
        """
        parameters = inspect.signature(self.factory).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        shapes = {"input_shape": input_shape, "num_classes": num_classes}
        wanted = {key: value for key, value in shapes.items() if takes_all or key in parameters}
        try:
            model = self.factory(**{**wanted, **self.options})
        except DimatError:
            raise
        except Exception as error:
            made = ", ".join(f"{key}={value!r}" for key, value in {**wanted, **self.options}.items())
            raise TaskError(f"model {self.name}({made}) could not be made: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise TaskError(f"model {self.name} made a {type(model).__name__}, expected a torch.nn.Module")
        return model
