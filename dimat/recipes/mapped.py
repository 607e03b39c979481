"""mergekit's recipes on dimat's folds: the same values, tensor by tensor.

    linear              mean                    weights by tensor; normalize
    slerp               slerp                   from the base (t = 0) to the other model
    task_arithmetic     task_arithmetic         lambda is scale
    ties                ties                    trim=tensor; mean or sum by normalize
    dare_linear, _ties  dare                    rescale=l1
    breadcrumbs, _ties  breadcrumbs             trim=tensor
    model_stock         model_stock             models without weights

Parameters are resolved for every tensor before a weight is read, so that a wrong one is named at once. Numbers are
computed in float32 at least and rounded when they are written; mergekit computes in the models' dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch

from dimat.errors import ConfigError, UsageError
from dimat.merge import Fold
from dimat.modelfile import ModelFile, open_model
from dimat.recipes.depth import places_of
from dimat.recipes.mergekit import MergekitRecipe
from dimat.recipes.specs import SPECS, Spec
from dimat.recipes.tables import Values, values_of
from dimat.recipes.vocabulary import check_vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mergekit recipe as a merge of dimat's.

    Attributes:
        method: the name of ours.
        fold: the method; each tensor with its own options.
        models: what is absorbed, in order; the base is not among them.
        base: the base, where the method takes one.
        like: whose config and tokenizer the merged model gets.
        folds: one for each model.
        weights: tensor -> weight of each model.
        dtype: of the floating-point tensors written; None for those of the first model.
        remarks: what the user should know.
    """

    method: str
    fold: Fold
    models: tuple[ModelFile, ...]
    base: ModelFile | None
    like: ModelFile
    folds: tuple[Fold, ...]
    weights: Mapping[str, tuple[float, ...]]
    dtype: torch.dtype | None
    remarks: tuple[str, ...]

    def weight_of(self, name: str, model: int) -> float:
        """The weight of a model in the tensor `name`."""
        return self.weights[name][model] if name in self.weights else 1.0


def plan_mergekit(recipe: MergekitRecipe) -> Mapped:
    """The merge that a recipe asks for.

    Args:
        recipe: what `read_recipe` gave.

    Raises:
        ConfigError: a parameter is missing or cannot be used, or the recipe asks for what dimat does not do.
        UsageError: a model cannot be opened.
    """
    spec = SPECS[recipe.merge_method]
    base = _base(recipe)
    paths = _listed(recipe)
    if recipe.merge_method == "linear":
        # mergekit counts a base as one more model, where it lists whole models.
        paths += [base] if base and base not in paths and recipe.models else []
        base_path = None
    else:
        paths = [path for path in paths if path != base]
        _check_count(recipe.merge_method, base, paths)
        base_path = base
    if spec.ours == "slerp" and base_path is not None:
        paths, base_path = [base_path, *paths], None
    remark = check_vocabulary(recipe, [Path(path) for path in dict.fromkeys([*paths, *([base] if base else [])])])
    models = [open_model(Path(path)) for path in paths]
    anchor = open_model(Path(base_path)) if base_path else None
    floating = {name: one for name, one in models[0].tensors.items() if one.dtype.is_floating_point}
    if not floating:
        raise UsageError(f"model {models[0].path} holds no floating-point tensor: there is nothing to merge")
    ranges = [part.sources[0].layer_range for part, _ in recipe.parts if part is not None]
    places = places_of(models[0].tensors, ranges)
    values = {
        name: values_of(recipe, paths, one, places[name], seed=recipe.seed or 0) for name, one in floating.items()
    }
    dtype = recipe.out_dtype or recipe.dtype
    return Mapped(
        method=spec.ours,
        fold=_by_tensor(values, lambda one: one.fold),
        models=tuple(models),
        base=anchor,
        like=open_model(Path(base)) if base else models[0],
        folds=tuple(_by_tensor(values, lambda one, i=i: one.folds[i]) for i in range(len(paths))),  # type: ignore[misc]
        weights={name: one.weights for name, one in values.items()},
        dtype=getattr(torch, dtype) if dtype else _dtype([*models, *([anchor] if anchor else [])]),
        remarks=(*_unheard(recipe, spec), *([remark] if remark else [])),
    )


