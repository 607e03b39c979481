"""Find what a user names: a built-in name, an entry point, `package.module:object` or `path/to/file.py:object`.

A wrong name answers with the closest right one and the list of what exists.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from dimat.errors import ConfigError, PluginError


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name nearest to `name`, or None when nothing is near.

    >>> closest("rnig", ["ring", "star"])
    'ring'
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that nothing answers to.

    >>> unknown("topology", "rnig", ["ring", "star"])
    "unknown topology 'rnig'. Did you mean 'ring'? Available: ring, star"
    """
    names = sorted(known)
    near = closest(name, names)
    hint = f" Did you mean {near!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Available: {', '.join(names)}"


def check_options(kind: str, name: str, options: Iterable[str], known: Collection[str]) -> None:
    """Refuse options that a plug-in does not have.

    Raises:
        ConfigError: with the closest right name, and all that there are.

    >>> check_options("merge method", "slerp", ["tt"], ["t"])
    Traceback (most recent call last):
    dimat.errors.ConfigError: merge method 'slerp' has no option 'tt'. Did you mean 't'? its options: t
    """
    for key in options:
        if key not in known:
            near = closest(key, known)
            exists = f"its options: {', '.join(known)}" if known else "it has no options"
            did_you_mean = f" Did you mean {near!r}?" if near else ""
            raise ConfigError(f"{kind} {name!r} has no option {key!r}.{did_you_mean} {exists}")


def resolve(kind: str, name: str, builtin: Mapping[str, Any], *, group: str | None = None) -> Any:
    """The object that `name` stands for.

    Args:
        kind: what is looked for, for messages («topology», «task», «merge method»).
        name: a built-in name, an entry point's name, `package.module:object` or `path/to/file.py:object`.
        builtin: the built-in objects by name; they win over entry points of the same name.
        group: the entry-point group, such as `dimat.topologies`.

    Raises:
        PluginError: nothing answers to the name, or the module or file does not import.
    """
    if name in builtin:
        return builtin[name]
    if ":" in name:
        return load_object(kind, name)
    entries = importlib.metadata.entry_points(group=group) if group else ()
    for entry in entries:
        if entry.name == name:
            try:
                return entry.load()
            except Exception as error:  # somebody's module runs here, and may raise anything
                message = f"{kind} {name!r} ({entry.value}) does not import: {type(error).__name__}: {error}"
                raise PluginError(message) from error
    message = unknown(kind, name, [*builtin, *(entry.name for entry in entries)])
    raise PluginError(message, hint=f"your own {kind} is named as package.module:object or path/to/file.py:object")


def load_object(kind: str, reference: str) -> Any:
    """The object behind `package.module:object` or `path/to/file.py:object`.

    Raises:
        PluginError: the module or file does not exist or fails to import, or has no such object.
    """
    where, _, attribute = reference.rpartition(":")
    if not where or not attribute:
        raise PluginError(f"{kind} {reference!r} is not of the form package.module:object or path/to/file.py:object")
    module = _load_file(kind, Path(where)) if where.endswith(".py") else _load_module(kind, where)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise PluginError(f"{where} has no {kind} of that name: {unknown('object', attribute, public)}") from None


def _load_module(kind: str, name: str) -> Any:
    # A module in the folder where the user stands is found, as with `python -m`; the console script has no such path.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        raise PluginError(f"{kind} module {name!r} does not import: {type(error).__name__}: {error}") from error


def _load_file(kind: str, path: Path) -> Any:
    if not path.is_file():
        raise PluginError(f"{kind} file {str(path)!r} does not exist")
    name = f"dimat_user_{path.stem}_{abs(hash(path.resolve()))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{kind} file {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PluginError(f"{kind} file {str(path)!r} does not import: {type(error).__name__}: {error}") from error
    return module
