"""How agents find the coordinator and each other: through torchrun's TCPStore, or through the coordinator's view.

The store is for discovery only. It has no authentication, so nothing secret goes there, and who answers at an address
is checked afterwards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from dimat.errors import PeerUnavailable, UsageError
from dimat.messages import View


def addresses_in(view: View) -> dict[int, str]:
    """Addresses by agent, as the coordinator knows them."""
    return {member.agent: member.address for member in view.members if member.address}


def under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a worker of torchrun."""
    return "TORCHELASTIC_RUN_ID" in environment


def may_be_started_again(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has restarts left: then its SIGTERM may mean that another worker crashed."""
    restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", 0))
    return restarts < int(environment.get("TORCHELASTIC_MAX_RESTARTS", 0))


class StoreDirectory:
    """Addresses in the TCPStore that torchrun hosts; keys carry the restart count, so stale ones are never read."""

    def __init__(self, environment: Mapping[str, str] = os.environ, timeout_s: float = 60.0) -> None:
        self._environment = environment
        self._timeout = timedelta(seconds=timeout_s)
        self._store: Any = None

    def start(self) -> None:
        """Connect to the store.

        Raises:
            UsageError: torchrun did not say where it is.
        """
        import torch.distributed as dist

        try:
            host, port = self._environment["MASTER_ADDR"], int(self._environment["MASTER_PORT"])
            rank, run = int(self._environment["RANK"]), self._environment["TORCHELASTIC_RUN_ID"]
        except (KeyError, ValueError) as error:
            message = f"torchrun's environment is incomplete: {error}"
            raise UsageError(message, hint="start agents with torchrun, or give --id and --coordinator") from None
        # torchrun's own agent hosts the store on recent versions; otherwise rank 0 does.
        hosted = self._environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        master = not hosted and rank == 0
        store = dist.TCPStore(host, port, is_master=master, timeout=self._timeout)  # type: ignore[attr-defined]  # unlisted
        restart = self._environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(f"dimat/{run}/{restart}", store)  # type: ignore[attr-defined]  # unlisted

    def of_agent(self, agent: int) -> Any:
        """A part of the store for the processes of one agent among themselves."""
        import torch.distributed as dist

        return dist.PrefixStore(f"ranks/{agent}", self._store)  # type: ignore[attr-defined]  # unlisted

    def register(self, name: str, address: str) -> None:
        """Say where `name` (`coordinator`, `agent/3`) listens."""
        self._store.set(name, json.dumps({"address": address}))

    def lookup(self, name: str) -> str:
        """Where `name` listens; waits until it has said so.

        Raises:
            PeerUnavailable: it did not in time.
        """
        import torch.distributed as dist

        try:
            self._store.wait([name], self._timeout)
        except dist.DistError as error:
            seconds = self._timeout.total_seconds()
            message = f"{name} did not register with torchrun's store within {seconds:.0f} s: {error}"
            raise PeerUnavailable(message) from error
        address: str = json.loads(self._store.get(name))["address"]
        return address
