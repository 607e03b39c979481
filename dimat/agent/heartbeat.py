"""Tell the coordinator every second that this agent lives, from a thread of its own; hear what it decided."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dimat.agent.status import Status
from dimat.messages import Directive, Heartbeat
from dimat.transport.base import Control

INTERVAL_S = 1.0


class Pulse:
    """Sends heartbeats between `start` and `close`; `on_directive` gets each answer, in a thread of its own."""

    def __init__(
        self, agent: int, session: str, status: Status, control: Control, on_directive: Callable[[Directive], object]
    ) -> None:
        self._on_directive = on_directive
        self._agent = agent
        self._session = session
        self._status = status
        self._control = control
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, error: str = "", *, silently: bool = False) -> None:
        """Say goodbye: done, or failed because of `error`; `silently` where this agent is about to be started again."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * INTERVAL_S)
        if not silently:
            self._beat(done=True, error=error)

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            self._on_directive(self._beat())

    def _beat(self, *, done: bool = False, error: str = "") -> Directive:
        status = self._status
        return self._control.heartbeat(
            Heartbeat(
                agent=self._agent,
                session=self._session,
                round=status.round,
                phase=status.phase,
                waiting=status.waiting,
                wants_stop=status.stop_asked,
                done=done,
                error=error,
            )
        )
