"""One asyncio loop in one thread for everything of this process that speaks gRPC.

gRPC's asyncio objects belong to the loop of the thread that made them, and loops of several threads share one
completion queue badly; so an agent's server, its channels and its line to the coordinator share this loop. Training
runs in other threads: torch kernels release the interpreter while they compute. The thread starts with the first user
and ends with the last, so a process that forks its data workers before `start()` forks no gRPC.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """A running event loop in a daemon thread; obtained by `acquire`, given back by `release`."""

    _lock = threading.Lock()
    _shared: LoopThread | None = None
    _num_users = 0

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="dimat-grpc", daemon=True)

    @classmethod
    def acquire(cls) -> LoopThread:
        """The process's loop, started when this is its first user."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
                cls._shared._thread.start()
            cls._num_users += 1
            return cls._shared

    def release(self) -> None:
        """One user less; the last one ends the thread."""
        with self._lock:
            LoopThread._num_users -= 1
            if LoopThread._num_users:
                return
            LoopThread._shared = None
        self.run(self._drain())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` on the loop while this thread waits; an interrupt of this thread cancels it.

        Raises:
            RuntimeError: this is the loop's own thread, which would wait for itself for ever.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("the loop's thread cannot wait for the loop")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Do `work` on the loop while this thread goes on; cancelling the future cancels it there.

        What is cancelled does not go on once anything is done on the loop that this thread asks for later.
        """
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Begin `work` on the loop; must be called on the loop."""
        return self.loop.create_task(work)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _drain(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_default_executor()
