"""A merge that has been checked: models are open, they fit together, and there is a place for the answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dimat.cli.merge_words import Alignment, Request, Words
from dimat.errors import PluginError, UsageError
from dimat.merge import Fold, find_method, make_fold, options_of
from dimat.merge.engine import check_models
from dimat.merge.memory import Given, plan_within, state_bytes
from dimat.merge.source import OnDisk
from dimat.merge.spill import check_room
from dimat.modelfile import Layout, ModelFile, check_out, lay_out, open_model

CARD_IN_FOLDER = "dimat_merge.json"
CARD_ENDING = ".merge.json"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a merge takes.

    Attributes:
        method: its name; mergekit's where the recipe is mergekit's.
        options: all of them, defaults too; None where a recipe of mergekit's says them tensor by tensor.
        fold: the method.
        models: what is absorbed, in order.
        base: the base, where the method reads it.
        reference: whose basis the others are brought into, when `align` is set.
        like: whose config and tokenizer the merged model gets.
        weights: one for each model.
        stats: of each model, by kind; None for methods without.
        folds: one for each model, where they differ.
        weight_of: (tensor name, number of the model) -> weight, where tensors differ.
        dtype: of what is written; None for that of the first model.
        align: how models are brought into one basis first.
        memory_bytes: what the process may hold resident; None for no limit.
        layout: of what is written.
        recipe: what gives the same merge again.
        remarks: what the user should know.
    """

    method: str
    options: Mapping[str, Any] | None
    fold: Fold
    models: tuple[ModelFile, ...]
    base: ModelFile | None
    reference: ModelFile
    like: ModelFile
    weights: tuple[float, ...] | None
    stats: tuple[Mapping[str, ModelFile], ...] | None
    folds: tuple[Fold, ...] | None
    weight_of: Callable[[str, int], float] | None
    dtype: torch.dtype | None
    align: Alignment | None
    memory_bytes: int | None
    layout: Layout
    recipe: Mapping[str, Any]
    remarks: tuple[str, ...]

    @property
    def inputs(self) -> tuple[ModelFile, ...]:
        """Every file that is read."""
        stats = [file for kinds in self.stats or () for file in kinds.values()]
        return (*self.models, *([self.base] if self.base else []), self.reference, self.like, *stats)


def card_of(out: Path, *, is_folder: bool) -> Path:
    """Where the card of a merge goes."""
    return out / CARD_IN_FOLDER if is_folder else out.with_name(out.name + CARD_ENDING)


def prepare(words: Words, request: Request) -> Job:
    """Check everything that can be checked before a weight is read.

    Raises:
        UsageError: anything that keeps the merge from being done; nothing was written.
    """
    job = _of_mergekit(words) if words.mergekit is not None else _of_words(words)
    sources = [OnDisk(model) for model in job.models]
    evidence = [{kind: OnDisk(file) for kind, file in kinds.items()} for kinds in job.stats or ()]
    check_models(job.fold, sources, job.weights, OnDisk(job.base) if job.base else None, evidence or None)
    is_folder = job.models[0].is_folder
    if is_folder != job.like.is_folder:
        raise UsageError(f"{job.models[0].path} and {job.like.path}: one is a file, the other a folder; expected alike")
    check_out(
        request.out,
        is_folder=is_folder,
        num_bytes=job.layout.num_bytes,
        inputs=job.inputs,
        overwrite=request.force,
    )
    card = card_of(request.out, is_folder=is_folder)
    if not is_folder and card.exists() and not request.force:
        raise UsageError(f"the card {card} exists already", hint="name another out, or say --force to replace it")
    return job


def check_memory(job: Job, out: Path) -> None:
    """Raise UsageError when the merge does not fit into its limit of memory, or its states on the disk.

    The same checks come again when the merge begins.
    """
    given = Given(
        method=job.fold,
        folds=job.folds or (job.fold,) * len(job.models),
        models=[OnDisk(model) for model in job.models],
        base=OnDisk(job.base) if job.base else None,
        stats=[{kind: OnDisk(file) for kind, file in kinds.items()} for kinds in job.stats or ()],
        dtypes={name: dtype for name, (dtype, _) in job.layout.shapes.items()},
    )
    if job.memory_bytes is not None:
        plan_within(given, job.memory_bytes)
    if job.fold.needs_scalars:
        check_room(out.resolve().parent, state_bytes(given) + job.layout.num_bytes)


