"""Child processes: each in a session of its own, its output in a log file, ended with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from dimat.errors import DimatError
from dimat.runfolder import processes


class Child:
    """One process that was started here.

    Args:
        name: what to call it in messages.
        command: the program and its arguments.
        log: the file that its output is appended to.
        environment: variables on top of this process's own.
        keeps: file descriptors that it inherits, such as a lock that shall last as long as it does.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        keeps: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._keeps = tuple(keeps)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again); its output is appended to the log.

        A session of its own keeps the terminal's Ctrl-C away from it: the parent decides what an interrupt means.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                pass_fds=self._keeps,
            )

    def start_and_ask(self, folder: Path, timeout_s: float = 30.0) -> str:
        """Start it and wait until it has written its address into the run folder's `processes.json`.

        Raises:
            DimatError: it ended instead, or took longer than `timeout_s` seconds.
        """
        started = time.time()
        self.start()
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for entry in processes(folder):
                # Process ids come back: an entry of an earlier life is not this one's.
                if entry["pid"] == self.pid and entry["time"] >= started:
                    return str(entry["address"])
            if self.poll() is not None:
                raise self.failure()
            time.sleep(0.02)  # the address comes as a file
        raise DimatError(f"{self.name} did not say where it listens within {timeout_s:.0f} s; its log: {self.log}")

    def failure(self) -> DimatError:
        """What to tell the user when the process ended as it should not."""
        return DimatError(f"{self.name} ended with exit code {self.poll()}; the end of {self.log}:\n{self.tail()}")

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send `number` to the process alone."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code once it has ended; None if it still runs after `timeout_s` seconds."""
        assert self._process is not None, "not started"
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def close(self, grace_s: float = 5.0) -> None:
        """End the process and everything it started: SIGTERM to each, SIGKILL after `grace_s` seconds.

        torchrun gives every worker a session of its own, so signalling a process group would miss them.
        """
        if self._process is None:
            return
        try:
            leader = psutil.Process(self._process.pid)
            family = [*leader.children(recursive=True), leader]
        except psutil.NoSuchProcess:
            family = []
        end_processes(family, grace_s)
        self._process.poll()

    def tail(self, num_lines: int = 20) -> str:
        """The last lines of its log."""
        if not self.log.is_file():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])


def end_processes(processes: Sequence[psutil.Process], grace_s: float) -> None:
    """SIGTERM to each, SIGKILL to those that are still there after `grace_s` seconds."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=grace_s)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5.0)
