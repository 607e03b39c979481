"""What `dimat continual serve, submit` and `watch` do, and how they tell it."""

from __future__ import annotations

import getpass
import json
import logging
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimat.cli.continual_remote import parse_address, progress
from dimat.cli.secured import credentials_for, open_line, warn_of_plain_text
from dimat.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, Interrupted
from dimat.report.lines import clean

if TYPE_CHECKING:
    from dimat.continual.watch import Seen
    from dimat.transport.continual import LedgerEntry

LOOK_S = 0.2

log = logging.getLogger(__name__)


def serve_command(
    path: Path,
    listen: str,
    advertise: str | None,
    insecure: bool,
    max_upload_bytes: int | None,
    expire_h: float,
    format: str,
    certs: Path | None = None,
) -> int:
    """Serve until a signal comes; SIGTERM is the regular end, SIGINT an interruption."""
    from dimat.continual.ledger import Ledger
    from dimat.continual.service import ContinualService
    from dimat.coordinator.signals import Signals
    from dimat.transport.grpc.channels import check_exposure
    from dimat.transport.grpc.continual_server import ContinualServer
    from dimat.transport.grpc.server import probe
    from dimat.transport.security import COORDINATOR

    host, port = parse_address(listen)
    credentials = credentials_for(certs, COORDINATOR)
    check_exposure(host, insecure, credentials)
    warn_of_plain_text(host, credentials)
    if port:
        probe(host, port)
    service = ContinualService(Ledger.open(path), max_upload_bytes=max_upload_bytes, expire_h=expire_h)
    server = ContinualServer(service, host, port, advertise=advertise, insecure=insecure, credentials=credentials)
    signals = Signals()
    with signals.listen():
        service.start()
        try:
            address = server.start()
            if format == "json":
                print(json.dumps({"address": address, "ledger": str(path)}), flush=True)
            else:
                print(f"the ledger {path} listens on {address}", flush=True)
            while not signals.names:
                signals.arrived.wait(LOOK_S)
            log.warning("%s: ending once what is being absorbed is in; once more ends now", signals.names[0])
            _stop(service.stop, signals)
        finally:
            service.leave()
            server.close()
    return EXIT_DONE if signals.names == ["SIGTERM"] else EXIT_INTERRUPTED


def _stop(stop: Any, signals: Any) -> None:
    """Run `stop`, which may take as long as absorbing a model does; a second signal ends the wait."""
    import threading

    stopping = threading.Thread(target=stop, name="dimat-stop", daemon=True)
    stopping.start()
    while stopping.is_alive():
        stopping.join(LOOK_S)
        if len(signals.names) > 1 and stopping.is_alive():
            raise Interrupted(
                f"the server was stopped by {signals.names[-1]} while it absorbed a model; the ledger is as it was",
                hint="the same command absorbs that model first",
            )


def submit_command(
    address: str,
    model: Path,
    name: str | None,
    weight: float,
    who: str | None,
    timeout_s: float,
    format: str,
    quiet: bool,
    certs: Path | None = None,
    identity: str | None = None,
    insecure: bool = False,
) -> int:
    """Send one model."""
    from dimat.continual.submit import submit

    parse_address(address, dialled=True)
    line = open_line(address, certs, identity, insecure)
    with progress(quiet) as tell:
        done = submit(
            address,
            model,
            name=name,
            weight=weight,
            who=_who(who),
            timeout_s=timeout_s,
            tell=tell,
            **line.settings(),
        )
    if format == "json":
        print(json.dumps(_entry_json(done.entry) | {"added": not done.present}))
        return EXIT_DONE
    entry = done.entry
    if done.present:
        print(clean(f"{entry.name} is in already: number {entry.order}, added {entry.time} ({entry.digest[:12]})"))
    else:
        cosine = "" if entry.cosine is None else f", cosine to the merged update {entry.cosine:.3f}"
        print(clean(f"{entry.name} is in: number {entry.order}, norm {entry.norm:.4g}{cosine}"))
    return EXIT_DONE


def watch_command(
    path: Path, folder: Path, once: bool, interval_s: float, pattern: str, who: str | None, format: str
) -> int:
    """Absorb what appears."""
    from dimat.continual.ledger import Ledger
    from dimat.continual.watch import watch
    from dimat.coordinator.signals import Signals

    signals = Signals()
    with signals.listen():
        seen = watch(
            Ledger.open(path),
            folder,
            pattern=pattern,
            interval_s=interval_s,
            once=once,
            who=_who(who),
            over=signals.arrived,
            tell=lambda one: _print_seen(one, format),
        )
    counts = {what: sum(one.outcome == what for one in seen) for what in OUTCOMES}
    if format == "json":
        print(json.dumps({"ledger": str(path), **counts}), flush=True)
    elif once:
        print(", ".join(f"{number} {what}" for what, number in counts.items()))
    if signals.names:
        return EXIT_DONE if signals.names == ["SIGTERM"] else EXIT_INTERRUPTED
    return EXIT_FAILED if counts["refused"] or counts["unfinished"] else EXIT_DONE


OUTCOMES = ("absorbed", "present", "refused", "unfinished")


def _print_seen(seen: Seen, format: str) -> None:
    """One line on stdout for what went in, on stderr for what did not."""
    if format == "json":
        entry = None if seen.entry is None else asdict(seen.entry)
        told = {"path": str(seen.path), "outcome": seen.outcome, "reason": seen.reason or None, "entry": entry}
        print(json.dumps(told), flush=True)
    elif seen.outcome == "absorbed":
        assert seen.entry is not None
        print(clean(f"{seen.path} is in: number {seen.entry.order}, norm {seen.entry.norm:.4g}"), flush=True)
    elif seen.outcome == "present":
        assert seen.entry is not None
        log.info("%s is in already, as %s", seen.path, seen.entry.name)
    else:
        print(clean(f"{seen.path} is {seen.outcome}: {seen.reason}"), file=sys.stderr, flush=True)


def _entry_json(entry: LedgerEntry) -> dict[str, Any]:
    told = asdict(entry)
    del told["cosine_now"]
    return told


def _who(given: str | None) -> str:
    if given is not None:
        return given
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # an id without a name, as in a container
        return socket.gethostname()
