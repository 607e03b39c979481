"""What gRPC's core would write to stderr by itself."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from dimat.transport.grpc import GrpcTransport  # before anybody imports grpc, as every command does
import grpc
from concurrent.futures import ThreadPoolExecutor

for _ in range(20):  # cut a stream off, which the core remarks upon most of the times
    def stream(request, context):
        yield b"x"
        context.is_active() and __import__("time").sleep(0.02)
        yield b"y"

    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", {"b": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    call = channel.unary_stream("/a/b")(b"")
    next(call)
    server.stop(None)
    try:
        list(call)
    except grpc.RpcError:
        pass
    channel.close()
"""


def test_a_neighbour_that_leaves_is_no_noise() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
