"""`dimat coordinator`: follow one run's membership and convergence until everybody has left."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dimat.cli.secured import credentials_for, warn_of_plain_text
from dimat.config import load_config
from dimat.coordinator.service import run_coordinator
from dimat.runfolder import held, prepare, register_process
from dimat.topology import load_topology
from dimat.transport.grpc.channels import check_exposure
from dimat.transport.grpc.server import probe
from dimat.transport.security import COORDINATOR


def coordinator_command(
    config: Path | None,
    set: list[str],
    out: Path | None,
    host: str = "127.0.0.1",
    port: int = 0,
    insecure: bool = False,
    format: str = "text",
    advertise: str | None = None,
    parent: int | None = None,
    certs: Path | None = None,
    owner: int | None = None,
) -> int:
    """Serve until the run is over; returns the exit code that its outcome asks for.

    The address is the first line on stdout and the newest entry of the run folder's `processes.json`.
    """
    resolved = load_config(config, set)
    part = resolved.topology
    # Everything that can be refused is refused before anything is written.
    topology = load_topology(part.graph, resolved.agents, mixing=part.mixing, seed=resolved.seed, options=part.options)
    credentials = credentials_for(certs, COORDINATOR, resolved)
    check_exposure(host, insecure, credentials)
    warn_of_plain_text(host, credentials)
    if port:
        probe(host, port)
    folder = prepare(resolved, out)

    def tell(address: str) -> None:
        register_process(folder, "coordinator", None, address)
        if format == "text":
            print(f"the coordinator of {folder} listens on {address}", flush=True)
        else:
            print(json.dumps({"address": address, "run": str(folder)}), flush=True)

    with held(folder, by="coordinator"):
        outcome = run_coordinator(
            resolved,
            folder,
            topology.diameter,
            host=host,
            port=port,
            advertise=advertise,
            insecure=insecure,
            on_address=tell,
            parent=parent,
            credentials=credentials,
            owner=owner,
        )
    ended = {"kind": outcome.kind, "reason": outcome.reason, "round": outcome.round, "exit_code": outcome.exit_code}
    if format == "text":
        print(f"the run is over: {outcome.reason}", file=sys.stderr)
    else:
        print(json.dumps({"run": str(folder), **ended}), flush=True)
    return outcome.exit_code
