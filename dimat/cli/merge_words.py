"""What was typed after `dimat merge`, with the recipe that it names: read and checked before torch is loaded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dimat.errors import ConfigError, UsageError
from dimat.plugins import closest, unknown
from dimat.yamltext import load_yaml, shortened

if TYPE_CHECKING:
    from dimat.recipes import Recipe
    from dimat.recipes.mergekit import MergekitRecipe

DTYPES = ("float32", "bfloat16", "float16", "float64")
WAYS_TO_ALIGN = ("weights",)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_USAGE = "dimat merge METHOD MODEL... --out OUT, or dimat merge --recipe FILE --out OUT"


@dataclass(frozen=True, slots=True)
class Request:
    """What was typed; the fields are the command's options."""

    method: str | None
    models: tuple[Path, ...]
    out: Path
    base: Path | None = None
    weights: str | None = None
    settings: tuple[str, ...] = ()
    recipe: Path | None = None
    dtype: str | None = None
    memory: str | None = None
    align: str | None = None
    model: str | None = None
    inputs: tuple[str, ...] = ()
    stats: tuple[Path, ...] = ()
    dry_run: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Alignment:
    """How models are brought into one basis: `by` weights, for the module that `model` makes, called with `inputs`."""

    by: str
    model: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Words:
    """What is asked for, by command line and recipe together.

    Attributes:
        method: its name; mergekit's where the recipe is mergekit's.
        models: as they were given.
        options: of the method.
        weights: one for each model; None when none were given.
        base, stats, dtype, align, memory_bytes: see the command's help.
        mergekit: the recipe, when it is mergekit's; method, models, options, weights and base are in there.
    """

    method: str
    models: tuple[Path, ...] = ()
    options: Mapping[str, Any] | None = None
    weights: tuple[float, ...] | None = None
    base: Path | None = None
    stats: tuple[Path, ...] = ()
    dtype: str | None = None
    align: Alignment | None = None
    memory_bytes: int | None = None
    mergekit: MergekitRecipe | None = None


def read_words(request: Request) -> Words:
    """Check what can be checked without torch and without opening a model.

    Raises:
        UsageError: something is missing, contradicts another thing, or cannot be read.
    """
    if request.recipe is not None and request.method is not None:
        raise UsageError(
            f"--recipe {request.recipe} says what is merged and how, and METHOD {request.method!r} was given too",
            hint=f"leave METHOD and MODEL out: {_USAGE.partition(', or ')[2]}",
        )
    if request.recipe is None and (request.method is None or not request.models):
        what = "METHOD" if request.method is None else "MODEL"
        hint = _USAGE
        if request.method is not None and os.path.exists(request.method):  # noqa: PTH110 - false for no name
            what, hint = (
                "METHOD",
                f"{request.method} is a model, and METHOD comes first: {_USAGE.partition(', or ')[0]}",
            )
        raise UsageError(f"nothing to merge: {what} is missing", hint=hint)
    options = dict(_setting(text) for text in request.settings)
    weights = None if request.weights is None else parse_weights(request.weights)
    if request.dtype is not None and request.dtype not in DTYPES:
        raise UsageError(f"--dtype: {unknown('dtype', request.dtype, DTYPES)}")
    memory_bytes = None if request.memory is None else parse_bytes(request.memory)
    align = _alignment(request)
    if request.recipe is None:
        assert request.method is not None
        words = Words(request.method, request.models, options, weights, request.base, request.stats)
    else:
        from dimat.recipes import Recipe, read_recipe

        recipe = read_recipe(request.recipe)
        if isinstance(recipe, Recipe):
            words = _of_recipe(recipe, request, options, weights)
        else:
            words = _of_mergekit(recipe, request, options)
        align = align or words.align
    if words.weights is not None and len(words.weights) != len(words.models):
        models = f"{len(words.models)} model{'s' if len(words.models) > 1 else ''}"
        each = ",".join("1" for _ in words.models)
        raise UsageError(f"{len(words.weights)} weights for {models}, expected one for each: --weights {each}")
    return replace(words, dtype=request.dtype or words.dtype, align=align, memory_bytes=memory_bytes)


