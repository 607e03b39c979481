"""What the tests of a served ledger share: small models, a server in this process, and clients that misbehave."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import torch

from dimat.continual import Ledger
from dimat.continual.outgoing import OutgoingModel
from dimat.continual.service import ContinualService
from dimat.modelfile import open_model, write_model
from dimat.modelfile.pieces import lay_out, write_pieces
from dimat.proto.v1 import continual_pb2
from dimat.transport.continual import Offer, model_digest
from dimat.transport.grpc import convert
from dimat.transport.grpc.continual_gate import Limits
from dimat.transport.grpc.continual_server import ContinualServer
from dimat.transport.grpc.frames import data_frame

DEADLINE_S = 100.0


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A small model with everything that is odd: a matrix, a vector, a scalar, a counter, an empty tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "fc.weight": torch.randn(24, 16, generator=generator).to(dtype),
        "fc.bias": torch.randn(24, generator=generator).to(dtype),
        "scale": torch.randn((), generator=generator).to(dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
        "steps": torch.tensor(7),
    }


def model(folder: Path, name: str, seed: int, dtype: torch.dtype = torch.float32, **changes: torch.Tensor) -> Path:
    """A model file of that state; `changes` by tensor name, with two underscores for a dot."""
    path = folder / f"{name}.safetensors"
    write_model(path, state(seed, dtype) | {key.replace("__", "."): value for key, value in changes.items()})
    return path


def hugging_face(folder: Path, seed: int) -> Path:
    """A model of that state as a folder of several shards."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "x"}')
    tensors = state(seed)
    shapes = {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()}
    layout = lay_out(shapes, is_folder=True, shard_bytes=800)
    write_pieces(folder, layout, (tensors[name] for name in layout.names), {})
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def ledger(folder: Path, method: str = "opcm", name: str = "ledger") -> Ledger:
    """An empty ledger; OPCM, for which the order of arrival matters, unless said otherwise."""
    base = folder / "base.safetensors"
    if not base.exists():
        write_model(base, state(0), metadata={"format": "pt"})
    return Ledger.create(folder / name, base, method)


@contextmanager
def served(
    at: Ledger,
    port: int = 0,
    *,
    limits: Limits | None = None,
    around: Callable[[Any], Any] = lambda service: service,
    **options: Any,
) -> Iterator[str]:
    """A served ledger; the address. `around` may wrap the handler."""
    service = ContinualService(at, **options)
    service.start()
    server = ContinualServer(around(service), port=port, limits=limits, frame_bytes=1 << 10)
    try:
        yield server.start()
    finally:
        service.stop()
        server.close(grace_s=0.1)


def offer_of(path: Path, **changes: Any) -> tuple[Offer, bytes]:
    """What is said of a model, and all its bytes; `changes` lie."""
    outgoing = OutgoingModel.open(open_model(path))
    checksums = outgoing.checksums()
    offer = Offer(
        model_digest(outgoing.tensors, checksums), outgoing.tensors, checksums, path.stem, session=f"of {path.stem}"
    )
    data = outgoing.read(0, outgoing.num_bytes)
    outgoing.close()
    return replace(offer, **changes), data


@dataclass(slots=True)
class Talk:
    """One Submit call, frame by frame."""

    frames: queue.SimpleQueue[bytes | None]
    call: Any

    def send(self, position: int, data: bytes) -> None:
        self.frames.put(data_frame(position, [memoryview(data)]))

    def hear(self) -> Any:
        """The next answer that is no mere repetition of `waiting`."""
        while (answer := next(self.call)).state == continual_pb2.SUBMIT_STATE_WAITING:
            pass
        return answer

    def refused(self) -> grpc.RpcError:
        """The status that ends the call, whatever is answered before."""
        try:
            while True:
                next(self.call)
        except grpc.RpcError as error:
            return error


@contextmanager
def talking(address: str, first: Offer | bytes) -> Iterator[Talk]:
    """A Submit call by hand; at the end it is cut, as when the network goes."""
    frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    if isinstance(first, Offer):
        first = continual_pb2.SubmitFrame(offer=convert.to_proto(first)).SerializeToString()
    frames.put(first)
    with grpc.insecure_channel(address) as channel:
        stub = channel.stream_stream(
            "/dimat.v1.Continual/Submit", response_deserializer=continual_pb2.SubmitAnswer.FromString
        )
        call = stub(iter(frames.get, None), timeout=DEADLINE_S)
        try:
            yield Talk(frames, call)
        finally:
            call.cancel()
            frames.put(None)


def cut_upload(address: str, path: Path, at: Ledger, num_bytes: int, **changes: Any) -> None:
    """Begin to send a model and break off once the server holds exactly `num_bytes` of it."""
    offer, data = offer_of(path, **changes)
    with talking(address, offer) as talk:
        send_until_there(talk, at, offer, data, num_bytes)


def send_until_there(talk: Talk, at: Ledger, offer: Offer, data: bytes, num_bytes: int) -> None:
    """Have the server hold exactly the first `num_bytes` of a model."""
    partial = at.path / "uploads" / f"{offer.digest}.partial"
    position = talk.hear().position
    before = partial.stat().st_size
    talk.send(position, data[position:num_bytes])
    until(lambda: partial.stat().st_size == before + num_bytes - position)


def until(true: Callable[[], Any], deadline_s: float = DEADLINE_S) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def left(at: Ledger) -> list[str]:
    """What lies among the uploads."""
    return sorted(one.name for one in (at.path / "uploads").iterdir() if one.name not in ("lock", "merged"))


@contextmanager
def server_process(at: Ledger, code: str = "", port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`dimat continual serve` as a process of its own, after `code`; the process and its address."""
    words = ["dimat", "continual", "serve", str(at.path), "--listen", f"127.0.0.1:{port}"]
    script = f"import sys\nsys.argv = {words!r}\n{code}\nfrom dimat.cli.app import main\nmain()\n"
    command = [sys.executable, "-W", "error", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        errors: list[str] = []
        assert process.stderr is not None and process.stdout is not None
        reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
        reader.start()
        try:
            line = process.stdout.readline()
            assert " listens on " in line, "".join(errors)
            yield process, line.split()[-1]
        finally:
            process.kill()
            reader.join()
