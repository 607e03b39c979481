"""`dimat methods [NAME]`: which merges there are, what they need, and their options; then algorithms and schedules."""

from __future__ import annotations

import json
import textwrap
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from dimat.errors import DimatError

if TYPE_CHECKING:
    from rich.console import Console

    from dimat.merge.describe import Description, Option

OWN = "Your own: a function that returns a dimat.merge.Fold, named as module:function or path/to/file.py:function."


def methods_command(name: str | None, format: str) -> None:
    """Print every method as a table, or one with its options."""
    from dimat.cli import training
    from dimat.merge.describe import describe

    others = training.find(name)
    described = [] if name in others else [describe(name)] if name is not None else _all()
    if format == "json":
        told = {"methods": [_as_json(one) for one in described], **training.as_json(others)}
        print(json.dumps(told, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if name is None:
        _print_table(console, described)
        training.print_table(console, others, _shown)
    elif described:
        _print_one(console, described[0])
    else:
        training.print_one(console, others[name], _shown, _wrapped)


def _all() -> list[Description]:
    """Built-in methods and those of entry points; one that does not load says so in its place."""
    from dimat.merge.describe import Description, describe
    from dimat.merge.registry import builtin_methods

    names = {*builtin_methods(), *(entry.name for entry in entry_points(group="dimat.merges"))}
    found = []
    for name in sorted(names):
        try:
            found.append(describe(name))
        except DimatError as error:
            found.append(Description(name, f"cannot be used: {error}", "", (), "", "", None))
    return found


def _as_json(method: Description) -> dict[str, Any]:
    fold = method.fold
    options = [
        {"name": one.name, "type": one.type, "required": one.required, "default": one.default, "what": one.explanation}
        for one in method.options
    ]
    return {
        "name": method.name,
        "summary": method.summary,
        "needs": list(method.needs),
        "order_matters": None if fold is None else not fold.commutative,
        "memory": None if fold is None else fold.memory,
        "removable": None if fold is None else fold.remove is not None,
        "options": options,
        "source": method.source,
        "documentation": method.body,
    }


def _print_table(console: Console, described: list[Description]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Merge methods", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 2, 1, 0), pad_edge=False
    )
    table.add_column("method", min_width=24)
    for heading in ("needs", "order\nmatters", "memory", "options"):
        # What is typed, and what is short, is never broken over lines.
        table.add_column(heading, no_wrap=True)
    for one in described:
        options = "\n".join(f"{option.name}={_shown(option)}" for option in one.options)
        what = Text.assemble((one.name, "bold"), "\n", one.summary)
        table.add_row(what, *_facts(one), options or "none")
    console.print(table)
    console.print("One with its options explained: dimat methods NAME")
    console.print(OWN)


def _facts(method: Description) -> tuple[str, str, str]:
    if method.fold is None:
        return "?", "?", "?"  # known when its options are
    return "\n".join(method.needs) or "-", "no" if method.fold.commutative else "yes", method.fold.memory


def _print_one(console: Console, method: Description) -> None:
    width = min(console.width, 100)
    _, order, memory = _facts(method)
    console.print(method.name, style="bold")
    console.print(_wrapped(method.summary, width))
    console.print()
    removable = "?" if method.fold is None else "no" if method.fold.remove is None else "yes"
    console.print(f"needs: {', '.join(['the models', *method.needs])}")
    console.print(f"order matters: {order} · memory: {memory} · a model can be taken out again: {removable}")
    if method.body:
        console.print(f"\n{_wrapped(method.body, width)}")
    console.print("\nOptions" if method.options else "\nIt has no options.", style="bold")
    for option in method.options:
        kind = f" ({option.type})" if option.type else ""
        console.print(f"  {option.name}={_shown(option)}{kind}")
        if option.explanation:
            console.print(_wrapped(option.explanation, width, "      "))
    if method.source:
        console.print(f"\n{_wrapped(f'Source: {method.source}', width)}")
    if method.example:
        console.print("\nExample", style="bold")
        console.print(textwrap.indent(method.example, "  "), soft_wrap=True)


def _shown(option: Option) -> str:
    """The default as one writes it after `-s`, or in YAML."""
    if option.required:
        return "(must be given)"
    return option.default if isinstance(option.default, str) else json.dumps(option.default, default=str)


def _wrapped(text: str, width: int, indent: str = "") -> str:
    """Paragraphs and list items filled up to `width`; indented lines, which hold formulas, kept apart."""
    blocks = []
    for paragraph in text.split("\n\n"):
        items: list[str] = []
        for line in paragraph.splitlines():
            apart = line.startswith(("- ", "    ")) or not items or items[-1].startswith("    ")
            if apart:
                items.append(line)
            else:
                items[-1] = f"{items[-1]} {line.strip()}"
        blocks.append("\n".join(_filled(item, width, indent) for item in items))
    return "\n\n".join(blocks)


def _filled(line: str, width: int, indent: str) -> str:
    hang = "  " if line.startswith("- ") else "      " if line.startswith("    ") else ""
    return textwrap.fill(
        line,
        width,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
