"""A run's folder: made before anything starts, continued by the same config, refused to another one.

config.yaml  environment.json  coordinator.sqlite  events.jsonl  processes.json
metrics/<agent>.jsonl  checkpoints/<agent>/<round>.safetensors  logs/  report.html  figures/*.png
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dimat.config import RunConfig, load_config
from dimat.errors import UsageError
from dimat.files import write_atomically

VERSIONED = (
    "dimat",
    "torch",
    "numpy",
    "scipy",
    "networkx",
    "grpcio",
    "protobuf",
    "safetensors",
    "scikit-learn",
    "lapx",
)


def prepare(config: RunConfig, out: Path | None, *, fresh: bool = False) -> Path:
    """The folder for a run of `config`: `out`, else `runs/<name>-<digest>`; made, or found with the same config.

    Raises:
        UsageError: the folder belongs to another config or is not a run folder, or cannot be made. Nothing was changed.
    """
    folder = out if out is not None else Path("runs") / f"{config.name}-{config.digest}"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {str(folder)!r} is a file, expected a folder")
    resolved = folder / "config.yaml"
    # Hidden files are locks and half-written files: agents of one machine make the folder at the same moment.
    holds_files = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if resolved.is_file() and not fresh:
        _refuse_another_config(folder, config)
    elif holds_files and not resolved.is_file():
        raise UsageError(
            f"--out {str(folder)!r} holds other files and is not a run folder (it has no config.yaml)",
            hint="name a folder that does not exist yet",
        )
    if fresh and resolved.is_file():
        with held(folder):
            shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(resolved, config.to_yaml())
        if not (folder / "environment.json").is_file():  # of the start; what continues a run does not rewrite it
            write_atomically(folder / "environment.json", json.dumps(environment(config), indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"the run folder {str(folder)!r} cannot be written: {error.strerror}") from None
    return folder


@contextmanager
def held(folder: Path, by: str = "run") -> Iterator[int]:
    """Hold a run folder for one command of a kind at a time; gives the lock's file descriptor.

    The lock lasts as long as any process has the descriptor: children that got it hold on when the command dies.

    Raises:
        UsageError: another command runs in this folder.
    """
    with (folder / f".{by}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another {by} is going on in {str(folder)!r}"
            raise UsageError(message, hint="wait for its end, or name another folder with --out") from None
        yield lock.fileno()


def _refuse_another_config(folder: Path, config: RunConfig) -> None:
    found = load_config(folder / "config.yaml")
    if found.digest == config.digest:
        return
    mine, theirs = _flat(config.model_dump(mode="json")), _flat(found.model_dump(mode="json"))
    key = next(key for key in mine | theirs if mine.get(key) != theirs.get(key))
    raise UsageError(
        f"{str(folder)!r} belongs to another config: {key} is {theirs.get(key)!r} there and {mine.get(key)!r} here",
        hint="name another folder with --out, or start over in this one with --fresh",
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, so that two configs can be compared key by key."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def environment(config: RunConfig) -> dict[str, Any]:
    """What somebody needs to know to repeat the run elsewhere: versions, machine, seed."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "seed": config.seed,
        "digest": config.digest,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def register_process(folder: Path, role: str, id: int | None, address: str) -> None:
    """Add this process to `processes.json` (role, id, pid, address), newest entry last; replaced atomically.

    Agents of one machine write at the same moment, so a lock file orders them.
    """
    path = folder / "processes.json"
    with (folder / ".processes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries = json.loads(path.read_text()) if path.is_file() else []
        entries.append({"role": role, "id": id, "pid": os.getpid(), "address": address, "time": time.time()})
        write_atomically(path, json.dumps(entries, indent=1) + "\n")


def processes(folder: Path) -> list[dict[str, Any]]:
    """The entries of `processes.json`; empty when nothing was started yet."""
    path = folder / "processes.json"
    entries: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return entries
