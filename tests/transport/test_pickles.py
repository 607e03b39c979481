"""Pickles over the wire, in every message and frame: nobody unpickles them, and servers go on serving."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from dimat.errors import DimatError, PayloadError
from dimat.messages import Directive, Header, Heartbeat, Join, Payload, Tensor, TensorSpec, View, digest
from dimat.proto.v1 import continual_pb2, coordinator_pb2, peer_pb2
from dimat.transport.base import Buffer, Fetch
from dimat.transport.continual import LedgerStatus
from dimat.transport.grpc import GrpcControl, GrpcTransport, serve_coordinator
from dimat.transport.grpc.continual_client import ContinualClient
from dimat.transport.grpc.continual_server import ContinualServer
from dimat.transport.grpc.frames import data_frame
from dimat.transport.grpc.server import GrpcServer


class Gadget:
    """Unpickling it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "unpickled"
    assert not (tmp_path / "unpickled").exists(), "a gadget was unpickled"


def gadgets(mark: Path) -> list[bytes]:
    return [pickle.dumps(Gadget(mark), protocol) for protocol in (0, 2, 4, 5)]


def payload(data: bytes = bytes(64)) -> Payload:
    spec = TensorSpec("w", "uint8", (len(data),))
    return Payload(Header("snapshot", 1, 0), (Tensor(spec, memoryview(data), digest(data)),))


class Handler:
    """A coordinator and a ledger that notes what it is asked."""

    schema = payload().schema

    def join(self, join: Join) -> View:
        return View(1, "running")

    def heartbeat(self, beat: Heartbeat) -> Directive:
        return Directive(beat.round)

    report = heartbeat

    def drain(self, drain: Any) -> Directive:
        raise AssertionError("a pickle was taken for a wish")

    def changed(self, after: int, timeout_s: float) -> View:
        return View(1, "done")

    def status(self) -> LedgerStatus:
        return LedgerStatus("mean", "{}", "", "", 0, 0, 0.0, 0, (), 1)

    def begin(self, offer: Any, peer: str) -> Any:
        raise AssertionError("a pickle was taken for an offer")

    def merged(self, digest: str) -> Any:
        raise AssertionError("a pickle was taken for a question")


def test_the_gadget_works_over_the_wire_where_a_server_unpickles(tmp_path: Path) -> None:
    """The positive control: the same bytes, the same server, and a handler that does what none of dimat's does."""

    async def unpickle(request: bytes, context: Any) -> bytes:
        pickle.loads(request)
        return b""

    server = GrpcServer({"lab.Service": {"Say": grpc.unary_unary_rpc_method_handler(unpickle)}})
    with grpc.insecure_channel(server.start()) as channel:
        assert not (tmp_path / "unpickled").exists()
        channel.unary_unary("/lab.Service/Say")(gadgets(tmp_path / "unpickled")[0], timeout=5)
    assert (tmp_path / "unpickled").is_dir()
    server.close()


def test_every_method_of_every_service_refuses_pickles(mark: Path) -> None:
    servers: list[Any] = [
        (GrpcTransport(0, "s", payload().schema), peer_pb2),
        (serve_coordinator(Handler()), coordinator_pb2),
        (ContinualServer(Handler()), continual_pb2),  # type: ignore[arg-type]
    ]
    for server, module in servers:
        with grpc.insecure_channel(server.start()) as channel:
            for service in module.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    name = f"/{service.full_name}/{method.name}"
                    for raw in gadgets(mark):
                        make = channel.stream_stream if method.client_streaming else channel.unary_stream
                        call = make(name)
                        with pytest.raises(grpc.RpcError) as caught:
                            list(call(iter([raw]) if method.client_streaming else raw, timeout=10))
                        refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS)
                        assert caught.value.code() in refused, name
                        assert not mark.exists(), name
        server.close()


@pytest.mark.parametrize("where", ["first frame", "data frame", "instead of data"])
def test_a_peer_that_serves_pickles_is_refused(scripted_peer: Any, mark: Path, where: str) -> None:
    for raw in gadgets(mark):

        def script(number: int, right: list[bytes], raw: bytes = raw) -> list[bytes]:
            return {
                "first frame": [raw],
                "data frame": [right[0], raw],
                "instead of data": [right[0], data_frame(0, [memoryview(raw.ljust(64, b"\0")[:64])])],
            }[where]

        with scripted_peer(payload(), script) as (_, reader):
            answer = reader.gather((Fetch(0, "snapshot", 1, Buffer(payload().schema)),), 10.0)[0]
        assert isinstance(answer, PayloadError)
        assert not mark.exists()


def test_a_tensor_whose_bytes_are_a_pickle_is_numbers(scripted_peer: Any, mark: Path) -> None:
    from dimat.snapshot.encode import decode

    for raw in gadgets(mark):
        sent = payload(raw)
        with scripted_peer(sent, lambda number, right: right) as (_, reader):
            answer = reader.gather((Fetch(0, "snapshot", 1, Buffer(sent.schema)),), 10.0)[0]
            assert np.array_equal(decode(answer)["w"].numpy(), np.frombuffer(raw, np.uint8))


def test_servers_that_answer_pickles_are_refused(mark: Path) -> None:
    """A coordinator and a ledger that lie to those who call them."""
    for raw in gadgets(mark):

        async def lie(request: bytes, context: Any, raw: bytes = raw) -> bytes:
            return raw

        handler = grpc.unary_unary_rpc_method_handler(lie)
        names = {"dimat.v1.Coordinator": ("Join", "Heartbeat", "Report"), "dimat.v1.Continual": ("Status",)}
        server = GrpcServer({service: dict.fromkeys(methods, handler) for service, methods in names.items()})
        address = server.start()
        control = GrpcControl(address, retry_s=0.05)
        with pytest.raises(DimatError):
            control.join(Join(0, "s", "h:1", "f", 4), timeout_s=0.3)
        assert control.heartbeat(Heartbeat(0, "s", 1, "train")) == Directive()
        with pytest.raises(DimatError):
            ContinualClient(address, timeout_s=0.3).status()
        control.close(timeout_s=0.0)
        server.close()
        assert not mark.exists()
