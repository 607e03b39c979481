"""Faults that happen to an agent as it enters a phase: killed, stalled, met by a full disk. Each happens once.

A mark in the run folder remembers what has happened, so that an agent which comes back and does the round again is
not killed by the same line of the plan for ever.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dimat.faults.plan import Fault, restarts, triggered
from dimat.files import write_atomically

log = logging.getLogger(__name__)

Hook = Callable[[int, str], None]
"""Told the round and the phase that an agent enters."""


class Killed(BaseException):
    """An agent of a simulation ends here. Not an `Exception`: nothing on the way may survive it, as nothing would."""


class Marks:
    """Which faults of a plan have happened already, as files `<folder>/faults/<place>-<kind>`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "faults"

    def happened(self, place: int, fault: Fault) -> bool:
        """Whether fault number `place` has happened."""
        return self._path(place, fault).exists()

    def mark(self, place: int, fault: Fault) -> None:
        """Write down, before it happens, that it does."""
        write_atomically(self._path(place, fault), f"{fault}\n")

    def _path(self, place: int, fault: Fault) -> Path:
        return self._folder / f"{place}-{fault.do}"


def phase_hook(
    faults: Sequence[Fault],
    agent: int,
    folder: Path,
    *,
    kill: Callable[[], None] | None = None,
    stall: Callable[[float], None] = time.sleep,
) -> Hook | None:
    """What to call whenever `agent` enters a phase; None when the plan has nothing for it.

    Args:
        faults: the run's whole plan.
        agent: whose phases these are.
        folder: the run folder, for the marks.
        kill: ends the agent; by default SIGKILL to this process, which nothing can catch or clean up after.
        stall: holds it for so many seconds.
    """
    mine = triggered(faults, agent)
    if not mine:
        return None
    marks = Marks(folder)

    def enter(round: int, phase: str) -> None:
        for place, fault in mine.items():
            assert fault.at is not None
            if (fault.at.round, fault.phase) != (round, phase) or marks.happened(place, fault):
                continue
            marks.mark(place, fault)
            log.warning("agent %d: as the fault plan says: %s", agent, fault)
            if fault.do == "kill":
                (kill or _kill_this_process)()
            elif fault.do == "stall":
                assert fault.seconds is not None
                stall(fault.seconds)
            else:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (as the fault plan says)")

    return enter


def coordinator_hook(faults: Sequence[Fault], folder: Path) -> Callable[[int], None] | None:
    """What a coordinator's process calls with the newest round reported; None when the plan lets it live.

    It dies by SIGKILL. `dimat run` starts it again; who started it otherwise does so otherwise.
    """
    planned = restarts(faults)
    if not planned:
        return None
    marks = Marks(folder)

    def reported(newest: int) -> None:
        for place, fault in planned.items():
            assert fault.at is not None
            if newest >= fault.at.round and not marks.happened(place, fault):
                marks.mark(place, fault)
                log.warning("the coordinator: as the fault plan says: %s", fault)
                _kill_this_process()

    return reported


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
