"""Nonsense on the wire: mutated messages and frames against a live run, a live coordinator, and clients that read lies.

    python benchmarks/fuzz_wire.py            10 000 messages: some minutes
    python benchmarks/fuzz_wire.py --smoke    600 messages

Three parts, one seed, every call with a deadline:

    run          a run of three agents as processes (`dimat run`): mutated requests, unknown methods and raw bytes go
                 to its agents and its coordinator while it trains; it must end with the bits of its simulation
    coordinator  a coordinator in this process; what is mutated comes from agents that have joined, so that it is let in
    clients      a peer and a coordinator that answer with mutated frames and messages: to `gather`, `describe`, `wait`,
                 `join`, `heartbeat` and `report` as agents call them

Checked: no process dies, no call outlives its deadline, nothing is answered by a defect (INTERNAL), what a client takes
in fits its own schema and is finite, and resident memory is flat: a line through the second half of the messages rises
by less than 4 MB. (Messages above 100 KB are sent in the first half alone: what the allocator keeps after the largest
of them is no leak, and comes in steps.) Left out is what plain text cannot refuse: a Join in the name of an agent of
the run takes that agent's seat (with TLS the certificate's name forbids it). Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))
from mutations import mutate, wrong

from dimat.config import load_config
from dimat.coordinator import Coordinator, Store
from dimat.errors import DimatError
from dimat.messages import Directive, Header, Heartbeat, Join, Member, Payload, Report, RoundSummary, View, digest
from dimat.proto.v1 import coordinator_pb2, peer_pb2
from dimat.runfolder import prepare, processes
from dimat.simulate import simulate
from dimat.snapshot.encode import decode, encode, schema_of
from dimat.transport.base import Buffer, Fetch, Wait
from dimat.transport.grpc import GrpcControl, GrpcTransport, convert
from dimat.transport.grpc.coordinator_server import serve_coordinator
from dimat.transport.grpc.frames import frames
from dimat.transport.grpc.server import GrpcServer

RESULTS = Path(__file__).parent / "results" / "fuzz_wire.json"
CALL_S = 3.0
"""The deadline of a call."""
PATIENCE_S = 20.0
"""What outlives its deadline by this much hangs."""
ALLOWED_BYTES = 4 << 20
SMALL = 100_000
"""The most bytes of a message in the second half."""
NUM_AGENTS, ROUNDS = 3, 150
IN_FLIGHT = 16

PEER, COORDINATOR = "/dimat.v1.Peer/", "/dimat.v1.Coordinator/"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""What an HTTP/2 connection begins with: the greeting, and settings that say nothing."""
STREAMS = ("Fetch", "Watch", "List")


