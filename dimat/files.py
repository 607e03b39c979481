"""Files: written whole or not at all, also after a power cut; names that can be none; what tells a changed file."""

from __future__ import annotations

import os
from pathlib import Path

from dimat.errors import UsageError

FileVersion = tuple[int, int, int]
"""(size in bytes, time of the last change in ns, inode): a file of other bytes under the same name has another one."""


def version_of(status: os.stat_result) -> FileVersion:
    """What tells a file from what took its place: copies may keep size and time."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside, fsync, rename; text is UTF-8. The folder is made when it is not there.

    Several processes may write the same path at the same moment: the last one wins.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "a" / "note.txt", "done")
    ...     [path.name for path in (Path(folder) / "a").iterdir()]
    ['note.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def check_name(path: Path, what: str) -> None:
    """Raise UsageError where the system knows no file by such a name, whether there is one or not.

    Args:
        path: the name.
        what: what it names, for the message.

    >>> check_name(Path("nowhere") / "model.safetensors", "model")
    >>> check_name(Path("m" * 1000), "model")
    Traceback (most recent call last):
    dimat.errors.UsageError: model mmmmmmmmmmmmmmmmmmmmmmmmmmmmmm... cannot be looked for: File name too long
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # too long, links in a circle, a folder that may not be entered; a NUL
        why = error.strerror if isinstance(error, OSError) else str(error)
        told = str(path) if len(str(path)) < 200 else f"{str(path)[:30]}..."
        told = told if told.isprintable() else repr(told)
        raise UsageError(f"{what} {told} cannot be looked for: {why}") from None
