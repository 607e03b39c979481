"""The side file of a table: which machine, versions and commits its cells were made by."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.decentralized.table import locked
from dimat.files import write_atomically

ROOT = Path(__file__).parents[2]


def describe() -> dict[str, Any]:
    """The machine and the version that run this."""
    return {
        "commit": commit(),
        "processor": _processor(),
        "num_cpus": os.cpu_count(),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }


def commit() -> str:
    """The checkout's commit, with a plus where files differ from it; `unknown` outside of one."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", "dimat") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def side_file(table: Path) -> Path:
    """Beside the table."""
    return table.with_suffix(".json")


def read(table: Path) -> list[dict[str, Any]]:
    """The entries of a table's side file: a description each, with the number of `cells` made under it."""
    path = side_file(table)
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return entries


def count(table: Path, description: Mapping[str, Any], num_cores: int) -> None:
    """Count one more cell of this machine and version; `cores` is how many cells ran at once."""
    mine = {**description, "cores": num_cores}
    with locked(table):
        entries = read(table)
        for entry in entries:
            if {key: value for key, value in entry.items() if key != "cells"} == mine:
                entry["cells"] += 1
                break
        else:
            entries.append({**mine, "cells": 1})
        write_atomically(side_file(table), json.dumps(entries, indent=1) + "\n")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
