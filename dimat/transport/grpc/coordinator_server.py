"""The coordinator's gRPC service in front of a `ControlHandler`.

Handlers write to disk and may sleep, so they run in a few threads beside the loop. Onlookers, however many, are served
by one more thread that asks the handler for the next view and gives it to all of them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from dimat import messages
from dimat.messages import View
from dimat.proto.v1 import coordinator_pb2
from dimat.transport.base import ControlHandler
from dimat.transport.grpc import convert
from dimat.transport.grpc.admission import Admission, Limits
from dimat.transport.grpc.callers import coordinator_rules
from dimat.transport.grpc.errors import guarded
from dimat.transport.grpc.server import GRACE_S, GrpcServer, method_handlers
from dimat.transport.security import Credentials

SERVICE = "dimat.v1.Coordinator"
NUM_THREADS = 4
LOOK_S = 0.2
"""The view-watching thread looks this often whether it shall end."""

log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class CoordinatorServer:
    """Serves a handler; `start()` returns the address, `close()` ends it. Made by `serve_coordinator`."""

    def __init__(self, handler: ControlHandler, server_options: Mapping[str, Any]) -> None:
        self._handler = handler
        self._threads: ThreadPoolExecutor | None = None
        self._views = _Views(handler)
        service = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"]
        methods = {
            "Join": guarded(self._unary(messages.Join, handler.join)),
            "Heartbeat": guarded(self._unary(messages.Heartbeat, handler.heartbeat)),
            "Report": guarded(self._unary(messages.Report, handler.report)),
            "Drain": guarded(self._unary(messages.Drain, handler.drain)),
            "Watch": guarded(self._watch),
        }
        self._server = GrpcServer({SERVICE: method_handlers(service, methods)}, **server_options)

    def start(self) -> str:
        """Listen; returns the address that agents dial.

        Raises:
            UsageError: a port in use, an address that is not this machine's, plain text beyond loopback.
        """
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="dimat-coordinator")
        self._views.start()
        try:
            return self._server.start()
        except BaseException:
            self.close()
            raise

    def close(self, grace_s: float = GRACE_S) -> None:
        """End all watches, answer what was asked, free the port; a second call does nothing."""
        threads, self._threads = self._threads, None
        if threads is not None:
            self._views.close()
            self._server.close(grace_s)
            threads.shutdown()

    def _unary(self, kind: type[Any], call: Callable[[Any], Any]) -> Callable[[Any, Context], Any]:
        async def answer(request: Any, context: Context) -> Any:
            del context
            value = convert.from_proto(kind, request)
            return convert.to_proto(await asyncio.get_running_loop().run_in_executor(self._threads, call, value))

        return answer

    async def _watch(self, request: coordinator_pb2.WatchRequest, context: Context) -> None:
        seen = request.after
        while (view := await self._views.after(seen)) is not None:
            await context.write(convert.to_proto(view))
            if view.state == "done":
                return
            seen = view.number
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator is closing")


class _Views:
    """The newest view, kept by one thread for any number of coroutines."""

    def __init__(self, handler: ControlHandler) -> None:
        self._handler = handler
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._view: View | None = None
        self._sleepers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._follow, name="dimat-views", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._wake()
        if self._thread is not None:
            self._thread.join()

    async def after(self, number: int) -> View | None:
        """The newest view, once its number is above `number`; None when the server closes."""
        sleeper = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._sleepers.add(sleeper)
        try:
            while not self._closing.is_set():
                if self._view is not None and self._view.number > number:
                    return self._view
                await sleeper[1].wait()
                sleeper[1].clear()
            return None
        finally:
            with self._lock:
                self._sleepers.discard(sleeper)

    def _follow(self) -> None:
        number = -1
        while not self._closing.is_set():
            try:
                view = self._handler.changed(number, LOOK_S)
            except Exception:
                log.exception("the next view could not be made")
                self._closing.wait(LOOK_S)
                continue
            if view.number > number:
                number, self._view = view.number, view
                self._wake()

    def _wake(self) -> None:
        with self._lock:
            for loop, event in self._sleepers:
                loop.call_soon_threadsafe(event.set)


def serve_coordinator(
    handler: ControlHandler,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    advertise: str | None = None,
    insecure: bool = False,
    credentials: Credentials | None = None,
    limits: Limits | None = None,
) -> CoordinatorServer:
    """A server in front of `handler`, not yet started.

    Args:
        handler: what answers; called from several threads.
        host: address to listen on; loopback unless `insecure`.
        port: 0 lets the system choose.
        advertise: HOST or HOST:PORT that agents dial, where it differs from `host`.
        insecure: allow plain text beyond loopback.
        credentials: proves to agents that this is the coordinator; with them nothing is plain text, agents speak for
            themselves alone, and whoever looks on needs an identity too.
        limits: what each caller may ask.
    """
    settings = {"bind": host, "port": port, "advertise": advertise, "insecure": insecure, "credentials": credentials}
    return CoordinatorServer(handler, {**settings, "admission": Admission(coordinator_rules(), limits)})
