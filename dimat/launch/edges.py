"""Dial every edge of a run's graph: is there anybody, is it who it should be, how fast is the line?

Agents that are up are asked for their newest snapshot, as a reader that is no agent, so that nobody takes it for a
neighbour's acknowledgement. Where nothing runs, stand-ins are started in this process and serve made-up bytes: that
tries everything but the network between machines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from dimat.errors import PayloadError, PeerUnavailable, RoundGone, TransportError, UsageError
from dimat.messages import Header, Payload, Schema, Tensor, TensorSpec, digest
from dimat.topology import Topology
from dimat.transport.base import Buffer, Fetch
from dimat.transport.grpc import GrpcTransport
from dimat.transport.grpc.ping import ping
from dimat.transport.security import Credentials, agent

DOCTOR = -1
"""The id of a reader that is no agent: its acknowledgements count for nothing."""
MADE_UP = Schema((TensorSpec("bytes", "uint8", (16 << 20,)),))
KIND = "snapshot"


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge as it was found: `reader` fetches from `peer`."""

    reader: int
    peer: int
    address: str = ""
    error: str = ""
    cure: str = ""
    round_trip_s: float | None = None
    skew_s: float | None = None
    num_bytes: int | None = None
    """What was fetched; None where the peer has not published yet."""
    bytes_per_s: float | None = None


def edges_of(topology: Topology) -> list[tuple[int, int]]:
    """(reader, peer) of every edge in any round that differs, sorted."""
    agents = range(topology.num_agents)
    rounds = topology.window()
    return sorted({(agent, peer) for round in rounds for agent in agents for peer in topology.neighbours(agent, round)})


def read_peers(path: Path, num_agents: int) -> dict[int, str]:
    """Addresses by agent from a YAML or JSON file: a mapping of id to HOST:PORT, or a list in the order of ids.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--peers {str(path)!r} cannot be read: {error}") from None
    entries = dict(enumerate(values)) if isinstance(values, list) else values
    if not isinstance(entries, dict) or not all(
        isinstance(agent, int) and 0 <= agent < num_agents and isinstance(address, str) and ":" in address
        for agent, address in entries.items()
    ):
        raise UsageError(
            f"--peers {str(path)!r} holds {values!r}, expected HOST:PORT for agents 0 to {num_agents - 1}",
            hint="for example: {0: 10.0.0.1:7001, 1: 10.0.0.2:7001}",
        )
    return {int(agent): str(address) for agent, address in entries.items()}


def dial(
    edges: Sequence[tuple[int, int]],
    addresses: Mapping[int, str],
    schema: Schema,
    timeout_s: float,
    credentials: Credentials | None = None,
    insecure: bool = False,
) -> list[Edge]:
    """Dial the peer of every edge from this machine; each peer is asked once, whoever reads it.

    With certificates only neighbours may fetch, and a doctor is none: peers prove who they are, and no more is asked.

    Raises:
        UsageError: plain text would leave this machine without leave.
    """
    found: dict[int, Edge] = {}
    with closing(GrpcTransport(DOCTOR, "doctor", schema, insecure=insecure)) as transport:
        transport.start()
        for peer in sorted({peer for _, peer in edges}):
            if peer not in addresses:
                found[peer] = Edge(DOCTOR, peer, error="is not up", cure=f"start agent {peer}")
                continue
            known = _ping(peer, addresses[peer], timeout_s, credentials, insecure)
            if credentials is None and not known.error:
                transport.connect({peer: addresses[peer]})
                known = _fetch(transport, known, schema, timeout_s)
            found[peer] = known
    return [replace(found[peer], reader=reader) for reader, peer in edges]


def self_test(edges: Sequence[tuple[int, int]], bind: str, insecure: bool, timeout_s: float) -> list[Edge]:
    """Start a stand-in for every agent in this process, and dial every edge."""
    agents = sorted({one for edge in edges for one in edge})
    with ExitStack() as stack:
        addresses = {}
        for one in agents:
            # A wildcard is listened on, and dialled at loopback.
            advertise = "127.0.0.1" if bind in ("0.0.0.0", "::") else None
            transport = GrpcTransport(one, "stand-in", MADE_UP, bind=bind, advertise=advertise, insecure=insecure)
            addresses[one] = transport.start()
            stack.callback(transport.close)
            transport.publish(_made_up(one))
        return dial(edges, addresses, MADE_UP, timeout_s, insecure=insecure)


def _made_up(agent: int) -> Payload:
    [spec] = MADE_UP.tensors
    data = memoryview(bytes(spec.num_bytes))
    return Payload(Header(KIND, 0, agent), (Tensor(spec, data, digest(data)),))


def _ping(peer: int, address: str, timeout_s: float, credentials: Credentials | None, insecure: bool) -> Edge:
    """Whether anybody is there, and proves to be agent `peer` where certificates are used."""
    try:
        pong = ping(address, timeout_s, agent(peer), credentials=credentials, insecure=insecure)
    except PeerUnavailable as error:
        cure = "is the agent up, is this the address that it advertises, does a firewall let this port through?"
        return Edge(DOCTOR, peer, address, str(error), cure)
    return Edge(DOCTOR, peer, address, round_trip_s=pong.round_trip_s, skew_s=pong.skew_s)


def _fetch(transport: GrpcTransport, known: Edge, schema: Schema, timeout_s: float) -> Edge:
    """Whether it is the agent of this run that it should be, and how fast its newest model arrives."""
    peer = known.peer
    try:
        told = transport.describe(peer, timeout_s)
    except TransportError as error:
        return replace(known, error=str(error), cure="run the same version of dimat everywhere")
    if told.agent != peer:
        return replace(known, error=f"agent {told.agent} answers there", cure="give each agent the address of its own")
    if difference := schema.difference(told.schema):
        other = f"trains another model: {difference} (here: the config, there: agent {peer})"
        return replace(known, error=other, cure="give all agents the same config")
    started = time.perf_counter()
    answer = transport.gather((Fetch(peer, KIND, None, Buffer(schema)),), timeout_s)[peer]
    took_s = time.perf_counter() - started
    if isinstance(answer, RoundGone):
        return known  # it is up, and has not trained yet: there is nothing to weigh the line with
    if isinstance(answer, TransportError) and f"agent {DOCTOR} does not read" in str(answer):
        return known  # agents of a run that goes on let their neighbours alone fetch, and a doctor is none
    if isinstance(answer, TransportError):
        cure = "the line breaks under load" if isinstance(answer, PayloadError) else "give it longer with --timeout"
        return replace(known, error=str(answer), cure=cure)
    return replace(known, num_bytes=answer.num_bytes, bytes_per_s=answer.num_bytes / took_s)
