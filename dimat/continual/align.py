"""Bring every arrival into the base's order of units first: `init --align weights`.

The groups are traced and proven once, with the model's own code, and kept as JSON; what comes later needs no code of
the user's, only the weights. Matching holds the base and the arrival in memory, as alignment does everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dimat.align import PermutationSpec, match_weights, permutation_spec
from dimat.align.checkpoints import apply_tied
from dimat.align.units import Permutations
from dimat.align.verify import verify
from dimat.errors import AlignmentError, DimatError, UsageError
from dimat.merge.source import InMemory, Source, check_finite
from dimat.modelfile import ModelFile, build_model, fit
from dimat.modelfile.fit import tied_names
from dimat.plugins import unknown

WAYS = ("weights",)
TOLERANCE = 1e-4
"""Largest relative change of the outputs that float32 rounding explains."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """What may move in the models of a ledger.

    Attributes:
        spec: the groups, by names of the module's state dict.
        stored: name in the state dict -> name in the files.
        ties: name in the state dict -> all names of the same tensor.
    """

    spec: PermutationSpec
    stored: Mapping[str, str]
    ties: Mapping[str, tuple[str, ...]]

    def to_json(self) -> str:
        """The text that `read` reads."""
        spec = json.loads(self.spec.to_json())
        return json.dumps({"spec": spec, "stored": dict(self.stored), "ties": dict(self.ties)}, indent=1) + "\n"

    @staticmethod
    def read(path: Path) -> Alignment:
        """What the file `path` says.

        Raises:
            DimatError: it is damaged.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            ties = {name: tuple(names) for name, names in told["ties"].items()}
            return Alignment(PermutationSpec.from_json(json.dumps(told["spec"])), told["stored"], ties)
        except (OSError, ValueError, LookupError, AlignmentError) as error:
            raise DimatError(f"alignment {path} is damaged: {error}") from error

    def match(self, base: Source, model: Source) -> Permutations:
        """The permutations that bring `model` into the order of `base`.

        Raises:
            UsageError: a weight is NaN or Inf.
        """
        return match_weights(self.spec, self._state(base), self._state(model)).perms

    def apply(self, model: Source, perms: Permutations) -> InMemory:
        """`model`, or statistics of its shape, with its units in another order."""
        state = self._state(model)
        moved = apply_tied(self.spec, state, perms, self.ties)
        by_file = {self.stored[name]: tensor for name, tensor in moved.items()}
        names = (name for name in model.tensors if name in by_file or name not in state)
        return InMemory(model.label, {name: by_file.get(name, model.read(name)) for name in names})

    def _state(self, model: Source) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(self.stored.values())):
            tensors[name] = model.read(name)
            if tensors[name].is_floating_point():
                check_finite(tensors[name], name, model.label)
        return {name: tensors[stored] for name, stored in self.stored.items()}


def find_alignment(way: str, base: ModelFile, reference: str, example: Any) -> Alignment:
    """Trace and prove the groups of the model that `reference` makes.

    Args:
        way: `weights`.
        base: whose tensors the model must have.
        reference: `package.module:function` or `path/to/file.py:function`.
        example: what the model is called with: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    Raises:
        UsageError: another way, a factory that fails, a model that is not the base's, or one that cannot be traced.
        AlignmentError: groups that do not verify.
    """
    if way not in WAYS:
        raise UsageError(f"align: {unknown('way to match', way, WAYS)}")
    model = build_model(reference)
    found = fit(model, base, reference)
    args, kwargs = _arguments(example)
    spec = _traced(model, args, kwargs, reference)
    verify(spec, model, args, kwargs, tolerance=TOLERANCE)
    return Alignment(spec, found.stored, tied_names(model))


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], reference: str) -> PermutationSpec:
    try:
        with torch.no_grad():
            return permutation_spec(model, *args, **kwargs)
    except AlignmentError as error:
        raise UsageError(f"the units of {reference} cannot be found: {error}", hint=error.hint) from error


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return ((example,) if isinstance(example, Tensor) else tuple(example)), {}
