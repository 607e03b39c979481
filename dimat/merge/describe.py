"""What a merge method says of itself: its signature, its fold's declarations, and its docstring cut into parts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dimat.errors import ConfigError
from dimat.merge.api import Fold
from dimat.merge.registry import find_method, make_fold, options_of

TYPES = {
    "float": "number",
    "int": "whole number",
    "bool": "true or false",
    "str": "text",
    "None": "null",
    "tuple[str, ...]": "list of text",
    "list[str]": "list of text",
}
"""What annotations are called where options are written, on a command line or in YAML."""


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword-only argument of a method.

    Attributes:
        name: as users type it.
        type: see `TYPES`; empty where nothing is annotated.
        default: None also where it is required.
        required: whether there is no default.
        explanation: from the section `Args:` of the docstring; empty where that does not name the option.
    """

    name: str
    type: str
    default: Any
    required: bool
    explanation: str


@dataclass(frozen=True, slots=True)
class Description:
    """A method, described.

    Attributes:
        name: as users type it.
        summary: the first paragraph of its docstring.
        body: the paragraphs that follow.
        options: in the order of the signature.
        source: what it is taken from.
        example: a session of the Python prompt.
        fold: the fold with default options; None where an option is required.
    """

    name: str
    summary: str
    body: str
    options: tuple[Option, ...]
    source: str
    example: str
    fold: Fold | None

    @property
    def needs(self) -> tuple[str, ...]:
        """What it asks for beside the models."""
        if self.fold is None:
            return ()
        return (*(("a base",) if self.fold.needs_base else ()), *self.fold.stats)


def describe(name: str) -> Description:
    """The method `name`, as `find_method` finds it.

    Raises:
        PluginError: nothing answers to the name; the closest one is told.

    >>> [(option.name, option.type, option.default) for option in describe("mean").options]
    [('normalize', 'true or false', True)]
    """
    method = find_method(name)
    parameters = options_of(method)
    required = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    try:
        fold = make_fold(name)
    except ConfigError:
        if not required:
            raise
        fold = None
    summary, body, _, source, example = parts_of(inspect.getdoc(method) or "")
    return Description(name, summary, body, options_in_words(method), source, example, fold)


def options_in_words(method: Callable[..., Any]) -> tuple[Option, ...]:
    """The keyword-only arguments of a function, explained by its docstring.

    >>> def half(x, *, of: float = 0.5): "Half. Whatever of."
    >>> [(option.name, option.type, option.default) for option in options_in_words(half)]
    [('of', 'number', 0.5)]
    """
    parameters = options_of(method)
    required = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    arguments = parts_of(inspect.getdoc(method) or "")[2]
    return tuple(
        Option(
            name=key,
            type=_type_name(parameter.annotation),
            default=None if key in required else parameter.default,
            required=key in required,
            explanation=arguments.get(key, ""),
        )
        for key, parameter in parameters.items()
    )


def parts_of(docstring: str) -> tuple[str, str, dict[str, str], str, str]:
    r"""Summary, body, arguments by name, source and example of a docstring.

    >>> parts_of('''Half of it.
    ...
    ... Or less.
    ...
    ... Args:
    ...     share: how much
    ...         is left.
    ...
    ... Source: nobody.
    ...
    ... >>> 1 + 1
    ... 2''')
    ('Half of it.', 'Or less.', {'share': 'how much is left.'}, 'nobody.', '>>> 1 + 1\n2')
    """
    text, mark, example = docstring.partition("\n>>> ")
    example = f">>> {example}" if mark else ""
    summary, *paragraphs = re.split(r"\n\s*\n", text)
    body, arguments, source = [], {}, ""
    for paragraph in paragraphs:
        heading, _, rest = paragraph.partition("\n")
        if heading == "Args:":
            arguments.update(_arguments(rest))
        elif heading.startswith("Source:"):
            source = " ".join(paragraph.removeprefix("Source:").split())
        elif not re.fullmatch(r"(Returns|Raises):", heading):
            body.append(paragraph)
    return " ".join(summary.split()), "\n\n".join(body), arguments, source, example.strip()


def _arguments(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(text).splitlines():
        starts = re.match(r"(\w+): ?(.*)", line)
        name, words = starts.groups() if starts else (name, line)
        found[name] = f"{found.get(name, '')} {words.strip()}".strip()
    return found


def _type_name(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return " or ".join(dict.fromkeys(TYPES.get(part.strip(), part.strip()) for part in text.split("|")))
