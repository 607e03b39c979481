"""The line to the coordinator: over gRPC, with the coordinator late, away and back; and in memory."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dimat.cli.drain import drain_command
from dimat.errors import NoCoordinator, PeerUnavailable, SchemaError, UsageError
from dimat.messages import Change, Directive, Drain, Heartbeat, Join, Member, Report, View
from dimat.runfolder import register_process
from dimat.transport.grpc import GrpcControl, serve_coordinator, watch
from dimat.transport.grpc.coordinator_client import CoordinatorClient
from dimat.transport.grpc.loop import LoopThread
from dimat.transport.memory import MemoryControl


class Coordinator:
    """A coordinator of `num_agents` that keeps everything in lists."""

    def __init__(self, num_agents: int = 1) -> None:
        self.reports: list[int] = []
        self.refused: set[int] = set()
        self.failures = 0
        self.changes: tuple[Change, ...] = ()
        self._joined: set[int] = set()
        self._num_agents = num_agents
        self._changed = threading.Condition()
        self._view = View(0, "forming", members=tuple(Member(agent) for agent in range(num_agents)))

    def show(self, **changes: Any) -> None:
        with self._changed:
            self._view = replace(self._view, number=self._view.number + 1, **changes)
            self._changed.notify_all()

    def join(self, join: Join) -> View:
        if join.agent >= self._num_agents:
            raise UsageError(f"agent {join.agent} is not in this run", hint="ids are 0 to 1")
        if join.fingerprint == "other":
            raise SchemaError("tensor 'w' differs")
        self._joined.add(join.agent)
        members = tuple(
            Member(agent, state="joined" if agent in self._joined else "absent") for agent in range(self._num_agents)
        )
        self.show(state="running" if len(self._joined) == self._num_agents else "forming", members=members)
        return self._view

    def heartbeat(self, beat: Heartbeat) -> Directive:
        return Directive(beat.round + 1, "heard", changes=self.changes)

    def drain(self, drain: Drain) -> Directive:
        if drain.agent > 1:
            raise UsageError("agent 7 is not in its rounds")
        return Directive(drain.agent + 5, "asked to leave")

    def report(self, report: Report) -> Directive:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("disk full")
        if report.round in self.refused:
            raise UsageError("not of this run")
        self.reports.append(report.round)
        return Directive(9, f"round {report.round}")

    def changed(self, after: int, timeout_s: float) -> View:
        with self._changed:
            self._changed.wait_for(lambda: self._view.number > after, timeout_s)
            return self._view


@pytest.fixture
def handler() -> Coordinator:
    return Coordinator()


@pytest.fixture
def control() -> Iterator[GrpcControl]:
    """A line to a coordinator that is not there yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    control = GrpcControl(address, retry_s=0.02)
    yield control
    control.close(timeout_s=0.0)


def serve(handler: Coordinator, control: GrpcControl) -> Any:
    server = serve_coordinator(handler, port=int(control.address.rpartition(":")[2]))
    assert server.start() == control.address
    return server


def join(agent: int = 0, fingerprint: str = "f") -> Join:
    return Join(agent, f"s{agent}", f"h:{agent}", fingerprint, 100)


def report(round_: int) -> Report:
    return Report(0, "s", round_, {"loss": 0.5})


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------------- join


def test_joining_waits_for_the_others(control: GrpcControl) -> None:
    handler = Coordinator(num_agents=2)
    server = serve(handler, control)
    other = GrpcControl(control.address)
    late = threading.Timer(0.1, lambda: other.join(join(1), timeout_s=20.0))
    late.start()
    view = control.join(join(0), timeout_s=20.0)
    assert view.state == "running"
    assert [member.state for member in view.members] == ["joined", "joined"]
    late.join()
    other.close()
    server.close()


def test_who_has_not_come_is_named(control: GrpcControl) -> None:
    server = serve(Coordinator(num_agents=3), control)
    with pytest.raises(PeerUnavailable, match=r"still forming after 2 s.*: 0, 2"):
        control.join(join(1), timeout_s=2.0)
    server.close()


def test_a_coordinator_that_is_not_there_is_named(control: GrpcControl) -> None:
    start = time.monotonic()
    with pytest.raises(NoCoordinator, match=f"no coordinator at {control.address} after 1 s") as caught:
        control.join(join(), timeout_s=0.6)
    assert time.monotonic() - start > 0.5
    assert "dimat coordinator" in str(caught.value.hint)