def _base(recipe: MergekitRecipe) -> str | None:
    """The base of all slices."""
    bases = [(part.base_model if part is not None else None) or recipe.base_model for part, _ in recipe.parts]
    if len(set(bases)) > 1:
        raise ConfigError(f"slices of different base models are not supported: {', '.join(map(str, bases))}")
    return bases[0]


def _listed(recipe: MergekitRecipe) -> list[str]:
    """The models of all slices, each once."""
    (_, first), *others = recipe.parts
    paths = [one.model for one in first]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"model {path} is listed twice", hint="give it the sum of the weights")
    for number, (_, sources) in enumerate(others, 1):
        if sorted(one.model for one in sources) != sorted(paths):
            raise ConfigError(
                f"slices[{number}] merges other models than slices[0]: only whole models are merged, each of them",
            )
    for number, (part, _) in enumerate(recipe.parts):
        ranges = {one.layer_range for one in part.sources} if part is not None else set()
        if len(ranges) > 1:
            told = " and ".join(f"{start} to {stop}" for start, stop in sorted(ranges))
            raise ConfigError(f"slices[{number}] merges the layers {told} with each other: not supported")
    return paths


def _check_count(method: str, base: str | None, paths: Sequence[str]) -> None:
    """As many models as mergekit takes."""
    if base is None:
        raise ConfigError(f"mergekit's {method} needs base_model")
    if method == "slerp" and len(paths) != 1:
        raise ConfigError(f"mergekit's slerp merges one model with base_model, here are {len(paths)} beside it")
    least = 2 if method == "model_stock" else 1
    if len(paths) < least:
        raise ConfigError(f"mergekit's {method} needs {least} or more models beside base_model, here are {len(paths)}")


def _unheard(recipe: MergekitRecipe, spec: Spec) -> list[str]:
    """A remark for every parameter that has no effect where it stands."""
    told = []
    if recipe.chat_template is not None:
        told.append("'chat_template' has no effect: the one of the model whose tokenizer is taken is kept")
    for part, sources in recipe.parts:
        for where, settings, known in [
            ("parameters", recipe.parameters, (*spec.shared, *spec.each)),
            ("a slice", part and part.parameters, (*spec.shared, *spec.each)),
            *((f"model {one.model}", one.parameters, spec.each) for one in sources),
        ]:
            for key in settings or {}:
                if key == "int8_mask":
                    logger.info("int8_mask is left out: it saves memory in mergekit, and no mask is kept here")
                elif key not in known:
                    told.append(f"{key!r} of {where} has no effect on {recipe.merge_method}, as in mergekit")
    return list(dict.fromkeys(told))


def _by_tensor(values: Mapping[str, Values], pick: Callable[[Values], Fold]) -> Fold:
    """One fold that is another for each tensor."""
    folds = {name: pick(one) for name, one in values.items()}
    first = next(iter(folds.values()))
    return replace(
        first,
        digests=any(one.digests for one in folds.values()),
        tailor=lambda name, shape: folds.get(name, first).of(name, shape),
    )


def _dtype(models: Sequence[ModelFile]) -> torch.dtype | None:
    """What holds all models, where they differ in the dtype of a tensor; else each tensor keeps its own."""
    first, *others = models
    floating = [name for name, one in first.tensors.items() if one.dtype.is_floating_point]
    alike = all(
        name in other.tensors and other.tensors[name].dtype == first.tensors[name].dtype
        for other in others
        for name in floating
    )
    if alike:
        return None
    found = [one.dtype for model in models for one in model.tensors.values() if one.dtype.is_floating_point]
    return reduce(torch.promote_types, dict.fromkeys(found))
