"""One writer at a time: whoever comes second waits in a queue, and is told for whom."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dimat.errors import DimatError

PATIENCE_S = 1.0
"""How long a wait may take before it is worth a line."""

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`; the system lets go of it when a process ends, however it ends.

    Threads exclude each other too. It is an advisory lock (`flock`), which network file systems may not know.

    Args:
        path: the lock file, made when it is not there.
        what: what is being done, told to those who wait.

    Raises:
        DimatError: the file cannot be opened for writing.
    """
    handle = _open(path)
    try:
        _take(handle, path)
        while not _is_there(handle, path):  # deleted while this waited: others lock the file that took its place
            gone, handle = handle, _open(path)
            os.close(gone)
            _take(handle, path)
        os.truncate(handle, 0)
        with suppress(OSError):  # a full disk must not keep anybody from making room
            os.pwrite(handle, f"process {os.getpid()} ({what})".encode(), 0)
        try:
            yield
        finally:
            os.truncate(handle, 0)
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DimatError(f"ledger {path.parent} cannot be written to: {error.strerror or error}") from error


def _is_there(handle: int, path: Path) -> bool:
    """Whether the locked file is the one at `path`, or its whole folder went, so that there is no other one."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return not path.parent.exists()
    return os.path.samestat(os.fstat(handle), there)


def _take(handle: int, path: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                break
            time.sleep(0.02)
    holder = os.pread(handle, 1000, 0).decode(errors="replace") or "another process"
    logger.warning("ledger %s: waiting for %s, which writes to it", path.parent, holder)
    fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a file that is being read from being cleared away; see `clear`.

    Raises:
        FileNotFoundError: it is gone.
    """
    with path.open("rb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)
        path.stat()  # gone between opening and locking
        yield


def clear(path: Path) -> bool:
    """Delete a file unless somebody reads it; whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
