"""mergekit's recipes, as its version 0.1.5 reads them: which keys there are, and what dimat does not do.

A recipe is read in full before anything is merged. What would change the answer and cannot be done here is refused by
name: other methods, stacked layers, modules, adapters, other vocabularies, models that would have to be downloaded.
Keys that mergekit does not know are left out with a warning, as it leaves them out without.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from dimat.errors import ConfigError, UsageError
from dimat.files import check_name
from dimat.plugins import closest, unknown
from dimat.recipes.problems import explain
from dimat.recipes.recipe import Dtype, Part
from dimat.recipes.settings import check_setting

logger = logging.getLogger(__name__)

METHODS = (
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_ties",
    "dare_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "model_stock",
)
"""The values of `merge_method` that dimat has."""


def _reference(value: Any) -> Any:
    """A model as mergekit writes it: a path, or a mapping with a path and what dimat cannot do."""
    if not isinstance(value, dict):
        return value
    for key in ("lora", "override_architecture"):
        if value.get(key):
            raise ValueError(f"{key} {value[key]!r} is not supported: name a folder that holds the whole model")
    path = value.get("model", value.get("path"))
    if isinstance(path, dict):
        return _reference(path)
    return f"{path}@{value['revision']}" if value.get("revision") else path


Reference = Annotated[str, BeforeValidator(_reference)]


class MergekitPart(Part):
    """A part with parameters."""

    parameters: dict[str, Any] | None = None

    @field_validator("parameters")
    @classmethod
    def _are_settings(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        for key, value in (parameters or {}).items():
            try:
                check_setting(value)
            except ValueError as error:
                raise ValueError(f"parameter {key!r}: {error}") from None
        return parameters


class MergekitModel(MergekitPart):
    """One of `models`."""

    model: Reference


class MergekitSource(MergekitModel):
    """One of the `sources` of a slice."""

    layer_range: tuple[int, int]


class MergekitSlice(MergekitPart):
    """One of `slices`."""

    sources: Annotated[list[MergekitSource], Field(min_length=1)]
    base_model: Reference | None = None
    residual_weight: float | None = None
    """Known to mergekit, which does nothing with it."""


class MergekitTokenizer(Part):
    """The long form of `tokenizer_source`."""

    source: Reference = "union"
    tokens: dict[str, Any] | None = None
    pad_to_multiple_of: int | None = None


class MergekitRecipe(MergekitPart):
    """A recipe; paths in it are whole ones."""

    merge_method: str
    models: list[MergekitModel] | None = None
    slices: list[MergekitSlice] | None = None
    modules: dict[str, Any] | None = None
    base_model: Reference | None = None
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: Reference | None = None
    tokenizer: MergekitTokenizer | None = None
    chat_template: str | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    """Of the masks of dare_linear and dare_ties; a key of dimat's, for which mergekit has --random-seed."""

    @field_validator("dtype", "out_dtype", mode="before")
    @classmethod
    def _torch_is_left_out(cls, dtype: Any) -> Any:
        return dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype

    @field_validator("merge_method")
    @classmethod
    def _is_one_of_ours(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(unknown("mergekit method", name, METHODS))
        return name

    @model_validator(mode="after")
    def _has_one_list_of_models(self) -> Self:
        if self.modules:
            raise ValueError("modules are not supported: name the models under `models`, whole")
        if bool(self.models) == bool(self.slices):
            raise ValueError("exactly one of `models` and `slices` says what is merged")
        if self.tokenizer_source and self.tokenizer:
            raise ValueError("tokenizer_source and tokenizer say the same: leave one out")
        return self

    @property
    def parts(self) -> list[tuple[MergekitSlice | None, list[MergekitModel]]]:
        """The slices with their sources; `models` are one part without a slice."""
        if self.slices:
            return [(one, list(one.sources)) for one in self.slices]
        return [(None, list(self.models or []))]

    @property
    def vocabulary(self) -> str | None:
        """Whose vocabulary the merged model is to have: None, `base`, `union` or a model."""
        return self.tokenizer.source if self.tokenizer else self.tokenizer_source


def parse_mergekit(values: dict[str, Any], *, source: str, folder: Path) -> MergekitRecipe:
    """The recipe that `values` spell out.

    Args:
        values: the file's content.
        source: its path, for messages.
        folder: models are looked for in the current folder, as mergekit does, and in this one.

    Raises:
        ConfigError: a key that mergekit knows has a value that it, or dimat, does not take.
        UsageError: a model is not on this disk.
    """
    values = copy.deepcopy(values)
    while True:
        try:
            return _found(MergekitRecipe.model_validate(values), folder)
        except ValidationError as error:
            problems = error.errors()
            unread = [one["loc"] for one in problems if one["type"] == "extra_forbidden"]
            if len(unread) < len(problems):
                lines = explain(error, MergekitRecipe)
                told = "\n".join(
                    f"  {line}" for line, one in zip(lines, problems, strict=True) if one["loc"] not in unread
                )
                raise ConfigError(f"mergekit recipe {source} cannot be merged by:\n{told}") from None
            for line, place in zip(explain(error, MergekitRecipe), unread, strict=True):
                logger.warning("recipe %s: %s; it is left out, as mergekit does", source, line)
                _leave_out(values, place)


def _leave_out(values: Any, place: tuple[str | int, ...]) -> None:
    for part in place[:-1]:
        values = values[part]
    del values[place[-1]]


def _found(recipe: MergekitRecipe, folder: Path) -> MergekitRecipe:
    """With whole paths."""

    def entries(models: list[Any] | None) -> list[Any] | None:
        return models and [one.model_copy(update={"model": find_model(one.model, folder)}) for one in models]

    def base(name: str | None) -> str | None:
        return None if name is None else find_model(name, folder)

    def vocabulary(name: str | None) -> str | None:
        return name if name in (None, "base", "union") else find_model(name, folder)

    slices = recipe.slices and [
        one.model_copy(update={"sources": entries(list(one.sources)), "base_model": base(one.base_model)})
        for one in recipe.slices
    ]
    tokenizer = recipe.tokenizer and recipe.tokenizer.model_copy(update={"source": vocabulary(recipe.tokenizer.source)})
    changes = {
        "models": entries(recipe.models),
        "slices": slices,
        "base_model": base(recipe.base_model),
        "tokenizer": tokenizer,
        "tokenizer_source": vocabulary(recipe.tokenizer_source),
    }
    return recipe.model_copy(update=changes)


def find_model(name: str, folder: Path) -> str:
    """The whole path of a model that a recipe names: from the current folder, else from the recipe's.

    Raises:
        UsageError: it is in neither.
    """
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - as it is where there is no such user
    check_name(folder / path, "model")
    for place in (Path.cwd(), folder):
        if (place / path).exists():
            return str((place / path).resolve())
    if "+" in name:
        raise UsageError(
            f"model {name!r} is a model and a LoRA adapter, which mergekit joins with +; adapters are not supported",
            hint="merge the adapter into its model first: PeftModel.from_pretrained(...).merge_and_unload()",
        )
    there = [one.name for one in (folder / path).parent.glob("*") if one.is_dir() or one.suffix == ".safetensors"]
    near = closest(path.name, there)
    if near is None and not path.is_absolute() and name.count("/") == 1 and "." not in name[:1]:
        local, at, revision = name.partition("@")
        which = f" --revision {revision}" if at else ""
        raise UsageError(
            f"model {name!r} is no folder, neither in {Path.cwd()} nor in {folder}; nothing is ever downloaded",
            hint=f"where it is a name on the Hugging Face hub: hf download {local}{which} --local-dir {local}",
        )
    beside = f" Did you mean {str(path.with_name(near))!r}?" if near else ""
    raise UsageError(f"model {name!r} does not exist, neither in {Path.cwd()} nor in {folder}.{beside}")
