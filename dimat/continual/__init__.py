"""Models arrive one after another and a running model absorbs each: the durable ledger of a continual merge.

Names load when they are used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimat.continual.entry import AlreadyAbsorbed, Entry, Version
    from dimat.continual.ledger import Ledger
    from dimat.continual.status import Status

_HOMES = {
    "AlreadyAbsorbed": "entry",
    "Entry": "entry",
    "Ledger": "ledger",
    "Status": "status",
    "Version": "entry",
}

__all__ = ["AlreadyAbsorbed", "Entry", "Ledger", "Status", "Version"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dimat.continual.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