def test_a_coordinator_that_comes_late_is_joined(control: GrpcControl, handler: Coordinator) -> None:
    servers: list[Any] = []
    late = threading.Timer(0.2, lambda: servers.append(serve(handler, control)))
    late.start()
    assert control.join(join(), timeout_s=20.0).state == "running"
    late.join()
    servers[0].close()


def test_a_coordinator_that_restarts_while_the_run_forms_is_joined_again(control: GrpcControl) -> None:
    """It has forgotten who joined: both agents join again by themselves."""
    server = serve(Coordinator(num_agents=2), control)
    views: list[View] = []
    waiting = threading.Thread(target=lambda: views.append(control.join(join(0), timeout_s=20.0)))
    waiting.start()
    eventually(lambda: server._views._sleepers)  # it has joined, and waits for the other one
    server.close(grace_s=0.0)
    server = serve(Coordinator(num_agents=2), control)
    other = GrpcControl(control.address)
    assert other.join(join(1), timeout_s=20.0).state == "running"
    waiting.join()
    assert views[0].state == "running"
    other.close()
    server.close()


def test_a_refusal_comes_back_as_it_was_said(control: GrpcControl, handler: Coordinator) -> None:
    server = serve(handler, control)
    with pytest.raises(UsageError, match="agent 7 is not in this run") as caught:
        control.join(join(7), timeout_s=20.0)
    assert caught.value.hint == "ids are 0 to 1"
    with pytest.raises(SchemaError, match="tensor 'w' differs"):
        control.join(join(0, fingerprint="other"), timeout_s=20.0)
    server.close()


# ------------------------------------------------------------------------------------------------ heartbeat and report


def test_heartbeats_need_no_coordinator(control: GrpcControl, handler: Coordinator) -> None:
    start = time.monotonic()
    assert control.heartbeat(Heartbeat(0, "s", 1, "train")) == Directive()
    assert time.monotonic() - start < 5.0
    server = serve(handler, control)
    eventually(lambda: control.heartbeat(Heartbeat(0, "s", 4, "train")) == Directive(5, "heard"))
    server.close(grace_s=0.0)
    assert control.heartbeat(Heartbeat(0, "s", 6, "train")) == Directive(5, "heard")  # the last word stands


def test_changes_that_were_told_stay_when_an_older_answer_comes_later(
    control: GrpcControl, handler: Coordinator
) -> None:
    server = serve(handler, control)
    handler.changes = (Change(2, 5, (1,)),)
    beat = Heartbeat(0, "s", 1, "train")
    eventually(lambda: control.heartbeat(beat).changes == handler.changes)
    told, handler.changes = handler.changes, (Change(1, 3, ()),)
    assert control.heartbeat(replace(beat, round=2)) == Directive(3, "heard", told)
    handler.changes = (Change(3, 9, ()),)
    assert control.heartbeat(beat).changes == handler.changes
    server.close(grace_s=0.0)


