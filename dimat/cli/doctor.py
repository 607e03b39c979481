"""`dimat doctor`: dial every edge, look at ports, clocks, disk and certificates; say what is wrong and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from dimat.config import RunConfig, load_config
from dimat.errors import EXIT_DONE, EXIT_FAILED, DimatError, UsageError
from dimat.launch.doctor import (
    Finding,
    bytes_of_checkpoints,
    check_certificates,
    check_clock,
    check_disk,
    check_folder,
    check_port,
    free_bytes,
    in_words,
    is_wrong,
)
from dimat.launch.edges import Edge, dial, edges_of, read_peers, self_test
from dimat.transport.security import COORDINATOR, Credentials


def doctor_command(
    config_path: Path | None,
    settings: list[str],
    out: Path | None,
    coordinator: str | None,
    peers: Path | None,
    bind: str,
    port: int,
    insecure: bool,
    certs: Path | None,
    timeout_s: float,
    format: str,
) -> int:
    """Look at everything, print it; returns 1 when something has to be done, else 0."""
    config = load_config(config_path, settings)
    findings, edges = examine(config, out, coordinator, peers, bind, port, insecure, certs, timeout_s)
    healthy = not is_wrong(findings, [asdict(edge) for edge in edges])
    if format == "json":
        result = {
            "healthy": healthy,
            "checks": [asdict(f) for f in findings],
            "edges": [asdict(edge) for edge in edges],
        }
        print(json.dumps(result))
    else:
        how = "stand-ins in this process" if coordinator is None and peers is None else "agents that are up"
        _print(findings, edges, how)
    return EXIT_DONE if healthy else EXIT_FAILED


def examine(
    config: RunConfig,
    out: Path | None,
    coordinator: str | None,
    peers: Path | None,
    bind: str,
    port: int,
    insecure: bool,
    certs: Path | None,
    timeout_s: float,
) -> tuple[list[Finding], list[Edge]]:
    """All findings, and every edge as it was found; a config that cannot be run leaves little else to look at.

    Raises:
        UsageError: the file of peers cannot be read.
    """
    from dimat.agent.preflight import check_run

    addresses = None if peers is None else read_peers(peers, config.agents)
    folder = out if out is not None else Path("runs") / f"{config.name}-{config.digest}"
    credentials = None if certs is None else _credentials(certs)
    listening = check_port(bind, port, insecure, credentials)
    findings = [check_folder(folder), listening]
    if certs is not None:
        findings += check_certificates(certs)
        if credentials is None:
            cure = "`dimat certs issue` makes one, say --onlooker"
            findings.append(Finding("certificate", str(certs), "wrong", "holds no certificate with its key", cure))
    try:
        agent = check_run(config)
    except DimatError as error:
        return [Finding("config", config.name, "wrong", str(error), error.hint or ""), *findings], []
    findings.insert(
        0, Finding("config", config.name, "ok", f"{config.agents} agents, {in_words(agent.schema.num_bytes)} each")
    )
    needed = bytes_of_checkpoints(config, agent.schema.num_bytes, agent.topology.diameter)
    findings.append(check_disk(folder, free_bytes(folder), needed))
    wanted = edges_of(agent.topology)
    if certs is not None and credentials is None and not (coordinator is None and peers is None):
        return findings, []  # dialling in plain text instead would be no answer
    if coordinator is not None:
        answered, addresses = _ask(coordinator, timeout_s, credentials, insecure)
        findings += answered
    if addresses is not None:
        edges = dial(wanted, addresses, agent.schema, timeout_s, credentials, insecure)
    elif listening.state == "wrong":
        edges = []  # where nobody can listen there are no stand-ins
    else:
        # Stand-ins have no certificates: they stay on this machine then.
        edges = self_test(wanted, bind if credentials is None else "127.0.0.1", insecure, timeout_s)
    clocks: Mapping[int, Edge] = {edge.peer: edge for edge in edges if edge.round_trip_s is not None}
    if addresses is not None:
        findings += [
            check_clock(f"agent {peer}", e.skew_s, e.round_trip_s or 0.0) for peer, e in sorted(clocks.items())
        ]
    return findings, edges


def _credentials(certs: Path) -> Credentials | None:
    """Any identity that the folder holds will do to dial with; without one the certificates are what is wrong."""
    from dimat.transport.security import held_identities, load_credentials

    for identity in held_identities(certs) if certs.is_dir() else ():
        with suppress(UsageError):
            return load_credentials(certs, identity)
    return None


def _ask(
    coordinator: str, timeout_s: float, credentials: Credentials | None, insecure: bool
) -> tuple[list[Finding], dict[int, str]]:
    """What the coordinator is like, and where it says the agents are."""
    from dimat.agent.directory import addresses_in
    from dimat.errors import TransportError
    from dimat.transport.grpc import watch
    from dimat.transport.grpc.ping import ping

    try:
        pong = ping(coordinator, timeout_s, COORDINATOR, credentials=credentials, insecure=insecure)
    except TransportError as error:
        cure = "is it running, and is this its address? `dimat coordinator CONFIG` starts one"
        return [Finding("coordinator", coordinator, "wrong", str(error), cure)], {}
    views = watch(coordinator, credentials=credentials, insecure=insecure)
    view = next(views)
    views.close()  # type: ignore[attr-defined]  # a generator
    told = f"{view.state}: {view.reason}" if view.reason else view.state
    clock = check_clock("the coordinator", pong.skew_s, pong.round_trip_s)
    return [Finding("coordinator", coordinator, "ok", told), clock], addresses_in(view)


def _print(findings: Sequence[Finding], edges: Sequence[Edge], how: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    table = Table(title="What was looked at", title_justify="left")
    for heading in ("", "check", "of", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(_mark(finding.state), finding.check, finding.subject, finding.told, finding.cure)
    console.print(table)
    if not edges:
        return
    table = Table(title=f"Edges, dialled from here ({how})", title_justify="left")
    for heading in ("", "reader", "reads", "at", "round trip", "bandwidth", "what to do"):
        table.add_column(heading, overflow="fold")
    for edge in edges:
        table.add_row(
            _mark("wrong" if edge.error else "ok"), str(edge.reader), str(edge.peer), edge.address,
            "" if edge.round_trip_s is None else f"{1000 * edge.round_trip_s:.1f} ms", edge.error or _bandwidth(edge),
            edge.cure,
        )  # fmt: skip
    console.print(table)


def _mark(state: str) -> str:
    return {"ok": "ok", "warning": "look", "wrong": "WRONG"}.get(state, "?")


def _bandwidth(edge: Edge) -> str:
    if edge.bytes_per_s is None or edge.num_bytes is None:
        return "not measured: nothing is published yet, or only neighbours may fetch"
    return f"{in_words(edge.bytes_per_s)}/s ({in_words(edge.num_bytes)})"
