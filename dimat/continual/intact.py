"""Is a file what the journal says it is? Asked before its bytes go into anything that lasts.

A state is made from the one before it and from the base, so that one changed byte would live on in every later state,
under digests that are right. Reading a file for its digest takes about as long as reading it to merge; what a process
has read, or has written itself, it does not read again while the system's marks of a change stay the same.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from dimat.continual.manifest import file_digest
from dimat.errors import DimatError

_REMEMBERED = 256


def known_digest(path: Path) -> str:
    """SHA-256 of a file, remembered as long as its inode, size and times stay the same.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    return _digest(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def check_intact(path: Path, digest: str | None, hint: str) -> None:
    """Raise DimatError unless the file at `path` has `digest`.

    Args:
        path: the file.
        digest: what the journal says.
        hint: what to do when it has another one.

    Raises:
        FileNotFoundError: it is gone.
        DimatError: it was changed, or cannot be read.
    """
    try:
        found = known_digest(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DimatError(f"{path} cannot be read: {error.strerror or error}", hint=hint) from error
    if found != digest:
        raise DimatError(f"{path} was changed: its SHA-256 is {found[:12]}, not {(digest or '')[:12]}", hint=hint)


@lru_cache(maxsize=_REMEMBERED)
def _digest(path: Path, inode: int, size: int, modified_ns: int, changed_ns: int) -> str:
    del inode, size, modified_ns, changed_ns  # tell one content of the path from another
    return file_digest(path)
