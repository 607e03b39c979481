"""`dimat continual status` and `export` where HOST:PORT stands for the ledger; addresses, and the bar of a transfer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dimat.cli.secured import PLAIN, Line
from dimat.errors import EXIT_DONE, PayloadError, UsageError
from dimat.report.lines import clean

if TYPE_CHECKING:
    from dimat.continual.status import Status
    from dimat.continual.submit import Tell

_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):\d{1,5}")


def is_address(text: str | Path) -> bool:
    """Whether HOST:PORT was typed where a ledger's folder may stand; a folder of that name comes first.

    >>> is_address("localhost:7100"), is_address("[::1]:7100"), is_address("merged")
    (True, True, False)
    """
    return _ADDRESS.fullmatch(str(text)) is not None and not Path(text).exists()


def parse_address(text: str, *, dialled: bool = False) -> tuple[str, int]:
    """HOST and PORT of HOST:PORT; port 0, any free one, is for those who listen.

    Raises:
        UsageError: it is something else.

    >>> parse_address("127.0.0.1:7100")
    ('127.0.0.1', 7100)
    """
    host, _, port = text.rpartition(":")
    if not _ADDRESS.fullmatch(text) or int(port) > 65535 or (dialled and not int(port)):
        raise UsageError(f"address {text!r} is not of the form HOST:PORT", hint="for instance 127.0.0.1:7100")
    return host.strip("[]"), int(port)


def remote_status(address: str, timeout_s: float = 30.0, line: Line = PLAIN) -> Status:
    """The status of the ledger that is served at `address`, its texts without control characters.

    Raises:
        PeerUnavailable: nobody answers.
    """
    from dimat.continual.entry import Entry
    from dimat.continual.status import ModelStatus, Status
    from dimat.transport.grpc.continual_client import ContinualClient

    parse_address(address, dialled=True)
    found = ContinualClient(address, timeout_s=timeout_s, **line.settings()).status()
    models = tuple(
        ModelStatus(
            Entry(
                name=clean(one.name),
                digest=clean(one.digest),
                order=one.order,
                weight=one.weight,
                norm=one.norm,
                time=clean(one.time),
                who=clean(one.who),
                cosine=one.cosine,
                version=one.version,
            ),
            one.cosine_now,
        )
        for one in found.models
    )
    return Status(
        method=clean(found.method),
        options=_options(found.options, address),
        base_digest=clean(found.base_digest),
        align=clean(found.align) or None,
        version=found.version,
        state_bytes=found.state_bytes,
        update_norm=found.update_norm,
        num_undo=found.num_undo,
        models=models,
    )


def _options(text: str, address: str) -> dict[str, object]:
    """The method's options, which a server tells as JSON."""
    try:
        options = json.loads(clean(text))
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise PayloadError(f"the ledger at {address} tells options that are no JSON object: {clean(text)[:100]!r}")
    return {clean(key): value if not isinstance(value, str) else clean(value) for key, value in options.items()}


def remote_export_command(
    address: str,
    out: Path,
    dtype: str | None,
    force: bool,
    format: str,
    quiet: bool,
    timeout_s: float = 60.0,
    line: Line = PLAIN,
) -> int:
    """Fetch the merged model."""
    from dimat.continual.submit import fetch

    if dtype is not None:
        raise UsageError(
            "--dtype is for a ledger's folder; over the network the merged model comes in the base's dtypes"
        )
    parse_address(address, dialled=True)
    with progress(quiet) as tell:
        merged = fetch(address, out, overwrite=force, timeout_s=timeout_s, tell=tell, **line.settings())
    if format == "json":
        told = {"out": str(out), "digest": merged.digest, "version": merged.version, "num_models": merged.num_models}
        print(json.dumps(told))
    else:
        models = "1 model" if merged.num_models == 1 else f"{merged.num_models} models"
        print(f"{out} has {models} in it (version {merged.version}, digest {merged.digest})")
    return EXIT_DONE


@contextmanager
def progress(quiet: bool) -> Iterator[Tell]:
    """A bar on stderr, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, markup=False, highlight=False)
    if quiet or not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("connecting", total=None)

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total or None)

        yield tell
