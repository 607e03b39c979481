"""Interrupts as a list to look at: the first asks for an end, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Signals:
    """SIGINT and SIGTERM since `listen` began, by name; `arrived` is set by each."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.arrived = threading.Event()

    @contextmanager
    def listen(self) -> Iterator[Signals]:
        """Take the signals over from whoever had them; outside of the main thread there are none to take."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # No lock, no disk: the main loop does the work.
        del frame
        self.names.append(signal.Signals(number).name)
        self.arrived.set()