@dataclass
class Finding:
    """What one part saw."""

    answers: Counter[str] = field(default_factory=Counter)
    """How calls ended: status codes, or names of errors."""
    problems: list[str] = field(default_factory=list)
    resident: dict[str, list[int]] = field(default_factory=dict)
    """Resident bytes by process, over the messages."""

    def sample(self, names: dict[str, int]) -> None:
        """Note what each process holds now."""
        for name, pid in names.items():
            with suppress(psutil.NoSuchProcess):
                self.resident.setdefault(name, []).append(psutil.Process(pid).memory_info().rss)

    def growth(self) -> dict[str, int]:
        """Bytes by which each process rises over the second half of the messages, by a straight line through them."""
        risen = {}
        for name, samples in self.resident.items():
            half = samples[len(samples) // 2 :]
            slope = np.polyfit(range(len(half)), half, 1)[0] if len(half) > 2 else 0.0
            risen[name] = int(slope * len(half))
        return risen


# ------------------------------------------------------------------------------------------------- what is mutated


def requests(session: str, agent: int) -> list[tuple[str, Any]]:
    """Right requests, as an agent sends them."""
    said = [peer_pb2.Published(kind="snapshot", round=3), peer_pb2.Published(kind="basis", round=0)]
    wait = peer_pb2.DescribeRequest(reader=agent, until=said[0], wait_s=0.2, acknowledged=said, with_schema=True)
    beat = Heartbeat(agent, session, 3, "gather", waiting="round 3: waiting 12 s for agent 1")
    report = Report(
        agent, session, 3, {"loss": 0.5, "accuracy": 0.8, "accuracy_before": 0.7}, {"train": 1.0}, {0: 0.5, 1: 0.5},
        {1: 1000}, {2: "had not published"}, {"fc1": 0.5}, bytes(4096), bytes(4096),
    )  # fmt: skip
    join = Join(agent, session, "127.0.0.1:5000", "0123456789abcdef", 4096, (0, 1, 2), 300, {"3": 30})
    return [
        (PEER + "Describe", wait),
        (PEER + "Describe", peer_pb2.DescribeRequest(reader=agent)),
        (PEER + "Fetch", peer_pb2.FetchRequest(reader=agent, kind="snapshot", round=3)),
        (PEER + "Fetch", peer_pb2.FetchRequest(reader=agent, kind="snapshot", position=64)),
        (COORDINATOR + "Join", convert.to_proto(join)),
        (COORDINATOR + "Heartbeat", convert.to_proto(beat)),
        (COORDINATOR + "Report", convert.to_proto(report)),
        (COORDINATOR + "Watch", coordinator_pb2.WatchRequest(after=2)),
        ("/grpc.health.v1.Health/Check", peer_pb2.Published(kind="")),
        ("/dimat.v1.Peer/Push", wait),
    ]


def takes_a_seat(method: str, data: bytes) -> bool:
    """Whether a Join is right enough to be let in as one of the run's agents."""
    if not method.endswith("Join"):
        return False
    with suppress(Exception):
        return 0 <= coordinator_pb2.JoinRequest.FromString(data).agent < NUM_AGENTS
    return False


# --------------------------------------------------------------------------------------------------------- sending


async def send(channel: grpc.aio.Channel, method: str, data: bytes) -> str:
    """One call with a deadline; the name of its status."""
    streams = method.rpartition("/")[2] in STREAMS
    make: Any = channel.unary_stream if streams else channel.unary_unary
    call = make(method)(data, timeout=CALL_S if not streams else 0.3)
    try:
        if streams:
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        details = error.details() or ""
        code = error.code().name
        if code in (
            "INTERNAL",
            "UNKNOWN",
        ):  # what a defect is answered with, and by gRPC itself bytes that are no message
            return "no message" if "DecodeError" in details else f"{code}: {details[:200]}"
        return code
    return "OK"


async def send_raw(address: str, data: bytes) -> str:
    """Bytes that are not even HTTP/2."""
    host, _, port = address.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        # Half of them as what follows HTTP/2's greeting, so that they get past the first look.
        writer.write(PREFACE + data if len(data) % 2 else data)
        await writer.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(1000), 0.2)
        writer.close()
        await writer.wait_closed()
    except OSError:
        return "raw: connection closed"
    return "raw: taken"


