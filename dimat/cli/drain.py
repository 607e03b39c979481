"""`dimat drain`: have one agent leave a run in order, while the others go on."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from dimat.cli.secured import open_line
from dimat.errors import EXIT_DONE, PeerUnavailable, UsageError
from dimat.messages import Directive, Drain
from dimat.runfolder import processes
from dimat.transport.grpc.coordinator_client import CoordinatorClient
from dimat.transport.security import ADMIN

TIMEOUT_S = 10.0
PATIENCE_S = 5.0
RETRY_S = 0.5


def drain_command(run: str, agent: int, format: str, certs: Path | None = None, insecure: bool = False) -> int:
    """Ask the coordinator; prints after which round the agent leaves."""
    address = coordinator_of(run)
    spoken = open_line(address, certs, None if certs is None else ADMIN.name, insecure)
    line = CoordinatorClient(address, **spoken.settings())
    try:
        directive: Directive = line.call("Drain", Drain(agent), Directive, TIMEOUT_S)
        deadline = time.monotonic() + PATIENCE_S
        # A coordinator that has just been restarted names no round before it has heard all agents; asking twice is one.
        with suppress(UsageError):  # meanwhile it has left
            while directive.stop_after is None and time.monotonic() < deadline:
                time.sleep(RETRY_S)
                directive = line.call("Drain", Drain(agent), Directive, TIMEOUT_S)
    except PeerUnavailable as failure:
        raise line.untrusted() or failure from None
    finally:
        line.close()
    if format == "json":
        print(json.dumps({"agent": agent, "last_round": directive.stop_after}))
    elif directive.stop_after is None:
        print(f"agent {agent} was asked to leave; the coordinator has named no round yet, or the run ends before one")
    else:
        print(f"agent {agent} leaves after round {directive.stop_after}")
    return EXIT_DONE


def coordinator_of(run: str) -> str:
    """The coordinator's address: as given, or the newest that is written down in a run's folder.

    Raises:
        UsageError: it is neither HOST:PORT nor the folder of a run that has a coordinator.
    """
    folder = Path(run)
    if folder.is_dir():
        addresses = [entry["address"] for entry in processes(folder) if entry["role"] == "coordinator"]
        if addresses:
            return str(addresses[-1])
        raise UsageError(f"no coordinator has written its address into {run!r} yet", hint="is the run going on?")
    host, colon, port = run.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UsageError(
            f"{run!r} is neither the folder of a run nor HOST:PORT", hint="for example: dimat drain runs/demo 3"
        )
    return run