def parse_weights(text: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        UsageError: one of them is no finite number.

    >>> parse_weights("1, 0.5,-2")
    (1.0, 0.5, -2.0)
    """
    try:
        weights = tuple(float(word) for word in text.split(","))
    except ValueError:
        weights = (math.nan,)
    if not all(math.isfinite(weight) for weight in weights):
        raise UsageError(f"--weights {text!r}: expected finite numbers with commas between them, such as 1,1,0.5")
    return weights


def parse_bytes(text: str) -> int:
    """A size with its unit.

    Raises:
        UsageError: it is none.

    >>> parse_bytes("1GiB"), parse_bytes("1.5 GB"), parse_bytes("700M")
    (1073741824, 1500000000, 700000000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--memory {text!r}: expected a size such as 700MB, 1GiB or 1.5GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"-s {text!r} is not of the form key=value", hint="for example: -s density=0.3")
    try:
        return key.strip(), _number(load_yaml(value))
    except yaml.YAMLError:
        raise ConfigError(f"-s {shortened(text)}: {shortened(value)} is not a YAML value") from None


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-3 for text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)e[+-]?\d+", value, re.IGNORECASE):
        return float(value)
    return value


def _alignment(request: Request) -> Alignment | None:
    if request.align is None:
        for option, given in (("--model", request.model), ("--input", request.inputs)):
            if given and request.recipe is None:
                raise UsageError(f"{option} is for aligning, which was not asked for", hint="add --align weights")
        return None
    if request.align not in WAYS_TO_ALIGN:
        hint = (
            "dimat align --by activations writes aligned copies first"
            if closest(request.align, ["activations"])
            else None
        )
        raise UsageError(f"--align: {unknown('way to align', request.align, WAYS_TO_ALIGN)}", hint=hint)
    if request.model is None:
        raise UsageError(
            f"--align {request.align} needs the torch module whose units are to be permuted, and no --model was given",
            hint="--model package.module:function or file.py:function; it is called without arguments",
        )
    return Alignment(request.align, request.model, request.inputs)


def _of_recipe(recipe: Recipe, request: Request, options: dict[str, Any], weights: tuple[float, ...] | None) -> Words:
    stats = [entry.stats for entry in recipe.models]
    if any(stats) and not all(stats):
        silent = next(entry.model for entry in recipe.models if not entry.stats)
        raise UsageError(f"recipe {request.recipe}: model {silent} comes without stats, others have them")
    align = None
    if recipe.align is not None:  # the command line wins in parts, too
        model, inputs = request.model or recipe.align.model, request.inputs or tuple(recipe.align.input)
        align = Alignment(recipe.align.by, model, inputs)
    return Words(
        method=recipe.method,
        models=tuple(Path(entry.model) for entry in recipe.models),
        options={key: _number(value) for key, value in recipe.options.items()} | options,
        weights=weights or tuple(entry.weight for entry in recipe.models),
        base=request.base or (Path(recipe.base) if recipe.base else None),
        stats=request.stats or tuple(Path(path) for path in stats if path),
        dtype=recipe.dtype,
        align=align,
    )


def _of_mergekit(recipe: MergekitRecipe, request: Request, options: dict[str, Any]) -> Words:
    seed = options.pop("seed", recipe.seed)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        raise ConfigError(f"-s seed={seed!r}: expected a whole number of at least 0")
    given = [
        ("-s", options),
        ("--base", request.base),
        ("--weights", request.weights),
        ("--stats", request.stats),
        ("--align", request.align),
        ("--model", request.model),
        ("--input", request.inputs),
    ]
    for option, value in given:
        if value:
            raise UsageError(
                f"{option} was given beside {request.recipe}, a mergekit recipe, which is merged as it stands",
                hint="change the recipe; --out, --dtype, --memory, --force and -s seed=N go with it",
            )
    return Words(recipe.merge_method, mergekit=recipe.model_copy(update={"seed": seed}))
