"""The coordinator as a process: serve, keep time, hear signals, end when everybody has left.

It is never in the way of training: agents that cannot reach it go on and hand in their numbers when it is back. So it
may be killed and started again on the same folder at any time; it listens on the port that it had, if that is free.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dimat.config import RunConfig
from dimat.coordinator.convergence import Outcome
from dimat.coordinator.core import Coordinator
from dimat.coordinator.signals import Signals
from dimat.coordinator.store import Store
from dimat.errors import ConfigError, Interrupted, UsageError
from dimat.faults import coordinator_hook
from dimat.transport.grpc.admission import Limits
from dimat.transport.grpc.coordinator_server import CoordinatorServer, serve_coordinator
from dimat.transport.security import Credentials

TICK_S = 0.25
GRACE_S = 2.0
"""How long onlookers and last calls have to hear that the run is over."""

log = logging.getLogger(__name__)


def run_coordinator(
    config: RunConfig,
    run_folder: Path,
    diameter: int,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    advertise: str | None = None,
    insecure: bool = False,
    lease_s: float | None = None,
    grace_s: float = GRACE_S,
    on_address: Callable[[str], None] | None = None,
    parent: int | None = None,
    credentials: Credentials | None = None,
    owner: int | None = None,
) -> Outcome:
    """Be the coordinator of one run until everybody has left.

    The first SIGINT or SIGTERM names a last round and goes on serving until the agents have left; the second ends now.

    Args:
        config: the run's config.
        run_folder: an existing folder; `coordinator.sqlite` and `events.jsonl` are made or continued there.
        diameter: of the topology, in hops (for changing topologies: the rounds that news takes to reach everybody).
        host: where to listen; loopback unless `insecure`.
        port: 0 takes the port that this run's coordinator had before, if it is free, else any.
        advertise: HOST or HOST:PORT that agents dial, where it differs from `host`.
        insecure: allow plain text beyond loopback.
        lease_s: seconds of silence after which an agent counts as lost; None for the config's `membership.lease_s`.
        grace_s: seconds between the end of the run and the end of the service.
        on_address: told where it listens, once it does.
        parent: a process without which this one has no purpose; when it has ended, so does this one.
        credentials: proves to agents that this is the coordinator; without them it speaks plain text.
        owner: the parent process that started the whole run; when it has ended, the run stops in order.

    Returns:
        How the run ended; `exit_code` is what a command should end with.

    Raises:
        UsageError: the address cannot be had, or the folder's store is of another config or version.
        Interrupted: a second signal came before the agents had left.
    """
    signals = Signals()
    with signals.listen(), Store.open(run_folder) as store:
        coordinator = _take_up(config, diameter, store, lease_s, members_stop=credentials is None)
        limits = Limits(config.security.max_calls_per_s, config.security.max_calls, config.num_seats)
        settings = {"advertise": advertise, "insecure": insecure, "credentials": credentials, "limits": limits}
        server, address = _listen(coordinator, store, host, port, settings)
        try:
            coordinator.remember("address", address)
            if on_address is not None:
                on_address(address)
            on_round = coordinator_hook(config.faults, run_folder)
            return _serve(coordinator, signals, grace_s, parent, owner, on_round)
        finally:
            server.close()


def _take_up(
    config: RunConfig, diameter: int, store: Store, lease_s: float | None, *, members_stop: bool
) -> Coordinator:
    """A coordinator for the store, which must be empty or of the same config."""
    found = store.meta("config")
    if found not in (None, config.digest):
        raise ConfigError(
            f"{str(store.path)!r} belongs to a run of another config (digest {found}, here {config.digest})",
            hint="name another folder with --out",
        )
    coordinator = Coordinator(config, diameter, store, lease_s=lease_s, tick_s=TICK_S, members_stop=members_stop)
    if found is None:
        coordinator.remember("config", config.digest)
    else:
        coordinator.note("restarted", "the coordinator was started again and took up what was written")
    return coordinator


def _listen(
    coordinator: Coordinator, store: Store, host: str, port: int, settings: Mapping[str, Any]
) -> tuple[CoordinatorServer, str]:
    """A started server and its address: on the given port, else on the recorded one, else on any."""

    def serve(port: int) -> tuple[CoordinatorServer, str]:
        server = serve_coordinator(coordinator, host, port, **settings)
        return server, server.start()

    former: str | None = store.address()
    if port == 0 and former and former.rpartition(":")[0] == (settings["advertise"] or host):
        try:
            return serve(int(former.rpartition(":")[2]))
        except UsageError as error:
            log.warning("not on the port that this run's coordinator had: %s", error)
    return serve(port)


def _serve(
    coordinator: Coordinator,
    signals: Signals,
    grace_s: float,
    parent: int | None,
    owner: int | None,
    on_round: Callable[[int], None] | None = None,
) -> Outcome:
    """Tick until the run has been over for `grace_s` seconds."""
    heard, orphaned = 0, False
    over_s: float | None = None
    while over_s is None or time.monotonic() - over_s < grace_s:
        signals.arrived.wait(TICK_S)
        signals.arrived.clear()
        if parent is not None and os.getppid() != parent and not coordinator.finished:
            # Nothing is written: whoever takes the run up again finds it as it was.
            raise Interrupted(f"the process that started the coordinator ({parent}) has ended")
        if owner is not None and os.getppid() != owner:
            log.warning("the command that started the run (%d) has ended: naming a last round", owner)
            coordinator.request_stop(f"the command that started the run ({owner}) has ended")
            owner, orphaned = None, True
        if orphaned and not coordinator.finished and not _anybody(coordinator):
            raise Interrupted("the command that started the run has ended, and so have its agents")
        if len(signals.names) > 1:
            raise Interrupted(
                f"the coordinator was stopped by {signals.names[-1]} before all agents had left",
                hint="the same command continues the run",
            )
        if len(signals.names) > heard:
            heard = len(signals.names)
            log.warning("%s: naming a last round; once more ends the coordinator now", signals.names[-1])
            coordinator.request_stop(f"the user stopped the run ({signals.names[-1]})")
        coordinator.tick()
        if on_round is not None:
            on_round(coordinator.newest_round)
        if not coordinator.finished:
            over_s = None  # an agent that was thought to be lost is back
        elif over_s is None:
            over_s = time.monotonic()
    outcome = coordinator.outcome
    assert outcome is not None
    return outcome


def _anybody(coordinator: Coordinator) -> bool:
    """Whether there is an agent to wait for."""
    return any(member.state in ("joined", "running") for member in coordinator.view().members)
