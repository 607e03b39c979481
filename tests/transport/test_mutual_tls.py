"""Who gets in, and who does not: without a certificate, with one of another authority, with a right one but for another
id, with an expired one, with another's. Each is refused, told why, and never reaches a handler.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dimat.cli.drain import drain_command
from dimat.errors import NoCoordinator, NotTrusted, TransportError, UsageError
from dimat.messages import Directive, Drain, Header, Heartbeat, Join, Payload, Report, Tensor, TensorSpec, View, digest
from dimat.proto.v1 import peer_pb2
from dimat.transport.base import Buffer, Fetch, Wait
from dimat.transport.grpc import GrpcControl, GrpcTransport, await_coordinator, serve_coordinator, watch
from dimat.transport.grpc.client import PeerClient
from dimat.transport.grpc.coordinator_client import CoordinatorClient
from dimat.transport.grpc.loop import LoopThread
from dimat.transport.grpc.peer_service import PeerService
from dimat.transport.security import ADMIN, COORDINATOR, ONLOOKER, Credentials, agent, load_credentials

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def payload() -> Payload:
    data = memoryview(np.arange(5000, dtype="<f4")).cast("B")
    return Payload(Header("snapshot", 1, 0), (Tensor(TensorSpec("w", "float32", (5000,)), data, digest(data)),))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look soon into what keeps a line from coming about."""
    for module in ("client", "reach"):
        monkeypatch.setattr(f"dimat.transport.grpc.{module}.LOOK_S", 0.1)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What any agent's handlers were asked, in order."""
    calls: list[str] = []
    for name in ("describe", "fetch"):
        inner = getattr(PeerService, name)

        async def counted(self: Any, request: Any, context: Any, name: str = name, inner: Any = inner) -> Any:
            calls.append(f"{name} by {request.reader}")
            return await inner(self, request, context)

        monkeypatch.setattr(PeerService, name, counted)
    return calls


@pytest.fixture
def served(lab: Path, reached: list[str]) -> Iterator[str]:
    """The address of agent 0, which has published round 1 and is read by agents 1 and 2."""
    server = GrpcTransport(
        0, "s", payload().schema, credentials=load_credentials(lab, agent(0)), may_read=lambda peer: peer in (1, 2)
    )
    server.publish(payload())
    yield server.start()
    server.close()


def attempt(address: str, credentials: Credentials | None, reader: int = 1) -> tuple[Any, Any]:
    """What Describe and Fetch answer to a reader with these credentials: a value, or the error."""

    async def ask() -> tuple[Any, Any]:
        client = PeerClient(reader, 0, address, 1 << 22, credentials)
        fetch = Fetch(0, "snapshot", 1, Buffer(payload().schema))
        answers = await asyncio.gather(
            client.describe(2.0),
            client.fetch(fetch, time.monotonic() + 30.0),
            return_exceptions=True,
        )
        await client.close()
        return answers[0], answers[1]

    loop = LoopThread.acquire()
    try:
        return loop.run(ask())
    finally:
        loop.release()


def test_neighbours_who_prove_themselves_read(lab: Path, served: str, reached: list[str]) -> None:
    for reader in (1, 2):
        described, fetched = attempt(served, load_credentials(lab, agent(reader)), reader)
        assert described.session == "s"
        assert bytes(fetched.tensors[0].data) == bytes(payload().tensors[0].data)
    assert reached.count("fetch by 1") == reached.count("fetch by 2") == 1


Make = Callable[[Path, Path, Path, Path, Any], "Credentials | None"]


def mixed(folder: Path, lab: Path, other: Path, name: str = "agent-1") -> Path:
    """A folder with the lab's authority, and another one's certificate."""
    shutil.copy(lab / "authority.pem", folder)
    for end in ("pem", "key"):
        shutil.copy(other / f"{name}.{end}", folder)
    return folder


