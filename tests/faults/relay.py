"""A TCP relay that behaves like a bad network: for tests where the kernel has no `tc netem`.

It stands between a client and a server, copies bytes both ways and can delay them, pass them slowly, hold them now and
then (what a lost packet looks like to those above TCP), pass nothing at all, or hang up.

    with Relay("127.0.0.1:5000", delay_s=0.05) as relay:
        dial(relay.address)
        relay.cut()          # connections are reset and new ones refused, as by a router that says so
        relay.heal()
        relay.silence()      # nothing passes and nothing is said, as with a pulled cable
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from dataclasses import dataclass, field
from typing import Self

CHUNK = 1 << 16


@dataclass
class Relay:
    """One relay; the settings may be changed while it runs.

    Attributes:
        target: HOST:PORT of the server.
        delay_s: added to every byte in each direction, without lowering the rate.
        bytes_per_s: in each direction of each connection; None: as fast as it goes.
        stall_share: of the chunks that are held; which, is drawn from `seed`.
        stall_s: how long such a chunk, and all behind it, is held.
        seed: of the stalls.
    """

    target: str
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    stall_share: float = 0.0
    stall_s: float = 0.2
    seed: int = 0
    num_bytes: int = 0
    """Passed so far, both ways together."""
    num_connections: int = 0
    address: str = ""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop, repr=False)
    _open: set[asyncio.StreamWriter] = field(default_factory=set, repr=False)
    _is_cut: bool = False

    def start(self) -> str:
        """Listen on a free port of loopback; returns HOST:PORT."""
        self._random = random.Random(self.seed)
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self.address = self._call(self._listen())
        return self.address

    def cut(self) -> None:
        """Reset all connections, refuse new ones."""
        self._is_cut = True
        self._call(self._reset())

    def silence(self) -> None:
        """Pass nothing from now on; connections stay open and are taken."""
        self._call(self._set_passing(False))

    def heal(self) -> None:
        """As if nothing had been."""
        self._is_cut = False
        self._call(self._set_passing(True))

    def close(self) -> None:
        """Hang up and free the port."""
        self._is_cut = True
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------- on the loop

    def _call(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> str:
        self._passing = asyncio.Event()
        self._passing.set()
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _set_passing(self, passing: bool) -> None:
        self._passing.set() if passing else self._passing.clear()

    async def _reset(self) -> None:
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _shut(self) -> None:
        self._server.close()
        await self._reset()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        host, _, port = self.target.rpartition(":")
        try:
            if self._is_cut:
                return
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return
        else:
            self._open |= {writer, there_writer}
            # Cancelled only by `_shut`: a handler that ends as cancelled makes asyncio print a traceback.
            with contextlib.suppress(asyncio.CancelledError):
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, there_writer))
                    both.create_task(self._pump(there_reader, writer))
            there_writer.transport.abort()
            self._open -= {writer, there_writer}
        finally:
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy one direction: one task reads and stamps, one waits until each chunk is due."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def take() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(CHUNK):
                    await line.put((self._loop.time() + self.delay_s, data))
            await line.put((0.0, b""))

        taking = self._loop.create_task(take())
        free_at = 0.0
        try:
            while (item := await line.get())[1]:
                due, data = item
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                free_at = max(free_at, due)
                if self.stall_share and self._random.random() < self.stall_share:
                    await asyncio.sleep(self.stall_s)
                    free_at = self._loop.time()
                free_at = await self._write(writer, data, free_at)
            writer.write_eof()
        except OSError:
            pass
        finally:
            taking.cancel()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, free_at: float) -> float:
        """Pass `data` on once the line is free, which is `free_at`; returns when it is free again.

        By the clock, not by pauses: those last longer than they should on a busy machine, and that would add up.
        """
        piece = CHUNK if self.bytes_per_s is None else max(1, int(self.bytes_per_s / 50))
        for start in range(0, len(data), piece):
            if not self._passing.is_set():
                await self._passing.wait()
                free_at = self._loop.time()
            part = data[start : start + piece]
            writer.write(part)
            await writer.drain()
            self.num_bytes += len(part)
            if self.bytes_per_s is not None:
                free_at += len(part) / self.bytes_per_s
                await asyncio.sleep(max(0.0, free_at - self._loop.time()))
        return free_at
