"""Peers that misbehave in a chosen way, for tests of the reader."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from dimat.messages import Payload
from dimat.transport.authority import issue_missing, new_authority
from dimat.transport.grpc import GrpcTransport
from dimat.transport.grpc.frames import frames
from dimat.transport.grpc.peer_service import SERVICE, PeerService
from dimat.transport.grpc.server import GrpcServer
from dimat.transport.security import ADMIN, COORDINATOR, ONLOOKER, Credentials, Identity, agent
from dimat.transport.store import SnapshotStore

Script = Callable[[int, list[bytes]], Iterable[bytes | grpc.StatusCode]]
"""From the number of the call and the right frames to the frames that are sent; a status code ends the stream."""


ScriptedPeers = Callable[..., AbstractContextManager[tuple["ScriptedPeer", GrpcTransport]]]


class ScriptedPeer(PeerService):
    """Agent 0, whose Fetch follows a script and who refuses its first `num_deaf` Describe calls.

    `positions` and `rounds` are what Fetch was asked for, `held` what its caller said it has, which this agent ignores;
    `acknowledged` is how much each Describe acknowledged.
    """

    def __init__(self, payload: Payload, frame_bytes: int, script: Script, num_deaf: int) -> None:
        self.acknowledged: list[int] = []
        self.positions: list[int] = []
        self.rounds: list[int | None] = []
        self.held: list[bytes | None] = []
        self._num_deaf = num_deaf
        self._script = script
        self.store = SnapshotStore(0)
        self.store.publish(payload)
        super().__init__(0, "scripted", payload.schema, self.store, frame_bytes)

    async def describe(self, request: Any, context: Any) -> Any:
        self.acknowledged.append(len(request.acknowledged))
        if len(self.acknowledged) <= self._num_deaf:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too busy to listen")
        return await super().describe(request, context)

    async def fetch(self, request: Any, context: Any) -> None:
        number = len(self.positions)
        self.positions.append(request.position)
        self.rounds.append(request.round if request.HasField("round") else None)
        self.held.append(request.held if request.HasField("held") else None)
        right = list(frames(self.store.get(request.kind, None), request.position, self._frame_bytes))
        for step in self._script(number, right):
            if isinstance(step, grpc.StatusCode):
                await context.abort(step, "as the script says")
            else:
                await context.write(step)


@pytest.fixture
def scripted_peer() -> ScriptedPeers:
    """A context manager: a payload and a script to a misbehaving agent 0 and its reader."""
    return _scripted_peer


@contextmanager
def _scripted_peer(
    payload: Payload, script: Script, *, frame_bytes: int = 1 << 10, num_deaf: int = 0
) -> Iterator[tuple[ScriptedPeer, GrpcTransport]]:
    """A scripted agent 0 and a reader, agent 1, that is connected to it."""
    peer = ScriptedPeer(payload, frame_bytes, script, num_deaf)
    server = GrpcServer({SERVICE: peer.methods()})
    reader = GrpcTransport(1, "reader", payload.schema)
    address = server.start()
    reader.start()
    reader.connect({0: address})
    try:
        yield peer, reader
    finally:
        reader.close()
        server.close()


# --------------------------------------------------------------------------------------------------------- certificates


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority and certificates of agents 0 to 3, the coordinator, an admin and an onlooker."""
    folder = tmp_path_factory.mktemp("lab")
    new_authority(folder)
    issue_missing(folder, [COORDINATOR, ADMIN, ONLOOKER, *map(agent, range(4))])
    return folder


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of another authority that calls itself the same."""
    folder = tmp_path_factory.mktemp("elsewhere")
    new_authority(folder)
    issue_missing(folder, [COORDINATOR, *map(agent, range(4))])
    return folder


@pytest.fixture(scope="session")
def yesterday(tmp_path_factory: pytest.TempPathFactory, lab: Path) -> Path:
    """Certificates of the lab's authority for agents 0 and 1 and the coordinator that ended a minute ago."""
    folder = tmp_path_factory.mktemp("yesterday")
    for name in ("authority.pem", "authority.key"):
        shutil.copy(lab / name, folder)
    now = datetime.now(UTC)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "dimat.transport.authority._validity", lambda days: (now - timedelta(days=1), now - timedelta(minutes=1))
        )
        issue_missing(folder, [COORDINATOR, agent(0), agent(1)])
    return folder


def unchecked(folder: Path, identity: Identity, *, key_of: Identity | None = None) -> Credentials:
    """What a client has that looks at nothing before it dials."""
    return Credentials(
        identity,
        (folder / "authority.pem").read_bytes(),
        (folder / f"{identity.name}.pem").read_bytes(),
        (folder / f"{(key_of or identity).name}.key").read_bytes(),
        folder,
        datetime.now(UTC),
    )


@pytest.fixture(scope="session", name="unchecked")
def _unchecked() -> Callable[..., Credentials]:
    return unchecked
