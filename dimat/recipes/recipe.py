"""dimat's own recipe: what the command line of `dimat merge` says, as YAML.

    method: ties
    models:
      - fine_tuned_a                            # or with a weight of its own:
      - {model: fine_tuned_b, weight: 0.5}
    base: ancestor
    options: {density: 0.3}
    dtype: bfloat16

Paths are relative to the recipe's folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dimat.files import check_name

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


class Part(BaseModel):
    """A closed, frozen part of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Entry(Part):
    """One of the models."""

    model: str
    """A .safetensors file or a Hugging Face folder."""
    weight: float = 1.0
    stats: str | None = None
    """A .safetensors file of statistics, for methods that need them."""


class Alignment(Part):
    """Every model is permuted into the basis of the base (of the first model without a base) before it is merged."""

    by: Literal["weights"] = "weights"
    model: str
    """Makes the torch module: package.module:function or file.py:function."""
    input: list[str] = []
    """Shapes of random example inputs, as 1x3x32x32 or 2x16:int64."""


class Recipe(Part):
    """A merge.

    >>> Recipe.model_validate({"method": "mean", "models": ["a", "b"]}).models[1].weight
    1.0
    """

    method: str
    """A registered fold (`dimat methods` lists them), package.module:function or file.py:function."""
    models: Annotated[list[Entry], Field(min_length=1)]
    """Paths, or {model: path, weight: 1.0, stats: path}, in the order of absorption."""
    base: str | None = None
    """The models' common ancestor."""
    options: dict[str, Any] = {}
    """Of the method."""
    dtype: Dtype | None = None
    """Of the floating-point tensors written; by default those of the first model."""
    align: Alignment | None = None

    @field_validator("models", mode="before")
    @classmethod
    def _paths_are_entries(cls, models: Any) -> Any:
        return (
            [{"model": one} if isinstance(one, str) else one for one in models] if isinstance(models, list) else models
        )

    def found_from(self, folder: Path) -> Recipe:
        """The same recipe with whole paths; what it names is looked for in `folder`."""

        def whole(path: str) -> str:
            check_name(folder / path, "path")
            known = os.path.expanduser(path)  # noqa: PTH111 - as it is where there is no such user
            return str((folder / known).resolve())

        entries = [
            entry.model_copy(update={"model": whole(entry.model), "stats": entry.stats and whole(entry.stats)})
            for entry in self.models
        ]
        align = self.align and self.align.model_copy(update={"model": beside(self.align.model, folder)})
        changes = {"models": entries, "base": self.base and whole(self.base), "align": align}
        return self.model_copy(update={**changes, "method": beside(self.method, folder)})


def beside(reference: str, folder: Path) -> str:
    """`file.py:function` with the whole path of the file when it lies in `folder`; other references as they are."""
    file, colon, name = reference.rpartition(":")
    if file.endswith(".py") and (folder / file).is_file():
        return f"{(folder / file).resolve()}{colon}{name}"
    return reference
