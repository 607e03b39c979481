"""How fast a state dict travels over loopback, against a bare gRPC byte stream, and what the reader's memory pays.

    python benchmarks/transport.py              100 MB and 1 GB, five alternating runs each
    python benchmarks/transport.py --smoke      8 MB, two runs: does it work

The bare stream is what gRPC alone can do: raw handlers, messages of 2 MiB, copied into a buffer that is used again, no
digests, no checks, no schema. It is served twice, by gRPC's asyncio and by its threads, and the faster median counts.
One process serves all of them and another reads all of them, one run each in turn.

The reader's extra memory is the peak of its resident set during its first fetch beyond what it had before the buffer
was made: the buffer itself counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from dimat.messages import Header, Payload, Schema, TensorSpec
from dimat.transport.base import Buffer, Fetch
from dimat.transport.grpc import GrpcTransport
from dimat.transport.grpc.loop import LoopThread

MB = 1_000_000
MIN_RATIO = 0.6
MESSAGE_BYTES = 2 << 20
RESULTS = Path(__file__).parent / "results" / "transport.json"
METHOD = "/bare.Bytes/Stream"


def schema(num_bytes: int) -> Schema:
    """Square layers of 4 MiB, each with the four small tensors of a norm, up to about `num_bytes`."""
    side = 1024 if num_bytes >= 50 * MB else 256
    specs = []
    for layer in range(max(1, round(num_bytes / (4 * side * (side + 4))))):
        specs.append(TensorSpec(f"layers.{layer}.weight", "float32", (side, side)))
        names = ("weight", "bias", "running_mean", "running_var")
        specs += [TensorSpec(f"layers.{layer}.norm.{name}", "float32", (side,)) for name in names]
    return Schema(tuple(specs))


# --------------------------------------------------------------------------------------------------- the serving side


def serve(num_bytes: int) -> None:
    """Publish a state dict and serve the same bytes barely; prints the addresses and waits to be told to end."""
    import torch

    from dimat.snapshot.encode import encode

    model = schema(num_bytes)
    generator = torch.Generator().manual_seed(0)
    state = {spec.name: torch.randn(spec.shape, generator=generator) for spec in model.tensors}
    payload = encode(state, Header("snapshot", 1, agent=0))
    del state
    ours = GrpcTransport(0, "benchmark", model)
    ours_address = ours.start()
    ours.publish(payload)
    bare = memoryview(np.concatenate([np.frombuffer(tensor.data, np.uint8) for tensor in payload.tensors]))
    loop = LoopThread.acquire()
    aio_server, aio_port = loop.run(serve_aio(bare))
    sync_server, sync_port = serve_sync(bare)
    print(json.dumps({"ours": ours_address, "aio": f"127.0.0.1:{aio_port}", "sync": f"127.0.0.1:{sync_port}"}))
    sys.stdout.flush()
    sys.stdin.read()
    sync_server.stop(1.0).wait()
    loop.run(aio_server.stop(1.0))
    loop.release()
    ours.close()


def generic(handler: Any) -> grpc.GenericRpcHandler[Any, Any]:
    service, method = METHOD.strip("/").split("/")
    return grpc.method_handlers_generic_handler(service, {method: grpc.unary_stream_rpc_method_handler(handler)})


async def serve_aio(data: memoryview) -> tuple[grpc.aio.Server, int]:
    async def stream(request: bytes, context: Any) -> None:
        for start in range(0, len(data), MESSAGE_BYTES):
            await context.write(bytes(data[start : start + MESSAGE_BYTES]))

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((generic(stream),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


def serve_sync(data: memoryview) -> tuple[grpc.Server, int]:
    def stream(request: bytes, context: Any) -> Any:
        for start in range(0, len(data), MESSAGE_BYTES):
            yield bytes(data[start : start + MESSAGE_BYTES])

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((generic(stream),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


# --------------------------------------------------------------------------------------------------- the reading side


class Ours:
    """A fetch with everything that belongs to it: announcement, schema, digests, finite numbers, acknowledgement."""

    def __init__(self, address: str, model: Schema) -> None:
        self.transport = GrpcTransport(1, "benchmark", model)
        self.transport.start()
        self.transport.connect({0: address})
        self.transport.describe(0, timeout_s=60)
        self.model = model
        self.buffer: Buffer | None = None

    def read(self) -> None:
        """Fetch once; the first time makes the buffer."""
        self.buffer = self.buffer or Buffer(self.model)
        answer = self.transport.gather((Fetch(0, "snapshot", 1, self.buffer),), timeout_s=300)[0]
        if not isinstance(answer, Payload):
            raise answer


class BareAio:
    """The bare stream read by asyncio."""

    def __init__(self, address: str, num_bytes: int) -> None:
        self.loop = LoopThread.acquire()
        self.channel = self.loop.run(self.dial(address))
        self.buffer = memoryview(np.zeros(num_bytes, np.uint8))

    async def dial(self, address: str) -> grpc.aio.Channel:
        """A channel of the loop's."""
        return grpc.aio.insecure_channel(address)

    async def stream(self) -> int:
        """Copy every message; returns how many bytes came."""
        call: Any = self.channel.unary_stream(METHOD)(b"")
        end = 0
        while (message := await call.read()) is not grpc.aio.EOF:
            self.buffer[end : end + len(message)] = message
            end += len(message)
        return end

    def read(self) -> None:
        """Read once."""
        assert self.loop.run(self.stream()) == len(self.buffer)


