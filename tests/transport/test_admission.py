"""How much a caller may ask, and which methods are open to whom."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimat.errors import Busy, NotAllowed, UsageError
from dimat.messages import Header, Payload, Schema
from dimat.proto.v1 import coordinator_pb2, peer_pb2
from dimat.transport.base import Buffer, Fetch
from dimat.transport.grpc import GrpcTransport, Limits, serve_coordinator
from dimat.transport.grpc.admission import MAX_CALLERS, Admission
from dimat.transport.grpc.callers import Caller, coordinator_rules, ledger_rules, peer_rules, require_admin
from dimat.transport.grpc.server import GrpcServer
from dimat.transport.security import ADMIN, COORDINATOR, ONLOOKER, Identity, agent, load_credentials

HERE = "127.0.0.1"


def proven(identity: Identity | None, host: str = HERE) -> Caller:
    return Caller(host, secured=True, identity=identity)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ask(admission: Admission, caller: Caller) -> bool:
    try:
        with admission.count(caller):
            return True
    except Busy:
        return False


# --------------------------------------------------------------------------------------------------------------- limits


@given(st.lists(st.floats(0, 3), min_size=1, max_size=60), st.integers(1, 5))
def test_no_caller_gets_more_than_its_rate_and_whoever_keeps_to_it_gets_all(pauses: list[float], rate: int) -> None:
    """An oracle by definition: in any stretch of t seconds at most rate × (t + 1) calls pass."""
    clock = Clock()
    admission = Admission({}, Limits(max_calls_per_s=rate), clock)
    passed: list[float] = []
    for pause in pauses:
        clock.now += pause
        if ask(admission, proven(agent(1))):
            passed.append(clock.now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= rate * (passed[last] - passed[first] + 1) + 1e-6
    slow, polite = Clock(), Admission({}, Limits(max_calls_per_s=rate), clock)
    polite._clock = slow
    for _ in range(20):
        assert ask(polite, proven(agent(1)))
        slow.now += 1.0001 / rate


def test_an_identity_has_one_budget_wherever_it_calls_from_and_takes_nobody_elses() -> None:
    admission = Admission({}, Limits(max_calls_per_s=2), Clock())
    assert [ask(admission, proven(agent(1), host)) for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3")] == [
        True,
        True,
        False,
    ]
    assert ask(admission, proven(agent(2), "10.0.0.1"))


def test_in_plain_text_the_agents_of_a_host_share_a_budget() -> None:
    admission = Admission({}, Limits(max_calls_per_s=2, callers_per_host=3), Clock())
    assert [ask(admission, Caller(HERE, secured=False)) for _ in range(7)] == [True] * 6 + [False]


def test_calls_under_way_are_counted_until_they_end() -> None:
    admission = Admission({}, Limits(max_calls=2), Clock())
    with admission.count(proven(agent(1))):
        with admission.count(proven(agent(1))):
            with (
                pytest.raises(Busy, match=r"2 calls are under way.*security\.max_calls"),
                admission.count(proven(agent(1))),
            ):
                raise AssertionError("let in")
            assert ask(admission, proven(agent(2)))
        assert ask(admission, proven(agent(1)))


def test_memory_for_callers_is_bounded_and_keeps_those_who_are_here() -> None:
    admission = Admission({}, Limits(max_calls=1), Clock())
    with admission.count(proven(agent(0))):
        for number in range(1, 2 * MAX_CALLERS):
            assert ask(admission, proven(agent(number)))
        assert len(admission._accounts) <= MAX_CALLERS + 1
        assert not ask(admission, proven(agent(0))), "its call is still under way"


def test_too_many_calls_are_told_so_over_the_wire_and_then_answered_again(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(max_calls=4, callers_per_host=1)
    server = GrpcTransport(0, "s", Schema(()), limits=limits)
    address = server.start()
    held = peer_pb2.DescribeRequest(reader=1, wait_s=30.0, until=peer_pb2.Published(kind="snapshot", round=1))
    with grpc.insecure_channel(address) as channel:
        describe = channel.unary_unary("/dimat.v1.Peer/Describe")
        waiting = [describe.future(held.SerializeToString(), timeout=60) for _ in range(4)]
        with pytest.raises(grpc.RpcError) as caught:
            while True:  # those before may not have arrived yet
                describe(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "4 calls are under way" in caught.value.details()
        for call in waiting:
            call.cancel()
        done = threading.Event()
        for _ in range(1000):
            try:
                describe(b"", timeout=5)
                done.set()
                break
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert done.is_set()
    server.close()
    refusals = [record for record in caplog.records if record.message.startswith("refused Describe")]
    assert len(refusals) == 1, "who insists does not fill the log"


def test_a_busy_peer_is_asked_again_and_told_from_one_that_is_gone(scripted_peer: Any) -> None:
    server = GrpcTransport(0, "s", Schema(()), limits=Limits(max_calls_per_s=1e-6, callers_per_host=1))
    reader = GrpcTransport(1, "r", Schema(()))
    reader.start()
    reader.connect({0: server.start()})
    assert reader.describe(0, 5.0).session == "s"
    with pytest.raises(Busy, match=r"agent 0 at .* is busy: more than 1e-06 calls a second"):
        reader.describe(0, 5.0)
    reader.close()
    server.close()

    def script(number: int, right: list[bytes]) -> Any:
        if number == 0:
            raise Busy("busy: as the script says")
        return right

    sent = Payload(Header("snapshot", 1, 0), ())
    with scripted_peer(sent, script) as (peer, reader):
        answer = reader.gather((Fetch(0, "snapshot", 1, Buffer(Schema(()))),), 30.0)[0]
    assert answer == sent
    assert len(peer.positions) == 2


# ---------------------------------------------------------------------------------------------------------------- rules


def denied(rule: Callable[[Caller, Any], None], caller: Caller, request: Any = None) -> bool:
    try:
        rule(caller, request)
    except NotAllowed:
        return True
    return False


EVERYBODY = [proven(agent(1)), proven(agent(2)), proven(COORDINATOR), proven(ADMIN), proven(ONLOOKER), proven(None)]


def allowed(rule: Callable[[Caller, Any], None], request: Any = None) -> list[str]:
    return [str(caller.identity) for caller in EVERYBODY if not denied(rule, caller, request)]


def test_who_may_do_what() -> None:
    """The whole table; the request claims to be of agent 1."""
    peer = peer_rules(0, lambda number: number == 1)
    claims = peer_pb2.FetchRequest(reader=1, kind="snapshot")
    assert allowed(peer["/dimat.v1.Peer/Fetch"], claims) == ["agent 1"]
    looks = peer_pb2.DescribeRequest(reader=1)
    assert allowed(peer["/dimat.v1.Peer/Describe"], looks) == [
        "agent 1", "the coordinator", "an admin", "an onlooker",
    ]  # fmt: skip
    looks.acknowledged.add(kind="snapshot", round=1)
    assert allowed(peer["/dimat.v1.Peer/Describe"], looks) == ["agent 1"]
    coordinator = coordinator_rules()
    for name, request in (
        ("Join", coordinator_pb2.JoinRequest(agent=1)),
        ("Heartbeat", coordinator_pb2.HeartbeatRequest(agent=1)),
        ("Report", coordinator_pb2.ReportRequest(agent=1)),
    ):
        assert allowed(coordinator[f"/dimat.v1.Coordinator/{name}"], request) == ["agent 1"]
    everybody = ["agent 1", "agent 2", "the coordinator", "an admin", "an onlooker"]
    assert allowed(coordinator["/dimat.v1.Coordinator/Watch"]) == everybody
    assert allowed(coordinator["/dimat.v1.Coordinator/Drain"], coordinator_pb2.DrainRequest(agent=1)) == ["an admin"]
    ledger = ledger_rules()
    assert allowed(ledger["/dimat.v1.Continual/Submit"]) == ["agent 1", "agent 2", "an admin"]
    assert allowed(ledger["/dimat.v1.Continual/Status"]) == everybody
    assert allowed(ledger["/dimat.v1.Continual/Export"]) == everybody
    assert allowed(require_admin) == ["an admin"]
    assert allowed(coordinator["/dimat.v1.Coordinator/Drain"], coordinator_pb2.DrainRequest(agent=3)) == ["an admin"]


def test_every_method_of_every_service_has_a_rule() -> None:
    from dimat.proto.v1 import continual_pb2

    rules = {**peer_rules(0, lambda peer: True), **coordinator_rules(), **ledger_rules()}
    for file in (peer_pb2, coordinator_pb2, continual_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"/{service.full_name}/{method.name}" in rules


def test_over_plain_text_edges_count_and_admins_are_local() -> None:
    somebody = Caller(HERE, secured=False)
    fetch = peer_rules(0, lambda number: number == 1)["/dimat.v1.Peer/Fetch"]
    assert not denied(fetch, somebody, peer_pb2.FetchRequest(reader=1))
    assert denied(fetch, somebody, peer_pb2.FetchRequest(reader=2))
    assert not denied(require_admin, somebody)
    assert denied(require_admin, Caller("10.0.0.7", secured=False))


def test_what_no_rule_names_is_refused_and_what_is_for_admins_never_reached(
    lab: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reached: list[str] = []

    async def stop(request: bytes, context: Any) -> bytes:
        reached.append(context.peer())
        return b"stopped"

    handlers = {name: grpc.unary_unary_rpc_method_handler(stop) for name in ("Stop", "Forgotten")}
    server = GrpcServer(
        {"lab.Service": handlers},
        credentials=load_credentials(lab, COORDINATOR),
        admission=Admission({"/lab.Service/Stop": require_admin}),
    )
    address = server.start()

    def call(who: Identity, name: str) -> Any:
        mine = load_credentials(lab, who)
        secured = grpc.ssl_channel_credentials(mine.authority, mine.key, mine.certificate)
        with grpc.secure_channel(address, secured) as channel:
            return channel.unary_unary(f"/lab.Service/{name}")(b"", timeout=5)

    for who, name in ((agent(1), "Stop"), (ONLOOKER, "Stop"), (COORDINATOR, "Stop"), (ADMIN, "Forgotten")):
        with pytest.raises(grpc.RpcError) as caught:
            call(who, name)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reached == []
    assert "refused Stop by agent 1 at 127.0.0.1: this is for an admin, and you are agent 1" in caplog.text
    assert call(ADMIN, "Stop") == b"stopped"
    assert len(reached) == 1
    server.close()


def test_bytes_that_are_no_message_are_refused_and_not_a_defect(caplog: pytest.LogCaptureFixture) -> None:
    server = serve_coordinator(Nobody())
    address = server.start()
    with caplog.at_level(logging.ERROR), grpc.insecure_channel(address) as channel:
        for name in ("Join", "Heartbeat", "Report", "Drain"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/dimat.v1.Coordinator/{name}")(b"\xff\xff\xff", timeout=5)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "3 bytes came that are no message" in caught.value.details()
    assert not caplog.records
    server.close()


class Nobody:
    """A coordinator that must not be asked."""

    def changed(self, after: int, timeout_s: float) -> Any:
        threading.Event().wait(timeout_s)
        from dimat.messages import View

        return View(0, "forming")

    def __getattr__(self, name: str) -> Any:
        if name in ("join", "heartbeat", "report", "drain"):

            def refuse(value: object) -> None:
                raise UsageError(f"{name} was reached")

            return refuse
        raise AttributeError(name)