def _of_words(words: Words) -> Job:
    try:
        fold = make_fold(words.method, words.options)
    except PluginError as error:
        if os.path.exists(words.method):  # noqa: PTH110 - false for what can be no name
            hint = f"{words.method} is a model, and METHOD comes first: dimat merge METHOD MODEL... --out OUT"
            raise PluginError(str(error), hint=hint) from None
        raise
    if fold.memory == "linear":
        raise UsageError(f"merge method {words.method!r} holds all models in memory: it merges no files")
    models = tuple(open_model(path) for path in words.models)
    base = None if words.base is None else open_model(words.base)
    if fold.needs_base and base is None:
        raise UsageError(
            f"merge method {words.method!r} needs the models' common ancestor, and no base was given",
            hint="--base BASE, a .safetensors file or a Hugging Face folder like the models",
        )
    remarks = []
    if base is not None and not fold.needs_base:
        what = "only the basis that models are aligned to" if words.align else "not read"
        remarks.append(f"the method {words.method!r} needs no base: {base.path} is {what}")
    dtype = words.dtype
    return Job(
        method=words.method,
        options=_resolved(words.method, words.options or {}),
        fold=fold,
        models=models,
        base=base if fold.needs_base else None,
        reference=base or models[0],
        like=models[0],
        weights=words.weights or (1.0,) * len(models),
        stats=_stats(words, fold),
        folds=None,
        weight_of=None,
        dtype=getattr(torch, dtype) if dtype else None,
        align=words.align,
        memory_bytes=words.memory_bytes,
        layout=_layout(models[0], getattr(torch, dtype) if dtype else None),
        recipe=_recipe(words),
        remarks=tuple(remarks),
    )


def _of_mergekit(words: Words) -> Job:
    from dimat.recipes.mapped import plan_mergekit

    assert words.mergekit is not None
    mapped = plan_mergekit(words.mergekit)
    dtype = getattr(torch, words.dtype) if words.dtype else mapped.dtype
    recipe = words.mergekit.model_dump(mode="json", exclude_none=True)
    if words.dtype:
        recipe["out_dtype"] = words.dtype
    return Job(
        method=words.method,
        options=None,
        fold=mapped.fold,
        models=mapped.models,
        base=mapped.base,
        reference=mapped.base or mapped.models[0],
        like=mapped.like,
        weights=None,
        stats=None,
        folds=mapped.folds,
        weight_of=mapped.weight_of,
        dtype=dtype,
        align=words.align,
        memory_bytes=words.memory_bytes,
        layout=_layout(mapped.models[0], dtype),
        recipe=recipe,
        remarks=mapped.remarks,
    )


def _layout(first: ModelFile, dtype: torch.dtype | None) -> Layout:
    shapes = {
        name: (dtype if dtype is not None and one.dtype.is_floating_point else one.dtype, one.shape)
        for name, one in first.tensors.items()
    }
    return lay_out(shapes, is_folder=first.is_folder)


def _resolved(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method, defaults too, as JSON writes them."""
    found = {key: p.default for key, p in options_of(find_method(method)).items()} | dict(options)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _stats(words: Words, fold: Fold) -> tuple[Mapping[str, ModelFile], ...] | None:
    if not fold.stats:
        if words.stats:
            raise UsageError(
                f"merge method {words.method!r} takes no statistics, and --stats {words.stats[0]} was given"
            )
        return None
    if len(fold.stats) > 1:
        raise UsageError(f"merge method {words.method!r} needs {' and '.join(fold.stats)}: files give one kind alone")
    (kind,) = fold.stats
    if len(words.stats) != len(words.models):
        raise UsageError(
            f"merge method {words.method!r} needs {kind} statistics of each of the {len(words.models)} models, "
            f"{len(words.stats)} were given",
            hint="--stats FILE for each model, in their order: a .safetensors file with the model's names and shapes",
        )
    return tuple({kind: open_model(path)} for path in words.stats)


def _recipe(words: Words) -> dict[str, Any]:
    """The merge as a recipe of dimat's, with whole paths."""
    from dimat.recipes.recipe import beside

    here = Path.cwd()
    weights: Sequence[float] = words.weights or [1.0] * len(words.models)
    models = [
        {"model": str(path.resolve()), "weight": weight} for path, weight in zip(words.models, weights, strict=True)
    ]
    for entry, path in zip(models, words.stats, strict=False):
        entry["stats"] = str(path.resolve())
    recipe: dict[str, Any] = {
        "method": beside(words.method, here),
        "models": models,
        "base": str(words.base.resolve()) if words.base else None,
        "options": _resolved(words.method, words.options or {}),
        "dtype": words.dtype,
    }
    if words.align is not None:
        align = words.align
        recipe["align"] = {"by": align.by, "model": beside(align.model, here), "input": list(align.inputs)}
    return {key: value for key, value in recipe.items() if value is not None}
