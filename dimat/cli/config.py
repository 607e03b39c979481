"""`dimat config`: the default config with every key explained, to change and to run."""

from __future__ import annotations

import textwrap
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from dimat.config import RunConfig


def commented_config() -> str:
    """The default config as YAML, each key below a comment that says what it is and what it may be.

    >>> import yaml
    >>> RunConfig.model_validate(yaml.safe_load(commented_config())) == RunConfig()
    True
    """
    head = "# Run it with `dimat run FILE` or `dimat simulate FILE`; `-s key=value` changes a key for one run.\n"
    return head + "\n".join(_lines(RunConfig(), indent=0)) + "\n"


def _lines(part: BaseModel, indent: int) -> list[str]:
    lines = []
    pad = " " * indent
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        words = [field.description] if field.description else []
        choices = _choices(field.annotation)
        if choices:
            words.append(f"One of: {', '.join(choices)}.")
        for line in textwrap.wrap(" ".join(words), 116 - indent):
            lines.append(f"{pad}# {line}")
        if isinstance(value, BaseModel):
            lines += [f"{pad}{name}:", *_lines(value, indent + 2)]
        else:
            lines.append(f"{pad}{name}: {_yaml(value)}")
    return lines


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("\n...\n").strip()


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal, wherever it stands in the annotation."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]
