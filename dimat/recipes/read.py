"""Read a recipe file: dimat's own, mergekit's, or the card of a merge, which holds the recipe that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dimat.errors import ConfigError
from dimat.files import check_name
from dimat.plugins import closest
from dimat.recipes.mergekit import MergekitRecipe, parse_mergekit
from dimat.recipes.problems import explain
from dimat.recipes.recipe import Recipe
from dimat.yamltext import load_yaml

_MAX_BYTES = 10_000_000


def read_recipe(path: Path) -> Recipe | MergekitRecipe:
    r"""The recipe in `path`; paths in it become whole ones.

    Raises:
        ConfigError: it cannot be read, or says what a recipe cannot; every problem is named with its place.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "recipe.yaml"
    ...     written = path.write_text("method: mean\nmodels: [a.safetensors, {model: b.safetensors, weight: 2}]")
    ...     [(Path(entry.model).name, entry.weight) for entry in read_recipe(path).models]
    [('a.safetensors', 1.0), ('b.safetensors', 2.0)]
    """
    check_name(path, "recipe")
    values = _yaml(path)
    if isinstance(values.get("recipe"), dict) and "dimat" in values:  # a card
        values = values["recipe"]
    folder = path.resolve().parent
    if "merge_method" in values:
        return parse_mergekit(values, source=str(path), folder=folder)
    return parse_recipe(values, source=str(path)).found_from(folder)


def parse_recipe(values: dict[str, Any], *, source: str) -> Recipe:
    """The recipe of dimat's own form that `values` spell out.

    Raises:
        ConfigError: see `read_recipe`.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in explain(error, Recipe))
        raise ConfigError(f"recipe {source} cannot be merged by:\n{lines}", hint=_HINT) from None


_HINT = "dimat's recipes have `method`, mergekit's have `merge_method`; docs/merging.md shows both"


def _yaml(path: Path) -> dict[str, Any]:
    if path.is_dir() or not path.exists():
        there = [one.name for one in path.parent.glob("*") if one.suffix in (".yaml", ".yml", ".json")]
        near = closest(path.name, there)
        what = "is a folder" if path.is_dir() else "does not exist"
        did_you_mean = f" Did you mean {str(path.with_name(near))!r}?" if near else ""
        raise ConfigError(f"recipe {path} {what}; expected a YAML file.{did_you_mean}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"recipe {path} has {path.stat().st_size:,} bytes: it is no recipe")
        values = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        given = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ConfigError(f"recipe {path} {given}, expected keys and values", hint=_HINT)
    return values
