"""Everything on this machine: a coordinator, the agents by torchrun, and somebody who watches them.

The first interrupt asks the coordinator to name a last round, and everybody leaves after it; the second ends all at
once. The coordinator is started again on its port when it dies: agents go on without it meanwhile.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Literal

import psutil

from dimat.config import RunConfig
from dimat.coordinator import Store
from dimat.errors import Interrupted
from dimat.launch import commands
from dimat.launch.children import Child, end_processes
from dimat.messages import View
from dimat.runfolder import processes
from dimat.transport.grpc import watch
from dimat.transport.security import ONLOOKER, load_credentials

log = logging.getLogger(__name__)

Shape = Literal["together", "per-agent"]

MAX_COORDINATOR_RESTARTS = 10
LATE_S = 10.0
"""How long agents may take to leave once the coordinator has: it goes after all of those that it knows of."""


class LocalRun:
    """The processes of one run. `run()` starts them, waits for their end and leaves none behind."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        shape: Shape,
        on_view: Callable[[View], None],
        lock: int,
        certs: Path | None = None,
    ) -> None:
        self._config = config
        self._folder = folder
        self._shape = shape
        self._certs = certs
        self._credentials = None if certs is None else load_credentials(certs, ONLOOKER)
        self._on_view = on_view
        # Whoever lives on when this process is killed goes on holding the folder.
        self._keeps = (lock,)
        self._started = time.time()
        self._coordinator = self._make_coordinator(port=0)
        self._told: int | None = None
        """The process id of the coordinator that has been told of the first interrupt."""
        self._launchers: list[Child] = []
        self._num_starts: dict[str, int] = {}
        self._interrupts = 0
        self._forming = True
        self._over = threading.Event()

    def run(self) -> None:
        """Run to the end.

        Raises:
            DimatError: a part failed; its last words are in the message, the whole log is named.
            Interrupted: the user asked twice.
        """
        heard = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            address = self._coordinator.start_and_ask(self._folder)
            self._start_agents(address)
            watcher = threading.Thread(target=self._watch, args=(address,), name="watch", daemon=True)
            watcher.start()
            self._supervise(address)
            # The coordinator ends by itself once everybody has said goodbye.
            self._coordinator.wait(timeout_s=10.0)
            self._over.set()
            watcher.join(timeout=5.0)
        finally:
            self._over.set()
            patience_s = 1.0 if self._interrupts > 1 else 5.0
            for child in (*self._launchers, self._coordinator):
                child.close(patience_s)
            self._end_strays(patience_s)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _make_coordinator(self, port: int) -> Child:
        log_file = self._folder / "logs" / "coordinator.log"
        command = commands.coordinator(self._folder, port, self._certs, os.getpid())
        return Child("coordinator", command, log_file, keeps=self._keeps)

    def _start_agents(self, address: str) -> None:
        config, folder = self._config, self._folder
        logs = folder / "logs"
        environment = commands.environment(config)
        if self._shape == "together":
            everybody = commands.together(config, folder, address, self._certs)
            self._launchers = [Child("agents", everybody, logs / "agents.log", environment, self._keeps)]
        else:
            self._launchers = [
                Child(
                    f"agent {n}",
                    commands.alone(config, folder, address, n, self._certs),
                    logs / f"agent-{n}.log",
                    environment,
                    self._keeps,
                )
                for n in range(config.agents)
            ]
        for child in self._launchers:
            child.start()

    def _supervise(self, address: str) -> None:
        """Until all launchers have ended: restart the coordinator, deliver interrupts, notice failures."""
        restarts = 0
        over_s: float | None = None
        self._num_starts = dict.fromkeys((child.name for child in self._launchers), 1)
        while any(child.poll() is None for child in self._launchers):
            if self._interrupts > 1:
                when = "before all agents had joined" if self._forming else "in the middle of a round"
                raise Interrupted(f"stopped {when}", hint="the same command continues the run")
            if self._coordinator_died() and restarts < MAX_COORDINATOR_RESTARTS:
                restarts += 1
                if restarts == MAX_COORDINATOR_RESTARTS:
                    log.error("the coordinator died %d times; the agents go on without one", restarts)
                log.warning("the coordinator died; starting it again (%d)", restarts)
                self._coordinator = self._make_coordinator(port=int(address.rpartition(":")[2]))
                self._coordinator.start()
            if self._interrupts == 1 and self._told != self._coordinator.pid and self._coordinator_listens():
                self._told = self._coordinator.pid
                self._coordinator.signal(signal.SIGINT)
            if self._coordinator.poll() is not None and self._run_ended():
                over_s = time.monotonic() if over_s is None else over_s
                if time.monotonic() - over_s > LATE_S:
                    break  # whoever is left came back after the end, and would wait for a coordinator for long
            elif self._shape == "per-agent" and not self._interrupts:
                self._start_dead_agents()
            self._over.wait(0.1)
        for child in self._launchers:
            if child.poll() is None:
                log.warning("%s came back after the run had ended, and is stopped", child.name)
                child.close()
        failed = [child for child in self._launchers if child.poll() != 0]
        if len(failed) == len(self._launchers) or (failed and self._shape == "together"):
            raise failed[0].failure()
        for child in failed:
            log.warning("%s ended with exit code %s; its log: %s", child.name, child.poll(), child.log)

    def _start_dead_agents(self) -> None:
        """Start agents again that were killed, while others are in their rounds: they come back to them.

        An agent that ended by itself with an error (wrong data, another model) would do so again.
        """
        alive = [child for child in self._launchers if child.poll() is None]
        for child in self._launchers:
            if child.poll() in (None, 0) or not alive or self._forming or not self._was_killed(child):
                continue
            if self._num_starts[child.name] > self._config.membership.restarts:
                continue
            log.warning("%s died; starting it again (%d)", child.name, self._num_starts[child.name])
            self._num_starts[child.name] += 1
            self._end_strays(0.0, self._launchers.index(child))  # a worker may outlive its launcher
            child.start()

    def _was_killed(self, child: Child) -> bool:
        """Whether the agent, or its launcher, ended by a signal: torchrun itself ends with 1 then, and says so."""
        code = child.poll()
        return code is not None and (code < 0 or "Signal " in child.tail(60))

    def _end_strays(self, grace_s: float, agent: int | None = None) -> None:
        """End agents of this run (or one of them) whose launcher died before them: known by what they registered."""
        strays = []
        mine = [entry for entry in processes(self._folder) if entry["time"] >= self._started]
        for entry in mine:
            if agent is not None and (entry["role"], entry["id"]) != ("agent", agent):
                continue
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process = psutil.Process(entry["pid"])
                if str(self._folder) in process.cmdline():  # the id may belong to somebody else by now
                    strays.append(process)
        end_processes(strays, grace_s)

    def _coordinator_listens(self) -> bool:
        """Whether the coordinator of this moment is up: before, a signal would only end it."""
        return any(
            entry["pid"] == self._coordinator.pid and entry["time"] >= self._started
            for entry in processes(self._folder)
        )

    def _coordinator_died(self) -> bool:
        # With an outcome it ended because the run did.
        return self._coordinator.poll() is not None and not self._run_ended()

    def _run_ended(self) -> bool:
        with Store.open(self._folder, read_only=True) as store:
            return store.outcome() is not None

    def _watch(self, address: str) -> None:
        for view in watch(address, over=self._over, credentials=self._credentials):
            self._forming = view.state == "forming"
            self._on_view(view)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._interrupts += 1
        if self._forming:
            self._interrupts += 1  # nobody is in a round that would be worth finishing
        elif self._interrupts == 1:
            log.warning("stopping after a round that all agents can reach; interrupt again to stop now")
