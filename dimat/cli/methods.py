"""`dimat methods [NAME]`: which merges there are, what they need, and their options."""

from __future__ import annotations

import inspect
import json
from typing import Any


def methods_command(name: str | None, format: str) -> None:
    """Print every method as a table, or one with its options."""
    import dimat.merge.mean  # noqa: F401  registering is what the import is for
    from dimat.merge.api import METHODS

    names = [name] if name is not None else sorted(METHODS)
    described = [describe(one) for one in names]
    if format == "json":
        print(json.dumps({"methods": described}))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    table = Table(title="Merge methods", title_justify="left")
    for heading in ("name", "what it does", "needs", "order matters", "memory", "options"):
        table.add_column(heading)
    for method in described:
        options = ", ".join(f"{key}={value}" for key, value in method["options"].items()) or "none"
        needs = ", ".join(method["needs"]) or "the models"
        order = "yes" if method["order_matters"] else "no"
        table.add_row(method["name"], method["summary"], needs, order, method["memory"], options)
    console.print(table)
    if name is not None:
        console.print(described[0]["documentation"])
    else:
        console.print(
            "Your own: a function that returns a dimat.merge.Fold, named as package.module:function or file.py:function"
        )


def describe(name: str) -> dict[str, Any]:
    """What a method says of itself."""
    from dimat.merge.api import find_method, make_fold, options_of

    method = find_method(name)
    fold = make_fold(name)
    documentation = inspect.getdoc(method) or ""
    options = {key: None if p.default is p.empty else p.default for key, p in options_of(method).items()}
    return {
        "name": name,
        "summary": documentation.partition("\n")[0],
        "options": options,
        "needs": [*(["a base"] if fold.needs_base else []), *fold.stats],
        "order_matters": not fold.commutative,
        "memory": fold.memory,
        "documentation": documentation,
    }
