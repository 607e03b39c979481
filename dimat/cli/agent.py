"""`dimat agent`: one agent, as a worker of torchrun or by itself."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from dimat.config import RunConfig, load_config
from dimat.errors import EXIT_DONE, EXIT_INTERRUPTED, Interrupted, UsageError
from dimat.launch import commands
from dimat.launch.children import Child

log = logging.getLogger(__name__)


def agent_command(
    config_path: Path | None,
    id: int | None,
    coordinator: str | None,
    settings: list[str],
    out: Path | None,
    bind: str,
    advertise: str | None,
    insecure: bool,
    format: str,
    certs: Path | None = None,
) -> int:
    """Find out who this agent is and where the coordinator listens, then be that agent; returns the exit code."""
    config = load_config(config_path, settings)
    agent_id, rank = identity(config, id, os.environ)
    from dimat.agent.directory import StoreDirectory, under_torchrun

    # With --id each agent has a launcher of its own, whose store knows nobody else.
    shared = under_torchrun() and id is None
    num_ranks = config.launch.ranks_per_agent
    if coordinator is None and not shared:
        raise UsageError(
            "no coordinator was given, and there is no torchrun to ask",
            hint="start one with `dimat coordinator CONFIG` and pass --coordinator HOST:PORT, or use torchrun",
        )
    from torch.distributed.elastic.multiprocessing.errors import record

    from dimat.agent.process import follow_agent, run_agent
    from dimat.agent.ranks import Ranks
    from dimat.cli.secured import credentials_for, warn_of_plain_text
    from dimat.runfolder import prepare
    from dimat.transport.grpc import await_coordinator
    from dimat.transport.grpc.channels import check_exposure
    from dimat.transport.security import COORDINATOR, agent, load_credentials

    # Everything that can be refused is refused before anything is written.
    credentials = credentials_for(certs, agent(agent_id), config)
    check_exposure(bind, insecure, credentials)
    for host in (bind, *([] if coordinator is None else [coordinator.rpartition(":")[0]])):
        warn_of_plain_text(host, credentials)
    if certs is not None and coordinator is None and rank == 0 and os.environ["RANK"] == "0":
        load_credentials(certs, COORDINATOR)  # it will be started from here
    if coordinator is not None and rank == 0:
        await_coordinator(coordinator, config.exchange.timeout_s, credentials=credentials, insecure=insecure)
    folder = prepare(config, out)
    store = StoreDirectory(timeout_s=max(60.0, config.exchange.timeout_s)) if shared or num_ranks > 1 else None
    directory = store if shared else None
    companion = Companion(folder, bind, advertise, insecure, certs)
    # torchrun ends workers by SIGTERM; until the agent listens to signals itself, it must still clean up after itself.
    signal.signal(signal.SIGTERM, _leave)
    try:
        if store is not None:
            store.start()
        ranks = Ranks(rank, num_ranks, store.of_agent(agent_id)) if store is not None and num_ranks > 1 else None
        if rank > 0:
            assert ranks is not None
            record(follow_agent)(config, agent_id, folder, ranks)
            return EXIT_DONE
        if directory is not None:
            if coordinator is None and os.environ["RANK"] == "0":
                directory.register("coordinator", companion.start())
            coordinator = coordinator or directory.lookup("coordinator")
        assert coordinator is not None
        # `record` hands the traceback of a failed worker to torchrun, which prints the first one.
        asked_to_stop = record(run_agent)(
            config,
            agent_id,
            folder,
            coordinator,
            directory=directory,
            bind=bind,
            advertise=advertise,
            insecure=insecure,
            credentials=credentials,
            ranks=ranks,
        )
        companion.outlast()
    finally:
        companion.close()
    if format == "json":
        print(json.dumps({"agent": agent_id, "run": str(folder), "interrupted": asked_to_stop}))
    # To torchrun an agent that left in order is a success, whoever asked it to.
    return EXIT_INTERRUPTED if asked_to_stop and not under_torchrun() else EXIT_DONE


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    raise Interrupted(f"{signal.Signals(number).name} before the agent had joined")


def identity(config: RunConfig, id: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which agent this process belongs to (--id, else by torchrun's RANK), and which of the agent's ranks it is.

    Raises:
        UsageError: neither is given, the id is not in the run, or torchrun started another number of workers.
    """
    per_agent = config.launch.ranks_per_agent
    if "RANK" not in environment and (id is None or per_agent > 1):
        if id is None:
            message, hint = "which agent is this? Neither --id nor torchrun's RANK is given", "for example --id 0"
        else:
            message = f"agent {id} has {per_agent} ranks (launch.ranks_per_agent), and torchrun did not start this one"
            hint = f"torchrun --standalone --nproc-per-node {per_agent} -m dimat agent CONFIG --id {id} ..."
        raise UsageError(message, hint=hint)
    num_agents = config.agents if id is None else 1
    expected = num_agents * per_agent
    rank = int(environment.get("RANK", 0))
    # One agent by itself may be a part of whatever it likes; several ranks have to find each other.
    world = int(environment.get("WORLD_SIZE", expected)) if id is None or per_agent > 1 else 1
    if world != expected:
        agents = f"{num_agents} agents" if id is None else "one agent (--id)"
        each = f" of {per_agent} ranks each (launch.ranks_per_agent)" if per_agent > 1 else ""
        raise UsageError(
            f"torchrun started {world} workers, the config has {agents}{each}",
            hint=f"nnodes times nproc-per-node must be {expected}",
        )
    agent, local = (rank // per_agent, rank % per_agent) if id is None else (id, rank if per_agent > 1 else 0)
    if not 0 <= agent < config.num_seats:
        raise UsageError(
            f"--id {agent} is not in the run, expected 0 to {config.num_seats - 1}",
            hint=None if config.membership.elastic else "agents may join later where membership.elastic is true",
        )
    return agent, local


class Companion:
    """The coordinator that rank 0 starts beside itself when torchrun is all there is."""

    def __init__(
        self, folder: Path, host: str, advertise: str | None, insecure: bool, certs: Path | None = None
    ) -> None:
        self._certs = certs
        self._folder = folder
        self._host = host
        self._advertise = advertise
        self._insecure = insecure
        self._child: Child | None = None

    def start(self) -> str:
        """Start it; returns its address once it listens."""
        command = [
            *commands.coordinator(self._folder, certs=self._certs),
            *("--host", self._host, "--parent", str(os.getpid())),
            *(("--advertise", self._advertise) if self._advertise else ()),
            *(["--insecure"] * self._insecure),
        ]
        self._child = Child("coordinator", command, self._folder / "logs" / "coordinator.log")
        return self._child.start_and_ask(self._folder)

    def outlast(self) -> None:
        """Stay until it has ended by itself, which it does once all agents have left or are lost.

        Agents that were cut off may be many rounds behind; without it their numbers would be lost.
        """
        while self._child is not None and self._child.wait(timeout_s=60.0) is None:
            log.info("the coordinator waits for agents that are still in their rounds")

    def close(self) -> None:
        """Let it end by itself, as long as a launcher leaves its workers; then make it."""
        if self._child is not None:
            self._child.wait(timeout_s=15.0)
            self._child.close()