class BareSync:
    """The bare stream read by an ordinary iterator."""

    def __init__(self, address: str, num_bytes: int) -> None:
        self.channel = grpc.insecure_channel(address)
        self.buffer = memoryview(np.zeros(num_bytes, np.uint8))

    def read(self) -> None:
        """Read once."""
        end = 0
        for message in self.channel.unary_stream(METHOD)(b""):
            self.buffer[end : end + len(message)] = message
            end += len(message)
        assert end == len(self.buffer)


def resident(field: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(num_bytes: int, num_runs: int) -> dict[str, Any]:
    """One row of the table, with a serving process of its own."""
    command = [sys.executable, __file__, "--serve", str(num_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        addresses = json.loads(server.stdout.readline())
        model = schema(num_bytes)
        ours = Ours(addresses["ours"], model)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        ours.read()
        extra = resident("VmHWM") - before
        readers: dict[str, Any] = {
            "ours": ours,
            "aio": BareAio(addresses["aio"], model.num_bytes),
            "sync": BareSync(addresses["sync"], model.num_bytes),
        }
        seconds: dict[str, list[float]] = {name: [] for name in readers}
        for run in range(num_runs + 1):
            for name, reader in readers.items():
                start = time.perf_counter()
                reader.read()
                if run:  # the first is for warming up
                    seconds[name].append(time.perf_counter() - start)
        ours.transport.close()
        server.communicate()
    rate = {name: model.num_bytes / MB / statistics.median(times) for name, times in seconds.items()}
    return {
        "payload_bytes": model.num_bytes,
        "num_tensors": len(model.tensors),
        "rate_mb_per_s": rate,
        "ratio": rate["ours"] / max(rate["aio"], rate["sync"]),
        "extra_peak_bytes": extra,
        "extra_peak_per_payload": extra / model.num_bytes,
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="8 MB only, two runs, no file unless --out is given")
    parser.add_argument("--out", type=Path, help=f"where the JSON goes (default {RESULTS.name} beside this script)")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return 0
    rows = []
    print(f"{'payload':>10} {'ours':>10} {'bare aio':>10} {'bare sync':>10} {'ratio':>6} {'extra peak':>11}")
    for num_bytes, num_runs in [(8 * MB, 2)] if arguments.smoke else [(100 * MB, 5), (1000 * MB, 5)]:
        # A reader of its own for each size: memory that an earlier one gave back would hide what this one takes.
        command = [sys.executable, __file__, "--measure", str(num_bytes), str(num_runs)]
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
        rates = row["rate_mb_per_s"]
        print(
            f"{row['payload_bytes'] / MB:7.0f} MB {rates['ours']:5.0f} MB/s {rates['aio']:5.0f} MB/s "
            f"{rates['sync']:5.0f} MB/s {row['ratio']:6.2f} {row['extra_peak_bytes'] / MB:8.0f} MB",
            flush=True,
        )
        rows.append(row)
    out = arguments.out or (None if arguments.smoke else RESULTS)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        machine = {
            "machine": platform.machine(),
            "num_cores": os.cpu_count(),
            "load_1min": os.getloadavg()[0],
            "python": platform.python_version(),
            "grpcio": grpc.__version__,
        }
        out.write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")
    return 0 if arguments.smoke else check(rows)


def check(rows: list[dict[str, float]]) -> int:
    """Say which claims hold; 1 when one does not."""
    failed = 0
    for row in rows:
        size, extra = row["payload_bytes"], row["extra_peak_bytes"]
        most = 1.25 * size if size > 500 * MB else size + 64 * MB
        for claim, holds in (
            (
                f"{size / MB:.0f} MB: {row['ratio']:.2f} of the bare stream's rate, at least {MIN_RATIO}",
                row["ratio"] >= MIN_RATIO,
            ),
            (f"{size / MB:.0f} MB: {extra / MB:.0f} MB of extra memory, at most {most / MB:.0f} MB", extra <= most),
        ):
            print(f"{'holds ' if holds else 'FAILS '} {claim}")
            failed += not holds
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
