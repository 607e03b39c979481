"""`dimat agent`: one agent, as a worker of torchrun or by itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from dimat.config import RunConfig, load_config
from dimat.errors import UsageError
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
) -> None:
    """Find out who this agent is and where the coordinator listens, then be that agent."""
    config = load_config(config_path, settings)
    agent_id = identity(config, id, os.environ)
    from dimat.agent.directory import StoreDirectory, under_torchrun

    # With --id each agent has a launcher of its own, whose store knows nobody else.
    shared = under_torchrun() and id is None
    if coordinator is None and not shared:
        raise UsageError(
            "no coordinator was given, and there is no torchrun to ask",
            hint="start one with `dimat coordinator CONFIG` and pass --coordinator HOST:PORT, or use torchrun",
        )
    from torch.distributed.elastic.multiprocessing.errors import record

    from dimat.agent.process import run_agent
    from dimat.runfolder import prepare

    folder = prepare(config, out)
    directory = StoreDirectory(timeout_s=config.exchange.timeout_s) if shared else None
    companion = None
    if directory is not None:
        directory.start()
        if coordinator is None and os.environ["RANK"] == "0":
            companion = Companion(folder, bind, insecure)
            directory.register("coordinator", companion.start())
        coordinator = coordinator or directory.lookup("coordinator")
    assert coordinator is not None

    # `record` hands the traceback of a failed worker to torchrun, which prints the first one.
    main = record(run_agent)
    try:
        main(
            config,
            agent_id,
            folder,
            coordinator,
            directory=directory,
            bind=bind,
            advertise=advertise,
            insecure=insecure,
        )
    finally:
        if companion is not None:
            companion.close()


def identity(config: RunConfig, id: int | None, environment: Mapping[str, str]) -> int:
    """Which agent this process is: --id, else torchrun's RANK.

    Raises:
        UsageError: neither is given, the id is not in the run, or torchrun started another number of workers.
    """
    if id is None:
        if "RANK" not in environment:
            raise UsageError(
                "which agent is this? Neither --id nor torchrun's RANK is given", hint="for example --id 0"
            )
        id, world = int(environment["RANK"]), int(environment.get("WORLD_SIZE", config.agents))
        if world != config.agents:
            raise UsageError(
                f"torchrun started {world} workers, the config has {config.agents} agents",
                hint=f"nnodes times nproc-per-node must be {config.agents}",
            )
    if not 0 <= id < config.agents:
        raise UsageError(f"--id {id} is not in the run, expected 0 to {config.agents - 1}")
    return id


class Companion:
    """The coordinator that rank 0 starts beside itself when torchrun is all there is."""

    def __init__(self, folder: Path, host: str, insecure: bool) -> None:
        self._folder = folder
        self._host = host
        self._insecure = insecure
        self._child: Child | None = None

    def start(self) -> str:
        """Start it; returns its address once it listens."""
        command = [*commands.coordinator(self._folder), "--host", self._host, *(["--insecure"] * self._insecure)]
        self._child = Child("coordinator", command, self._folder / "logs" / "coordinator.log")
        return self._child.start_and_ask(self._folder)

    def close(self) -> None:
        """Let it end by itself, which it does once all agents have said goodbye; then make it."""
        if self._child is not None:
            self._child.wait(timeout_s=15.0)
            self._child.close()
