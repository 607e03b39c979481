"""Hash models while torch is imported: a merge names what it reads by SHA-256, and importing keeps one core busy alone.

    with HashAhead(paths) as ahead:
        import torch
        hashed = ahead.stop()         # file -> its version, and how far each tensor's bytes are hashed

What was hashed of a file counts as long as the file is the same; whoever merges hashes the rest. This needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dimat.files import FileVersion, version_of

CHUNK_BYTES = 32 << 20
"""Read and hashed at a time, without Python's lock."""
SWITCH_INTERVAL_S = 5e-4
"""How long imports keep Python's lock when the thread wants it: with the usual 5 ms a third less is hashed."""
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Begun:
    """The hash of the first `num_bytes` bytes of a tensor; `running` is copied before it is taken further."""

    num_bytes: int
    running: Any


@dataclass(frozen=True, slots=True)
class HashedFile:
    """Of one file: its version when it was opened, and (first byte, end) -> what is hashed of the tensor there."""

    version: FileVersion
    tensors: Mapping[tuple[int, int], Begun]


class HashAhead:
    """A thread that hashes the tensors of models, one file after another, until it is stopped.

    Files that are missing or damaged are passed over: whoever opens them says what is wrong.

    Args:
        paths: `.safetensors` files, and folders of them.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(dict.fromkeys(paths))
        self._found: dict[Path, HashedFile] = {}
        self._stopped = threading.Event()
        self._interval_s = sys.getswitchinterval()
        self._thread = threading.Thread(target=self._run, name="hash ahead", daemon=True)

    def __enter__(self) -> Self:
        self._interval_s = sys.getswitchinterval()
        sys.setswitchinterval(min(self._interval_s, SWITCH_INTERVAL_S))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> dict[Path, HashedFile]:
        """End, and tell what was hashed."""
        if not self._stopped.is_set():
            self._stopped.set()
            sys.setswitchinterval(self._interval_s)
        self._thread.join()
        return self._found

    def _run(self) -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for path in self._paths:
            try:
                for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
                    self._hash(file, buffer)
                    if self._stopped.is_set():
                        return
            except (OSError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
                continue

    def _hash(self, path: Path, buffer: memoryview) -> None:
        if not stat.S_ISREG(path.stat().st_mode):
            return
        tensors: dict[tuple[int, int], Begun] = {}
        with path.open("rb", buffering=0) as file:
            self._found[path] = HashedFile(version_of(os.fstat(file.fileno())), tensors)
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                return
            entries = json.loads(file.read(length))
            places = sorted(tuple(one["data_offsets"]) for key, one in entries.items() if key != "__metadata__")
            for first, end in places:
                if not 0 <= first < end:
                    continue
                file.seek(8 + length + first)
                tensors[8 + length + first, 8 + length + end] = self._begin(file, end - first, buffer)
                if self._stopped.is_set():
                    return

    def _begin(self, file: Any, num_bytes: int, buffer: memoryview) -> Begun:
        running, done = hashlib.sha256(), 0
        while done < num_bytes and not self._stopped.is_set():
            count = file.readinto(buffer[: num_bytes - done])
            if not count:
                break
            running.update(buffer[:count])
            done += count
        return Begun(done, running)
