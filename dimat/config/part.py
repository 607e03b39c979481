"""What all parts of a config are: closed and frozen; and plug-ins that are written as a name with options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

MISSPELT = 0.7
"""Likeness (difflib's ratio) from which a key under `merge:` is taken for a misspelt one, not for a method's option."""


class Part(BaseModel):
    """A closed, frozen part of the config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def name_with_options(part: type[Part], values: Any) -> Any:
    """What a plug-in with options is written as, in full: a name alone is a mapping of one, and keys that are none of
    the part's own are the plug-in's options, which it checks itself.
    """
    if isinstance(values, str):
        return {"name": values}
    if not isinstance(values, dict) or not isinstance(values.get("options", {}), dict):
        return values
    own = [str(key) for key in values if key not in part.model_fields]
    for key in own:
        if key in values.get("options", {}):
            raise ValueError(f"the option {key!r} stands twice: beside name, and under options")
    kept = {key: value for key, value in values.items() if key not in own}
    return {**kept, "options": {**values.get("options", {}), **{key: values[key] for key in own}}} if own else kept


def misspelt(key: str, known: Iterable[str]) -> bool:
    """Whether a key looks like one of those that are known."""
    return bool(difflib.get_close_matches(key, list(known), n=1, cutoff=MISSPELT))