def test_an_agent_is_drained_through_the_coordinator(
    control: GrpcControl, handler: Coordinator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(handler, control)
    assert drain_command(control.address, 1, "text") == 0
    assert capsys.readouterr().out == "agent 1 leaves after round 6\n"
    register_process(tmp_path, "coordinator", None, control.address)
    assert drain_command(str(tmp_path), 0, "json") == 0
    assert json.loads(capsys.readouterr().out) == {"agent": 0, "last_round": 5}
    with pytest.raises(UsageError, match="agent 7 is not in its rounds"):
        drain_command(control.address, 7, "text")
    with pytest.raises(UsageError, match="neither the folder of a run nor HOST:PORT"):
        drain_command("nowhere", 7, "text")
    server.close(grace_s=0.0)


def test_a_drain_is_asked_for_until_a_round_is_named(
    control: GrpcControl, handler: Coordinator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that was just restarted names none before it has heard all agents."""
    answers = [Directive(), Directive(), Directive(7), Directive()]
    monkeypatch.setattr(handler, "drain", lambda drain: answers.pop(0))
    monkeypatch.setattr("dimat.cli.drain.RETRY_S", 0.01)
    server = serve(handler, control)
    assert drain_command(control.address, 1, "text") == 0
    assert capsys.readouterr().out == "agent 1 leaves after round 7\n"
    monkeypatch.setattr("dimat.cli.drain.PATIENCE_S", 0.0)
    assert drain_command(control.address, 1, "text") == 0
    assert "has named no round yet" in capsys.readouterr().out
    server.close(grace_s=0.0)


def test_reports_are_handed_in(control: GrpcControl, handler: Coordinator) -> None:
    server = serve(handler, control)
    assert control.report(report(1)) == Directive(9, "round 1")
    assert control.report(report(2)) == Directive(9, "round 2")
    assert handler.reports == [1, 2]
    server.close()


def test_reports_are_kept_and_handed_in_later_in_order(
    control: GrpcControl, handler: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dimat.transport.grpc.control.REPORT_S", 0.1)
    server = serve(handler, control)
    control.report(report(1))
    server.close(grace_s=0.0)
    start = time.monotonic()
    for round_ in (2, 3, 4):
        control.report(report(round_))
    assert time.monotonic() - start < 20.0
    server = serve(handler, control)
    eventually(lambda: len(handler.reports) >= 4)
    assert handler.reports == [1, 2, 3, 4]
    eventually(lambda: control.report(report(5)).reason == "round 5" or handler.reports[-1] == 5)
    assert handler.reports[:5] == [1, 2, 3, 4, 5]
    server.close()


def test_a_coordinator_that_fails_is_asked_again_and_one_that_refuses_is_not(
    control: GrpcControl, handler: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    handler.failures = 2
    handler.refused = {2}
    server = serve(handler, control)
    for round_ in (1, 2, 3):
        control.report(report(round_))
    eventually(lambda: handler.reports == [1, 3])
    refused = [record.message for record in caplog.records if "round 2 was refused" in record.message]
    assert len(refused) == 1
    assert "not of this run" in refused[0]
    server.close()


def test_closing_hands_in_what_is_kept(control: GrpcControl, handler: Coordinator) -> None:
    handler.failures = 2
    server = serve(handler, control)
    control.report(report(1))
    control.close(timeout_s=20.0)
    assert handler.reports == [1]
    control.close()
    server.close()


def test_closing_goes_on_for_as_long_as_reports_are_taken(control: GrpcControl, handler: Coordinator) -> None:
    """Twenty reports that take a tenth of a second each, and half a second of patience."""
    taken = handler.report

    def slowly(told: Report) -> Directive:
        time.sleep(0.1)
        return taken(told)

    handler.report = slowly  # type: ignore[method-assign]
    for round_ in range(1, 21):
        control.report(report(round_))
    server = serve(handler, control)
    control.close(timeout_s=1.0)
    assert handler.reports == list(range(1, 21))
    server.close()


def test_closing_says_what_was_lost(
    control: GrpcControl, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dimat.transport.grpc.control.REPORT_S", 0.1)
    control.report(report(3))
    control.report(report(4))
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        control.close(timeout_s=0.2)
    assert time.monotonic() - start < 5.0
    assert "reports of rounds 3, 4 were not handed in" in caplog.text


# --------------------------------------------------------------------------------------------------------------- watch


def test_watching_shows_every_change_until_the_end(control: GrpcControl, handler: Coordinator) -> None:
    handler.show(state="running")  # before the server looks for the first time
    server = serve(handler, control)
    seen = []
    for view in watch(control.address):
        seen.append((view.number, view.state))
        if view.state != "done":
            handler.show(state="done" if view.number == 3 else "running")
    assert seen == [(1, "running"), (2, "running"), (3, "running"), (4, "done")]
    assert [view.number for view in watch(control.address, after=2)] == [4]
    server.close()


def test_watching_outlives_the_coordinator(control: GrpcControl, handler: Coordinator) -> None:
    """The one that comes back counts its views anew."""
    for _ in range(5):
        handler.show(state="running")  # before the server looks for the first time
    servers = [serve(handler, control)]
    seen = []
    for view in watch(control.address):
        seen.append((view.number, view.state))
        if len(seen) == 1:
            servers[0].close(grace_s=0.0)
            again = Coordinator()
            again.show(state="done")
            servers.append(serve(again, control))
    assert seen == [(5, "running"), (1, "done")]
    servers[1].close()


def test_watching_ends_when_told(control: GrpcControl, handler: Coordinator) -> None:
    server = serve(handler, control)
    over = threading.Event()
    for view in watch(control.address, over=over):
        assert view.state == "forming"
        over.set()
    server.close()
    assert list(watch(control.address, over=over)) == []


def test_many_onlookers_do_not_keep_agents_out(control: GrpcControl, handler: Coordinator) -> None:
    """They hold no thread each: joins and reports get through while all of them wait."""
    server = serve(handler, control)
    over = threading.Event()
    seen: list[int] = []

    def look() -> None:
        for view in watch(control.address, over=over):
            seen.append(view.number)

    onlookers = [threading.Thread(target=look) for _ in range(20)]
    for onlooker in onlookers:
        onlooker.start()
    eventually(lambda: len(seen) == 20)
    assert control.join(join(), timeout_s=20.0).state == "running"
    assert control.report(report(1)).reason == "round 1"
    eventually(lambda: seen.count(1) == 20)
    over.set()
    for onlooker in onlookers:
        onlooker.join()
    server.close()


# ------------------------------------------------------------------------------------------------- server and in memory


def test_the_server_is_healthy_and_ends(control: GrpcControl, handler: Coordinator) -> None:
    server = serve(handler, control)
    with grpc.insecure_channel(control.address) as channel:
        request = health_pb2.HealthCheckRequest(service="dimat.v1.Coordinator")
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(UsageError, match=f"{control.address}.*in use"):
        serve(handler, control)
    server.close()
    server.close()
    serve(handler, control).close()


def test_the_coordinator_stays_on_loopback(handler: Coordinator) -> None:
    with pytest.raises(UsageError, match="plain text"):
        serve_coordinator(handler, "0.0.0.0").start()


def test_a_watch_that_is_closed_from_another_thread_ends(control: GrpcControl, handler: Coordinator) -> None:
    server = serve(handler, control)
    line = CoordinatorClient(control.address)
    seen: list[View] = []
    looking = threading.Thread(target=lambda: seen.extend(line.views(-1, time.monotonic() + 60.0)))
    looking.start()
    time.sleep(0.1)
    line.close()
    looking.join(timeout=20.0)
    assert not looking.is_alive()
    server.close()


def test_a_watch_that_nobody_holds_may_be_collected_on_the_loop(control: GrpcControl, handler: Coordinator) -> None:
    """Garbage is collected by whichever thread allocates next; one that waits there for the loop stops all of gRPC."""
    server = serve(handler, control)
    line = CoordinatorClient(control.address)
    try:
        handler.show(reason="begun")
        views = line.views(-1, time.monotonic() + 60.0)
        assert next(views).reason == "begun"
        closed = threading.Event()

        def collect() -> None:
            views.close()  # type: ignore[attr-defined]  # it is a generator
            closed.set()

        loop, _ = line._dialled()
        loop.loop.call_soon_threadsafe(collect)
        assert closed.wait(20.0)
        assert control.heartbeat(Heartbeat(0, "s", 3, "train")).stop_after == 4
    finally:
        line.close()
        server.close()


def test_the_loop_does_not_wait_for_itself() -> None:
    loop = LoopThread.acquire()
    told: list[BaseException | None] = []

    async def inner() -> None:
        return None

    async def outer() -> None:
        try:
            loop.run(inner())
        except RuntimeError as error:
            told.append(error)

    try:
        loop.run(outer())
    finally:
        loop.release()
    assert "cannot wait" in str(told[0])


def test_in_memory_everything_arrives() -> None:
    handler = Coordinator(num_agents=2)
    control = MemoryControl(handler)
    assert control.join(join(0), timeout_s=0.0).state == "forming"  # let in one after the other, in one thread
    with pytest.raises(PeerUnavailable, match=r"agents that have not joined: 1"):
        control.join(join(0), timeout_s=0.05)
    late = threading.Timer(0.05, lambda: handler.join(join(1)))
    late.start()
    assert control.join(join(0), timeout_s=20.0).state == "running"
    assert control.heartbeat(Heartbeat(0, "s", 1, "train")) == Directive(2, "heard")
    assert control.report(report(1)) == Directive(9, "round 1")
    with pytest.raises(UsageError):
        control.join(join(5), timeout_s=1.0)
    control.close()
    late.join()