async def attack(
    addresses: dict[str, str], sessions: Sequence[tuple[int, str]], num: int, seed: int, pids: dict[str, int],
    *, own: bool,
) -> Finding:  # fmt: skip
    """Send `num` mutated requests to the servers, `IN_FLIGHT` at a time.

    Args:
        addresses: HOST:PORT by name; `coordinator` gets the coordinator's calls, the others a Peer's.
        sessions: agents and sessions in whose names is spoken.
        num: how many.
        seed: of the mutations.
        pids: whose memory is sampled, by name.
        own: the servers are this program's own: then seats may be taken.
    """
    rng, found = random.Random(seed), Finding()
    channels = {name: grpc.aio.insecure_channel(address) for name, address in addresses.items()}

    async def one(name: str, method: str, data: bytes, raw: bool) -> None:
        work = send_raw(addresses[name], data) if raw else send(channels[name], method, data)
        try:
            answer = await asyncio.wait_for(work, CALL_S + PATIENCE_S)
        except TimeoutError:
            found.problems.append(f"{name} {method}: no end after {CALL_S + PATIENCE_S:.0f} s; {data[:100]!r}")
            return
        found.answers[answer.partition(":")[0] if not raw else answer] += 1
        if answer.startswith(("INTERNAL", "UNKNOWN")):
            found.problems.append(f"{name} {method}: {answer}; {data[:100]!r}")

    waiting: set[asyncio.Task[None]] = set()
    for number in range(num):
        name = rng.choice(sorted(addresses))
        agent, session = rng.choice(list(sessions))
        calls = [call for call in requests(session, agent) if (name == "coordinator") != (PEER in call[0])]
        method, message = rng.choice(calls)
        data = wrong(rng, message, SMALL) if number > num // 2 else wrong(rng, message)
        if not own and takes_a_seat(method, data):
            data = b""  # an empty Join is agent 0's, too
            method = method.replace("Join", "Heartbeat")
        waiting.add(asyncio.create_task(one(name, method, data, raw=rng.random() < 0.05)))
        if len(waiting) >= IN_FLIGHT:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if number % max(1, num // 50) == 0:
            found.sample(pids)
    await asyncio.gather(*waiting)
    found.sample(pids)
    for channel in channels.values():
        await channel.close()
    return found


# ------------------------------------------------------------------------------------------------------- the parts


def against_a_run(num: int, rounds: int, seed: int, scratch: Path) -> tuple[Finding, int]:
    """Attack a run of processes while it trains; returns what was found and how far the run had come."""
    settings = [
        f"agents={NUM_AGENTS}", "topology.graph=path", f"rounds={rounds}", "task.model.name=mlp",
        "task.model.hidden=[8]", "train.epochs=1", "train.batch_size=128", "exchange.timeout_s=600",
    ]  # fmt: skip
    folder = scratch / "run"
    flags = [part for setting in settings for part in ("-s", setting)]
    command = [sys.executable, "-m", "dimat", "run", *flags, "--out", str(folder), "--quiet"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while run.poll() is None and not all(num_rounds(folder, agent) for agent in range(NUM_AGENTS)):
            time.sleep(0.1)
        entries = processes(folder)
        names = {e["role"] if e["id"] is None else f"agent {e['id']}": e for e in entries}
        found = asyncio.run(
            attack(
                {name: entry["address"] for name, entry in names.items()},
                [(0, "not-a-session"), (2, "neither"), (77, "elsewhere")],
                num, seed, {name: entry["pid"] for name, entry in names.items()}, own=False,
            )
        )  # fmt: skip
        done = num_rounds(folder, 0)
        if run.poll() is not None:
            found.problems.append("the run ended before all messages were sent: give it more --rounds")
        code = run.wait()
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait()
    if code:
        found.problems.append(f"the run ended with exit code {code}")
    if len(processes(folder)) != len(entries):
        found.problems.append("a process of the run died and was started again")
    logs = sum(path.stat().st_size for path in (folder / "logs").iterdir())
    found.answers["bytes of logs"] = logs
    config = load_config(None, settings)
    simulate(config, prepare(config, scratch / "simulated"))
    for agent in range(NUM_AGENTS):
        last = f"checkpoints/{agent}/{rounds}.safetensors"
        if not (folder / last).is_file() or (folder / last).read_bytes() != (scratch / "simulated" / last).read_bytes():
            found.problems.append(f"agent {agent} did not end with the bits of the simulation")
    return found, done


def num_rounds(folder: Path, agent: int) -> int:
    path = folder / "metrics" / f"{agent}.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def against_a_coordinator(num: int, seed: int, scratch: Path) -> Finding:
    """Attack a coordinator in the name of agents that it has let in."""
    config = load_config(None, ["agents=3", "rounds=100000"])
    (scratch / "coordinator").mkdir()
    own = {"coordinator": psutil.Process().pid}
    with Store.open(scratch / "coordinator") as store:
        coordinator = Coordinator(config, 2, store)
        server = serve_coordinator(coordinator)
        address = server.start()
        for agent in range(3):
            coordinator.join(Join(agent, f"s{agent}", "127.0.0.1:5000", "0123456789abcdef", 4096))
        try:
            sessions = [(agent, f"s{agent}") for agent in range(3)]
            found = asyncio.run(attack({"coordinator": address}, sessions, num, seed, own, own=True))
            coordinator.view()
        finally:
            server.close()
    return found


def against_clients(num: int, seed: int) -> Finding:
    """Have an agent's own clients read from a peer and a coordinator that lie."""
    rng, found, pid = random.Random(seed), Finding(), psutil.Process().pid
    state = {"fc.weight": torch.ones(64, 32), "fc.bias": torch.arange(64.0), "steps": torch.tensor(7)}
    schema, payload = schema_of(state), encode(state, Header("snapshot", 3, 0))
    liar = Liar(rng, list(frames(payload, 0, 1 << 10)), schema)
    peer, coordinator = (
        GrpcServer({"dimat.v1.Peer": liar.peer()}),
        GrpcServer({"dimat.v1.Coordinator": liar.coordinator()}),
    )
    reader, buffer = GrpcTransport(1, "reader", schema), Buffer(schema)
    addresses = peer.start(), coordinator.start()
    reader.start()
    reader.connect({0: addresses[0]})
    control = GrpcControl(addresses[1], retry_s=0.01)
    join = Join(1, "s", "127.0.0.1:1", schema.fingerprint, 4)
    kept = Buffer(schema)

    def ask_again() -> Any:
        """Ask for what is held already, and look at it afterwards."""
        for tensor in payload.tensors:
            kept.view(tensor.spec.name)[:] = tensor.data
        held = Payload(payload.header, tuple(replace(t, data=kept.view(t.spec.name)) for t in payload.tensors))
        answer = reader.gather((Fetch(0, "snapshot", None, kept, held=held),), timeout_s=0.5)[0]
        if answer is held and any(digest(tensor.data) != tensor.checksum for tensor in held.tensors):
            found.problems.append("what was held changed under its reader")
        return answer

    calls = {
        "gather": lambda: reader.gather((Fetch(0, "snapshot", rng.choice((3, None)), buffer),), timeout_s=0.5)[0],
        "ask again": ask_again,
        "describe": lambda: reader.describe(0, 0.5),
        "wait": lambda: reader.wait(Wait("published", (0,), "snapshot", 3, 0.05)),
        "join": lambda: control.join(join, 0.05),
        "heartbeat": lambda: control.heartbeat(Heartbeat(1, "s", 3, "train")),
        "report": lambda: control.report(Report(1, "s", 3, {"loss": 1.0})),
    }
    try:
        while liar.told < num:
            name = rng.choice((*["gather"] * 5, *["ask again"] * 2, *["describe"] * 3, *calls))
            began = time.monotonic()
            try:
                answer: Any = calls[name]()
            except DimatError as error:
                answer = error
            except Exception as error:
                found.problems.append(f"{name} raised {type(error).__name__}: {error}"[:300])
                continue
            seconds = time.monotonic() - began
            if seconds > PATIENCE_S:
                found.problems.append(f"{name} took {seconds:.0f} s")
            kind = type(answer).__name__
            found.answers[f"{name}: {kind}"] += 1
            if kind == "Payload":
                tensors = decode(answer)
                if schema_of(tensors) != schema or not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
                    found.problems.append("a payload was taken in that does not fit")
            if len(found.resident.get("this process", ())) <= 50 * liar.told // num:
                gc.collect()
                found.sample({"this process": pid})
    finally:
        control.close(0.1)
        reader.close()
        peer.close(0.0)
        coordinator.close(0.0)
    return found


class Liar:
    """Answers of a peer and a coordinator, mutated; `told` counts them."""

    def __init__(self, rng: random.Random, right: list[bytes], schema: Any) -> None:
        self.told = 0
        self._rng = rng
        self._right = right
        description = peer_pb2.Description(
            agent=0, session="s", schema=convert.to_proto(schema), newest={"snapshot": 3, "basis": 0}, protocol=1
        )
        member = Member(0, "127.0.0.1:1", "running", 3, "train", "", 0.5, {"loss": 0.5}, 300, {"3": 30})
        view = View(4, "running", 0, None, "all there", (member,), RoundSummary(3, 0.8, 0.7, 0.6, 0.5))
        self._description = description
        self._view = convert.to_proto(view)
        self._directive = convert.to_proto(Directive(None, "going on"))

    def peer(self) -> dict[str, Any]:
        """The methods of `dimat.v1.Peer`."""
        return {"Describe": self._unary(self._description), "Fetch": grpc.unary_stream_rpc_method_handler(self._fetch)}

    def coordinator(self) -> dict[str, Any]:
        """The methods of `dimat.v1.Coordinator`."""
        unary = {name: self._unary(self._directive) for name in ("Heartbeat", "Report")}
        return {"Join": self._unary(self._view), "Watch": grpc.unary_stream_rpc_method_handler(self._watch), **unary}

    def _unary(self, right: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            return await self._say(right, context)

        return grpc.unary_unary_rpc_method_handler(answer)

    async def _say(self, right: Any, context: Any) -> bytes:
        self.told += 1
        if self._rng.random() < 0.03:
            await context.abort(self._rng.choice(list(grpc.StatusCode)[1:]), "\x00not so " * self._rng.choice((1, 100)))
        return wrong(self._rng, right)

    async def _fetch(self, request: bytes, context: Any) -> None:
        """The right frames with some of them changed, left out, doubled, in another order, or without an end."""
        said, rng = list(self._right), self._rng
        for _ in range(rng.choice((0, 1, 1, 2))):
            self.told += 1
            place = rng.randrange(len(said)) if said else 0
            match rng.randrange(7):
                case 0 | 1:
                    said[place : place + 1] = [mutate(rng, frame) for frame in said[place : place + 1]]
                case 2:  # a frame that parses, the announcement most of all
                    said[:1] = [wrong(rng, peer_pb2.Frame.FromString(frame)) for frame in self._right[:1]]
                case 3:
                    del said[place : place + 1]
                case 4:
                    said[place:place] = said[place : place + 1] * rng.choice((1, 3, 100))
                case 5:
                    rng.shuffle(said)
                case 6:
                    said = said[:place]
        for frame in said:
            await context.write(frame)
        if rng.random() < 0.02:
            await asyncio.sleep(1.0)  # longer than the reader's deadline
        if rng.random() < 0.05:
            await context.abort(rng.choice(list(grpc.StatusCode)[1:]), "enough")

    async def _watch(self, request: bytes, context: Any) -> None:
        for _ in range(self._rng.choice((0, 1, 3))):
            await context.write(await self._say(self._view, context))


# ------------------------------------------------------------------------------------------------------------ main


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="600 messages")
    parser.add_argument("--num", type=int, default=10_000, help="messages in all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of the run that is attacked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("run", "coordinator", "clients"), help="one part alone")
    arguments = parser.parse_args()
    num, rounds = (600, 40) if arguments.smoke else (arguments.num, arguments.rounds)
    # Servers tell of every message that is none; here that is the point, and read by nobody.
    logging.disable(logging.CRITICAL)
    parts: dict[str, Finding] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch, seed = Path(folder), arguments.seed
        if arguments.only in (None, "clients"):
            parts["clients"] = against_clients(num * 4 // 10, seed)
        if arguments.only in (None, "coordinator"):
            parts["coordinator"] = against_a_coordinator(num * 2 // 10, seed + 1, scratch)
        if arguments.only in (None, "run"):
            parts["run"], done = against_a_run(num * 4 // 10, rounds, seed + 2, scratch)
            print(f"the run was in round {done} of {rounds} when all messages were sent")
    holds = True
    for name, found in parts.items():
        print(f"\n{name}:")
        for answer, count in sorted(found.answers.items()):
            print(f"  {count:>8}  {answer}")
        growth = found.growth()
        print("  memory rose by " + ", ".join(f"{process}: {risen / 1e6:.1f} MB" for process, risen in growth.items()))
        flat = all(risen < ALLOWED_BYTES for risen in growth.values())
        for problem in found.problems[:10]:
            print(f"  PROBLEM {problem}")
        if len(found.problems) > 10:
            print(f"  and {len(found.problems) - 10} more")
        good = not found.problems and (flat or arguments.smoke)
        holds &= good
        print(f"{'holds ' if good else 'FAILS '} {name}: nothing died, hung or took in what is not right; memory flat")
    if not arguments.smoke:
        RESULTS.parent.mkdir(exist_ok=True)
        told = {name: {"answers": found.answers, "growth_bytes": found.growth()} for name, found in parts.items()}
        RESULTS.write_text(json.dumps({"messages": num, "seed": arguments.seed, "parts": told}, indent=1))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