STRANGERS: dict[str, tuple[Make, str]] = {
    "without a certificate": (lambda lab, *_: None, "certificates are asked for there, and this side has none"),
    "of another authority": (
        lambda lab, elsewhere, yesterday, tmp, unchecked: load_credentials(elsewhere, agent(1)),
        "the certificate shown there is not believed here",
    ),
    "of another authority, believing this one": (
        lambda lab, elsewhere, yesterday, tmp, unchecked: unchecked(mixed(tmp, lab, elsewhere), agent(1)),
        "this side's certificate is refused there",
    ),
    "expired": (
        lambda lab, elsewhere, yesterday, tmp, unchecked: unchecked(yesterday, agent(1)),
        "this side's certificate is refused there",
    ),
    "another's certificate without its key": (
        lambda lab, elsewhere, yesterday, tmp, unchecked: unchecked(lab, agent(1), key_of=agent(2)),
        "did not answer",
    ),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_do_not_get_past_the_handshake(
    who: str,
    lab: Path,
    elsewhere: Path,
    yesterday: Path,
    tmp_path: Path,
    unchecked: Any,
    served: str,
    reached: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make, words = STRANGERS[who]
    answers = attempt(served, make(lab, elsewhere, yesterday, tmp_path, unchecked))
    for answer in answers:
        assert isinstance(answer, TransportError), answer
        assert words in str(answer), answer
        assert f"agent 0 at {served}" in str(answer)
    assert reached == []
    if "did not answer" not in words:
        assert words in caplog.text, "the stranger's own log says which side lacks what"
    assert isinstance(attempt(served, load_credentials(lab, agent(1)))[1], Payload), "who belongs here still gets in"


def test_tls_without_a_certificate_is_not_enough(lab: Path, served: str, reached: list[str]) -> None:
    """A client that believes the authority and shows nothing, and one that sends bytes of another protocol."""
    root = (lab / "authority.pem").read_bytes()
    options = (("grpc.ssl_target_name_override", agent(0).host),)
    with grpc.secure_channel(served, grpc.ssl_channel_credentials(root), options) as channel:
        call = channel.unary_stream("/dimat.v1.Peer/Fetch")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(peer_pb2.FetchRequest(reader=1, kind="snapshot").SerializeToString(), timeout=5))
    assert caught.value.code() is UNAVAILABLE
    assert reached == []


@pytest.mark.parametrize(
    ("proven", "claimed", "words"),
    [
        (agent(2), 1, "you claim to be agent 1, and your certificate proves that you are agent 2"),
        (COORDINATOR, 1, "you claim to be agent 1, and your certificate proves that you are the coordinator"),
        (ADMIN, 2, "your certificate proves that you are an admin"),
        (ONLOOKER, 1, "your certificate proves that you are an onlooker"),
        (agent(3), 3, "agent 3 does not read agent 0 by the topology"),
    ],
)
def test_a_right_certificate_is_good_for_its_own_id_and_its_own_edges_alone(
    lab: Path,
    served: str,
    reached: list[str],
    caplog: pytest.LogCaptureFixture,
    proven: Any,
    claimed: int,
    words: str,
) -> None:
    credentials = load_credentials(lab, proven)
    fetched = attempt(served, credentials, claimed)[1]
    assert type(fetched) is TransportError
    assert words in str(fetched)
    assert not [call for call in reached if call.startswith("fetch")]
    logged = [record.message for record in caplog.records if record.message.startswith("refused Fetch")]
    assert len(logged) == 1
    assert f"{proven} at 127.0.0.1" in logged[0]
    assert words in logged[0]


def test_nobody_acknowledges_in_anothers_name(lab: Path, reached: list[str]) -> None:
    server = GrpcTransport(0, "s", payload().schema, credentials=load_credentials(lab, agent(0)))
    server.publish(payload())
    address = server.start()
    server.connect({1: "127.0.0.1:9", 2: "127.0.0.1:9"})
    said = peer_pb2.DescribeRequest(reader=1, acknowledged=[peer_pb2.Published(kind="snapshot", round=1)])
    options = (("grpc.ssl_target_name_override", agent(0).host),)
    for who in (agent(2), ONLOOKER, agent(1)):
        mine = load_credentials(lab, who)
        secured = grpc.ssl_channel_credentials(mine.authority, mine.key, mine.certificate)
        with grpc.secure_channel(address, secured, options) as channel:
            call = channel.unary_unary("/dimat.v1.Peer/Describe")
            if who == agent(1):
                call(said.SerializeToString(), timeout=5)
                continue
            with pytest.raises(grpc.RpcError) as caught:
                call(said.SerializeToString(), timeout=5)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert server.readers("snapshot", 1) == frozenset()
            if who == ONLOOKER:  # it may look, and answers are the same for everybody
                call(peer_pb2.DescribeRequest(reader=1).SerializeToString(), timeout=5)
    assert server.readers("snapshot", 1) == {1}
    assert reached == ["describe by 1"] * 2
    server.close()


# ---------------------------------------------------------------------------------------------------- who answers there


@pytest.mark.parametrize("impostor", ["another agent", "of another authority", "expired", "an onlooker", "plain text"])
def test_who_answers_must_be_who_was_dialled(
    impostor: str, lab: Path, elsewhere: Path, yesterday: Path, unchecked: Any, reached: list[str]
) -> None:
    """Nothing is said to an impostor: not even the question."""
    credentials, words = {
        "another agent": (unchecked(lab, agent(2)), "proves agent 2, not agent 0"),
        "of another authority": (unchecked(elsewhere, agent(0)), "not believed here"),
        "expired": (unchecked(yesterday, agent(0)), "not believed here (certificate has expired)"),
        "an onlooker": (unchecked(lab, ONLOOKER), "not believed here"),
        "plain text": (None, "plain text is spoken there, and this side has certificates"),
    }[impostor]
    server = GrpcTransport(0, "s", payload().schema, credentials=credentials)
    server.publish(payload())
    for answer in attempt(server.start(), load_credentials(lab, agent(1))):
        assert isinstance(answer, NotTrusted)
        assert words in str(answer)
    assert reached == []
    server.close()


def test_trouble_is_said_at_once_and_while_waiting(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Describe does not wait for its deadline, and the reason of a wait says which side lacks what."""
    monkeypatch.setattr("dimat.transport.store.WAIT_TICK_S", 0.1)
    plain = GrpcTransport(0, "s", payload().schema)
    mine = GrpcTransport(1, "r", payload().schema, credentials=load_credentials(lab, agent(1)))
    mine.start()
    mine.connect({0: plain.start()})
    with pytest.raises(NotTrusted, match="give --certs DIR to that side too"):
        mine.describe(0, timeout_s=3600.0)
    told: list[str] = []
    mine.wait(Wait("published", (0,), "snapshot", 1, 0.5), lambda missing: told.extend(missing.values()))
    assert any("plain text is spoken there" in text for text in told)
    mine.close()
    plain.close()


def test_a_peer_beyond_this_machine_is_not_dialled_in_plain_text(caplog: pytest.LogCaptureFixture) -> None:
    """That peer is missing, and the others are there."""
    near, mine = GrpcTransport(0, "s", payload().schema), GrpcTransport(1, "r", payload().schema)
    mine.start()
    mine.connect({0: near.start(), 2: "192.0.2.7:4000"})
    assert mine.describe(0, 10.0).session == "s"
    with pytest.raises(TransportError, match=r"agent 2: refusing to dial 192\.0\.2\.7:4000 in plain text"):
        mine.describe(2, 10.0)
    assert "refusing to dial 192.0.2.7:4000" in caplog.text
    mine.close()
    near.close()


def test_certificates_and_plain_text_exclude_each_other(lab: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        GrpcTransport(0, "s", payload().schema, credentials=load_credentials(lab, agent(0)), insecure=True).start()


def test_with_certificates_any_address_may_be_listened_on(lab: Path) -> None:
    mine = load_credentials(lab, agent(0))
    server = GrpcTransport(0, "s", payload().schema, bind="0.0.0.0", advertise="127.0.0.1", credentials=mine)
    address = server.start()
    assert attempt(address, load_credentials(lab, agent(1)))[0].session == "s"
    server.close()


# ------------------------------------------------------------------------------------------------------ the coordinator


class Handler:
    """Notes what reached it."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    def join(self, join: Join) -> View:
        self.reached.append(f"join {join.agent}")
        return View(1, "running")

    def heartbeat(self, beat: Heartbeat) -> Directive:
        self.reached.append(f"heartbeat {beat.agent}")
        return Directive(7, "heard")

    def report(self, report: Report) -> Directive:
        self.reached.append(f"report {report.agent}")
        return Directive()

    def drain(self, drain: Drain) -> Directive:
        self.reached.append(f"drain {drain.agent}")
        return Directive(stop_after=5)

    def changed(self, after: int, timeout_s: float) -> View:
        return View(1, "done")


def join(number: int) -> Join:
    return Join(number, "session", "127.0.0.1:1", "f", 4)


@pytest.fixture
def coordinator(lab: Path) -> Iterator[tuple[Handler, str]]:
    handler = Handler()
    server = serve_coordinator(handler, credentials=load_credentials(lab, COORDINATOR))
    yield handler, server.start()
    server.close()


def test_an_agent_speaks_to_the_coordinator_for_itself_alone(
    lab: Path, coordinator: tuple[Handler, str], caplog: pytest.LogCaptureFixture
) -> None:
    """With the session of the agent it plays, too: a session is no secret, and proves nothing."""
    handler, address = coordinator
    control = GrpcControl(address, credentials=load_credentials(lab, agent(1)))
    assert control.join(join(1), 10.0).state == "running"
    assert control.heartbeat(Heartbeat(1, "session", 1, "train")).stop_after == 7
    control.report(Report(1, "session", 1, {}))
    assert handler.reached == ["join 1", "heartbeat 1", "report 1"]

    liar = GrpcControl(address, credentials=load_credentials(lab, agent(2)))
    with pytest.raises(UsageError, match="claim to be agent 1, and your certificate proves that you are agent 2"):
        liar.join(join(1), 10.0)
    assert liar.heartbeat(Heartbeat(1, "session", 1, "train", wants_stop=True)) == Directive()
    liar.report(Report(1, "session", 2, {"accuracy": 1.0}))
    assert len(handler.reached) == 3
    for name in ("Join", "Heartbeat", "Report"):
        assert f"refused {name} by agent 2 at 127.0.0.1" in caplog.text
    control.close()
    liar.close()


@pytest.mark.parametrize("who", [ONLOOKER, ADMIN, agent(3), COORDINATOR])
def test_whoever_has_an_identity_may_watch_and_no_more(lab: Path, coordinator: tuple[Handler, str], who: Any) -> None:
    handler, address = coordinator
    mine = load_credentials(lab, who)
    assert [view.state for view in watch(address, credentials=mine)] == ["done"]
    control = GrpcControl(address, credentials=mine)
    with pytest.raises(UsageError, match="you claim to be agent 1"):
        control.join(join(1), 10.0)
    assert handler.reached == []
    control.close()


def test_only_an_admin_has_an_agent_leave(
    lab: Path, coordinator: tuple[Handler, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even the agent that is meant: who plays it could send the others' neighbours away one by one."""
    handler, address = coordinator
    for who in (agent(1), agent(2), ONLOOKER, COORDINATOR):
        line = CoordinatorClient(address, credentials=load_credentials(lab, who))
        with pytest.raises(UsageError, match=f"this is for an admin, and you are {who}"):
            line.call("Drain", Drain(1), Directive, 10.0)
        line.close()
    with pytest.raises(NotTrusted, match="certificates are asked for there"):
        drain_command(address, 1, "text")
    assert handler.reached == []
    assert drain_command(address, 1, "text", lab) == 0
    assert handler.reached == ["drain 1"]
    assert "agent 1 leaves after round 5" in capsys.readouterr().out


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_reach_nothing_of_the_coordinator(
    who: str,
    lab: Path,
    elsewhere: Path,
    yesterday: Path,
    tmp_path: Path,
    unchecked: Any,
    coordinator: tuple[Handler, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dimat.transport.grpc.control.JOIN_S", 0.3)
    handler, address = coordinator
    make, words = STRANGERS[who]
    credentials = make(lab, elsewhere, yesterday, tmp_path, unchecked)
    hopeless = "did not answer" in words  # nothing can be found out with a key that is not one's own
    control = GrpcControl(address, credentials=credentials, retry_s=0.05)
    for ask in (
        lambda: control.join(join(1), 1.0 if hopeless else 3600.0),
        lambda: await_coordinator(address, 1.0 if hopeless else 3600.0, credentials=credentials),
    ):
        with pytest.raises(NoCoordinator, match="no coordinator" if hopeless else re.escape(words)):
            ask()
    if not hopeless:
        with pytest.raises(NotTrusted, match=re.escape(words)):
            list(watch(address, credentials=credentials))
    control.heartbeat(Heartbeat(1, "session", 1, "train"))
    assert handler.reached == []
    control.close(timeout_s=0.0)


def test_an_agent_is_no_coordinator(lab: Path) -> None:
    handler = Handler()
    server = serve_coordinator(handler, credentials=load_credentials(lab, agent(2)))
    address = server.start()
    mine = load_credentials(lab, agent(1))
    with pytest.raises(NoCoordinator, match="proves agent 2, not the coordinator"):
        await_coordinator(address, 3600.0, credentials=mine)
    control = GrpcControl(address, credentials=mine)
    assert control.heartbeat(Heartbeat(1, "session", 1, "train")) == Directive()
    assert handler.reached == []
    control.close()
    server.close()


def test_health_is_told_to_whoever_has_a_certificate(lab: Path, coordinator: tuple[Handler, str]) -> None:
    mine = load_credentials(lab, ONLOOKER)
    secured = grpc.ssl_channel_credentials(mine.authority, mine.key, mine.certificate)
    # By the address, as tools do that know nothing of dimat: it is among the certificate's names.
    with grpc.secure_channel(coordinator[1], secured) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


# ----------------------------------------------------------------------------------------------------- the server's log

SCRIPT = """
import sys
from pathlib import Path
from dimat.cli.options import set_up_logging
lab, elsewhere, yesterday = map(Path, sys.argv[1:])
set_up_logging(0, False, lab)
import grpc
from dimat.messages import Schema
from dimat.transport.grpc import GrpcTransport
from dimat.transport.security import agent, load_credentials
server = GrpcTransport(0, "s", Schema(()), credentials=load_credentials(lab, agent(0)))
address = server.start()
def attempt(credentials):
    options = (("grpc.ssl_target_name_override", agent(0).host),)
    channel = grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address)
    with channel:
        try:
            channel.unary_unary("/dimat.v1.Peer/Describe")(b"", timeout=5)
        except grpc.RpcError as error:
            print(error.code().name)
read = lambda folder: ((folder / "agent-1.key").read_bytes(), (folder / "agent-1.pem").read_bytes())
root = (lab / "authority.pem").read_bytes()
attempt(None)
attempt(grpc.ssl_channel_credentials(root))
attempt(grpc.ssl_channel_credentials(root, *read(elsewhere)))
attempt(grpc.ssl_channel_credentials(root, *read(yesterday)))
server.close()
"""


def test_the_server_logs_who_failed_at_the_handshake(lab: Path, elsewhere: Path, yesterday: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, (lab, elsewhere, yesterday))],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.split() == ["UNAVAILABLE"] * 4, done.stderr
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in done.stderr
    assert "certificate has expired" in done.stderr
    assert done.stderr.count("Handshake failed") >= 4
    assert "PRIVATE KEY" not in done.stderr


def test_a_copy_of_the_credentials_does_not_print_the_key(lab: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = load_credentials(lab, agent(1))
    with caplog.at_level(logging.DEBUG):
        attempt("127.0.0.1:9", replace(mine))
    assert "PRIVATE" not in caplog.text
    assert mine.key.decode().splitlines()[1] not in caplog.text
