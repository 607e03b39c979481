"""What a mergekit recipe's parameters come to in one tensor: options of our fold, and the weight of each model.

Where mergekit divides plain sums by the sum of the weights, here `scale` is divided instead: the same number, and
models that are dropped altogether still count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dimat.errors import ConfigError
from dimat.merge import Fold, make_fold
from dimat.modelfile import StoredTensor
from dimat.recipes.depth import Place
from dimat.recipes.mergekit import MergekitModel, MergekitRecipe
from dimat.recipes.settings import Read, Settings, flag, number, resolve
from dimat.recipes.specs import SPECS, Spec

_NO_DIVISOR = 1e-8
"""Weights whose sum is smaller divide nothing."""


@dataclass(frozen=True, slots=True)
class Values:
    """Of one tensor.

    Attributes:
        fold: reads the merged tensor out.
        folds: take in each model.
        weights: of each model.
    """

    fold: Fold
    folds: tuple[Fold, ...]
    weights: tuple[float, ...]


def values_of(
    recipe: MergekitRecipe, paths: Sequence[str], stored: StoredTensor, place: Place, *, seed: int = 0
) -> Values:
    """What the recipe says of one tensor.

    Args:
        recipe: the recipe.
        paths: of the models that are absorbed.
        stored: the tensor.
        place: where it stands.
        seed: of random masks.

    Raises:
        ConfigError: a parameter is missing, or a value is none that the method takes.
    """
    spec = SPECS[recipe.merge_method]
    part, sources = recipe.parts[place.part]
    ask = _Asked(stored.name, place.depth, sources, (None if part is None else part.parameters, recipe.parameters))
    try:
        if spec.ours == "slerp":
            return _same(spec, {"t": ask.shared("t", number), "zeros": "orthogonal"}, (1.0,) * len(paths))
        if spec.ours == "model_stock":
            by_row = ask.shared("filter_wise", flag, False)
            if by_row and len(stored.shape) > 2:
                raise ValueError(f"filter_wise takes rows of matrices, the tensor has shape {list(stored.shape)}")
            return _same(spec, {"filter_wise": by_row}, (1.0,) * len(paths))
        weights = tuple(ask.of(path, "weight", number) for path in paths)
        normalize = ask.shared("normalize", flag, spec.normalize)
        if spec.ours == "mean":
            return _same(spec, {"normalize": normalize}, weights)
        return _task_vectors(spec, ask, paths, stored, weights, normalize, seed)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{recipe.merge_method} in tensor {stored.name!r}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Asked:
    """Parameters of one tensor, by name."""

    name: str
    depth: float
    sources: Sequence[MergekitModel]
    common: tuple[Settings | None, ...]

    def shared(self, key: str, read: Read, default: Any = None) -> Any:
        value = resolve(key, self.common, self.name, self.depth, read, default)
        if value is None:
            raise ValueError(f"parameter {key!r} is missing: give it under `parameters`")
        return value

    def of(self, path: str, key: str, read: Read, default: Any = None) -> Any:
        own = next((source.parameters for source in self.sources if source.model == path), None)
        value = resolve(key, (own, *self.common), self.name, self.depth, read, default)
        if value is None:
            raise ValueError(f"parameter {key!r} is missing for model {path}: give it there, or under `parameters`")
        return value


def _same(spec: Spec, options: Mapping[str, Any], weights: tuple[float, ...]) -> Values:
    fold = _fold(spec.ours, **options)
    return Values(fold, (fold,) * len(weights), weights)


def _task_vectors(
    spec: Spec,
    ask: _Asked,
    paths: Sequence[str],
    stored: StoredTensor,
    weights: tuple[float, ...],
    normalize: bool,
    seed: int,
) -> Values:
    scale = ask.shared("lambda", number, 1.0)
    if normalize and not spec.elect:
        total = sum(weights)
        scale /= total if abs(total) >= _NO_DIVISOR else 1.0
    options: dict[str, Any] = {"scale": scale}
    if spec.ours == "task_arithmetic":
        return _same(spec, options, weights)
    densities = [ask.of(path, "density", number, 1.0) for path in paths]
    rescale = ask.shared("rescale", flag, spec.rescale)
    if spec.ours == "ties":
        options |= {"trim": "tensor", "combine": "mean" if normalize else "sum"}
    else:
        options |= {"signs": "ties", "normalize": normalize} if spec.elect else {"signs": "none"}
        options |= {"trim": "tensor"} if spec.ours == "breadcrumbs" else {"seed": seed}
    options["rescale"] = "l1" if rescale else "none"
    folds, kept = [], []
    num_entries = _num_entries(stored)
    for path, weight, density in zip(paths, weights, densities, strict=True):
        own = dict(options)
        if density < 0:
            raise ValueError(f"density of model {path} is {density}, expected at least 0")
        # Nothing of the model is left: our methods always keep something, so it is weighed with nothing.
        nothing = density == 0 or (spec.ours == "breadcrumbs" and int(density * num_entries) == 0)
        own["density"] = 1.0 if nothing else min(density, 1.0)
        if spec.ours == "breadcrumbs" and own["density"] < 1:
            own["gamma"] = ask.of(path, "gamma", number, 0.01)
        folds.append(_fold(spec.ours, **own))
        kept.append(0.0 if nothing else weight)
    return Values(_fold(spec.ours, **options), tuple(folds), tuple(kept))


def _num_entries(stored: StoredTensor) -> int:
    return stored.num_bytes // stored.dtype.itemsize


@lru_cache(maxsize=4096)
def _fold(method: str, **options: Any) -> Fold:
    """One fold for all tensors of the same options."""
    return make_fold(method, options)
