"""The command lines that start a coordinator and agents; `launch/` spells out the same ones for shells."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from dimat.config import RunConfig


def coordinator(folder: Path, port: int = 0, certs: Path | None = None, owner: int | None = None) -> list[str]:
    """One coordinator for the run in `folder`; with an `owner` it stops the run when that process has ended."""
    command = [sys.executable, "-m", "dimat", "coordinator", *_config(folder), "--port", str(port), *_certs(certs)]
    return command if owner is None else [*command, "--owner", str(owner)]


def together(config: RunConfig, folder: Path, coordinator_address: str, certs: Path | None = None) -> list[str]:
    """All agents under one torchrun: a crash ends them all, or starts them all again (`launch.max_restarts`)."""
    restarts = f"--max-restarts={config.launch.max_restarts}"
    return [*_torchrun(config, config.agents, restarts), *_agent(folder, coordinator_address, certs)]


def alone(
    config: RunConfig, folder: Path, coordinator_address: str, agent: int, certs: Path | None = None
) -> list[str]:
    """One agent under a torchrun of its own: the others do not notice more than a missing neighbour."""
    return [*_torchrun(config, 1), *_agent(folder, coordinator_address, certs), "--id", str(agent)]


def environment(config: RunConfig) -> Mapping[str, str]:
    """Variables for agents: as many OpenMP threads as the config says, which torchrun would set to one."""
    return {"OMP_NUM_THREADS": str(config.threads), "PYTHONUNBUFFERED": "1"}


def _torchrun(config: RunConfig, num_agents: int, *more: str) -> list[str]:
    # torchrun kills what has not left this long after a signal: an agent may need a whole deadline to finish its round.
    shutdown_s = int(config.exchange.timeout_s) + 30
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *(
            "--nnodes=1",
            f"--nproc-per-node={num_agents * config.launch.ranks_per_agent}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0",
        ),
        *(f"--shutdown-timeout={shutdown_s}", *more),
        *("-m", "dimat"),
    ]


def _agent(folder: Path, coordinator_address: str, certs: Path | None) -> list[str]:
    return ["agent", *_config(folder), "--coordinator", coordinator_address, *_certs(certs)]


def _certs(certs: Path | None) -> list[str]:
    return [] if certs is None else ["--certs", str(certs)]


def _config(folder: Path) -> list[str]:
    return [str(folder / "config.yaml"), "--out", str(folder)]
