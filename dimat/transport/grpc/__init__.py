"""The wire over gRPC: `GrpcTransport` between agents; `GrpcControl`, `serve_coordinator`, `watch` for a coordinator."""

import os

# gRPC's core writes to stderr on its own, for instance whenever a neighbour leaves. It reads this once, on import.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from dimat.transport.grpc.admission import Limits
from dimat.transport.grpc.control import GrpcControl
from dimat.transport.grpc.coordinator_server import CoordinatorServer, serve_coordinator
from dimat.transport.grpc.peer import GrpcTransport
from dimat.transport.grpc.reach import await_coordinator
from dimat.transport.grpc.watch import watch

__all__ = [
    "CoordinatorServer",
    "GrpcControl",
    "GrpcTransport",
    "Limits",
    "await_coordinator",
    "serve_coordinator",
    "watch",
]
