"""A gRPC server on the process's loop: where it listens, what it is called from outside, how it ends.

Plain text stays on loopback unless somebody says otherwise aloud; an address that cannot be had is a usage error that
names it, before anything is served.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dimat.errors import UsageError
from dimat.transport.grpc import options
from dimat.transport.grpc.admission import Admission, open_to_all
from dimat.transport.grpc.channels import check_exposure, server_credentials
from dimat.transport.grpc.loop import LoopThread
from dimat.transport.grpc.ping import TimedHealth
from dimat.transport.security import Credentials

GRACE_S = 1.0
"""How long calls that are under way may go on when the server closes."""


class GrpcServer:
    """Serves method handlers, and the standard health service for them.

    Args:
        services: method handlers by service and method name.
        bind: the address to listen on; loopback unless `insecure`.
        port: 0 lets the system choose.
        advertise: HOST or HOST:PORT that others dial, where it differs from `bind`.
        insecure: allow plain text beyond loopback.
        credentials: who serves here; with them plain text is neither spoken nor understood.
        admission: what each call passes before its handler sees it.
        max_message_bytes: messages above are refused unread.
    """

    def __init__(
        self,
        services: Mapping[str, Mapping[str, grpc.RpcMethodHandler[Any, Any]]],
        *,
        bind: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        insecure: bool = False,
        credentials: Credentials | None = None,
        admission: Admission | None = None,
        max_message_bytes: int = options.MAX_MESSAGE_BYTES,
    ) -> None:
        self._services = services
        self._bind = bind
        self._port = port
        self._advertise = advertise
        self._insecure = insecure
        self._credentials = credentials
        self._admission = admission or Admission(open_to_all(services))
        self._max_message_bytes = max_message_bytes
        self._loop: LoopThread | None = None
        self._server: grpc.aio.Server | None = None
        self._health: Any = None

    def start(self) -> str:
        """Listen; returns the address that others dial.

        Raises:
            UsageError: plain text beyond loopback without leave, an address that others cannot dial, a port in use.
        """
        check_exposure(self._bind, self._insecure, self._credentials)
        if self._advertise is None and _is_wildcard(self._bind):
            raise UsageError(
                f"bind {self._bind!r} listens on every interface, and no single address follows from it",
                hint="say what others shall dial: advertise=HOST",
            )
        probe(self._bind, self._port)
        self._loop = LoopThread.acquire()
        try:
            port = self._loop.run(self._start())
        except BaseException:
            self._loop.release()
            self._loop = None
            raise
        advertise = self._advertise or self._bind
        return advertise if _has_port(advertise) else _join(advertise, port)

    def close(self, grace_s: float = GRACE_S) -> None:
        """Stop serving and free the port; calls under way may end within `grace_s` seconds."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.run(self._stop(grace_s))
            loop.release()

    async def _start(self) -> int:
        server = grpc.aio.server(
            interceptors=(self._admission,),
            options=(*options.SERVER, ("grpc.max_receive_message_length", self._max_message_bytes)),
        )
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, dict(methods)) for name, methods in self._services.items())
        )
        self._health = TimedHealth()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        for name in ("", *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        try:
            address = _join(self._bind, self._port)
            if self._credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, server_credentials(self._credentials))
        except RuntimeError as error:  # somebody took the port between the probe and now
            raise UsageError(f"cannot listen on {address}: {error}") from None
        await server.start()
        self._server = server
        return port

    async def _stop(self, grace_s: float) -> None:
        assert self._server is not None
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        self._server = None


def probe(bind: str, port: int) -> None:
    """Find out in plain words whether an address can be had: gRPC's own error does not say why.

    Raises:
        UsageError: the port is in use, the address is not one of this machine's, or there is no leave to use it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)  # without it a port that another process listens on may still be bound
    except OSError as error:
        raise UsageError(
            f"cannot listen on {_join(bind, port)}: {error.strerror or error}",
            hint="port 0 takes any that is free" if port else None,
        ) from None


def method_handlers(service: Any, handlers: Mapping[str, Any]) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Handlers by method name, with the messages that the service's descriptor names.

    Args:
        service: a protobuf service descriptor.
        handlers: an async function per method; a method that streams gets an async generator.
    """
    from google.protobuf.message_factory import GetMessageClass

    table: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for name, handler in handlers.items():
        method = service.methods_by_name[name]
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        table[name] = make(
            handler,
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return table


def _is_wildcard(bind: str) -> bool:
    return bind in ("", "0.0.0.0", "::", "[::]")


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _has_port(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return bool(colon) and port.isdigit() and (":" not in host or host.endswith("]"))


__all__: Sequence[str] = ("GRACE_S", "GrpcServer", "check_exposure", "method_handlers", "probe")
