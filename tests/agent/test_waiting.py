"""Waiting on a network that is there: what is remembered, what is told, and who is asked less often."""

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dimat.agent.build import build_agent
from dimat.agent.deadline import MIN_SAMPLES, Past, expired, is_late
from dimat.agent.gather import gather
from dimat.agent.newest import gather_newest, let_others_read
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import drive
from dimat.agent.waiting import wait_on_network
from dimat.config import load_config
from dimat.messages import Directive, Payload
from dimat.transport.base import Fetch, Wait
from dimat.transport.memory import MemoryHub, MemoryTransport

SETTINGS = ["task.model.name=mlp", "task.model.hidden=[16]", "agents=2", "topology.graph=complete", "merge.align=none"]
ROW = {0: 0.5, 1: 0.5}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Agent, Agent]]:
    """Two agents with deadlines from 0.04 to 0.2 s; nobody runs them but the test."""
    config = load_config(None, [*SETTINGS, "exchange.timeout_s=0.2", "exchange.min_timeout_s=0.04"])
    hub = MemoryHub()
    agents = [
        build_agent(config, number, tmp_path, "s", lambda schema, n=number: MemoryTransport(n, "s", schema, hub))
        for number in range(2)
    ]
    for agent in agents:
        agent.transport.start()
    yield agents[0], agents[1]
    for agent in agents:
        agent.transport.close()


def merge(agent: Agent, number: int, mode: str = "sync") -> dict[int, str]:
    """One exchange of one agent on the real clock; returns who was missing and why."""
    exchange = gather if mode == "sync" else gather_newest
    steps = exchange(agent, number, ROW, PhaseClock(agent.status))
    return dict(drive(steps, lambda wait: wait_on_network(agent, wait)).missing)


def test_waits_that_end_are_remembered_for_each_neighbour(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    other.publish("snapshot", 1)
    other.publish("basis", 0)
    assert wait_on_network(me, Wait("published", (1,), "snapshot", 1, 5.0)) == {1}
    assert len(me.past.waits["published", 1]) == 1
    assert me.past.waits["published", 1][0] < 5.0
    wait_on_network(me, Wait("published", (1,), "basis", 0, 5.0))
    assert len(me.past.waits["published", 1]) == 1, "how long a basis takes says nothing of snapshots"


def test_each_deadline_that_passes_is_logged_with_peer_round_and_phase(
    pair: tuple[Agent, Agent], caplog: pytest.LogCaptureFixture
) -> None:
    me, _ = pair
    for number in (7, 8):
        me.publish("snapshot", number)
        assert "had not published" in merge(me, number)[1]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert re.fullmatch(
        r"agent 0: round 7: snapshot: agent 1 has not published it by its deadline of 0\.(1\d*|2) s", told[0]
    )
    assert told[1].startswith("agent 0: round 8: snapshot: agent 1 has not published it by its deadline of 0.0")
    assert told[1].endswith(" s (2 times in a row)"), "half the floor, or the least that can be asked in"
    assert is_late(me.past, "published", 1)


def test_a_late_neighbour_that_has_caught_up_is_merged_with_and_late_no_more(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    for _ in range(5):
        me.past = expired(me.past, "published", 1)
    me.publish("snapshot", 3)
    other.publish("snapshot", 3)
    other.close_round(3)
    other.transport.gather((other.fetch_from(0, "snapshot", 3),), 1.0)
    assert merge(me, 3) == {}
    assert not is_late(me.past, "published", 1)


def test_one_that_has_closed_the_round_is_not_waited_for(pair: tuple[Agent, Agent]) -> None:
    """It published, gave up on me and is training: its acknowledgement will never come."""
    me, other = pair
    me.config = me.config.model_copy(
        update={"exchange": me.config.exchange.model_copy(update={"timeout_s": 1e6, "min_timeout_s": None})}
    )
    other.publish("snapshot", 3)
    other.close_round(3)
    me.publish("snapshot", 3)
    assert "did not confirm" in merge(me, 3)[1]  # at once: the test's own limit is the oracle


def test_one_that_does_not_answer_is_asked_less_and_less_often(
    pair: tuple[Agent, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    me, other = pair
    other.transport.close()
    asked: list[int] = []
    honest = MemoryTransport.gather
    round_now = 0

    def spy(self: MemoryTransport, fetches: tuple[Fetch, ...], timeout_s: float) -> dict[int, Payload | Exception]:
        asked.extend(round_now for fetch in fetches if fetch.round is None)
        return honest(self, fetches, timeout_s)  # type: ignore[return-value]

    monkeypatch.setattr(MemoryTransport, "gather", spy)
    for round_now in range(1, 33):
        assert 1 in merge(me, round_now, "async")
    assert asked == [1, 2, 4, 8, 16, 24, 32]
    other.transport.start()
    other.publish("snapshot", 40)
    for round_now in (40, 41):
        other.publish("snapshot", round_now)
        assert merge(me, round_now, "async") == {}


def test_one_that_has_nothing_yet_is_there_and_asked_again(pair: tuple[Agent, Agent]) -> None:
    me, other = pair
    for number in range(1, 4):
        assert "has published no 'snapshot' yet" in merge(me, number, "async")[1]
    other.publish("snapshot", 1)
    assert merge(me, 4, "async") == {}


def test_the_patience_of_a_group_is_its_longest_deadline(pair: tuple[Agent, Agent]) -> None:
    me, _ = pair
    me.past = Past({("published", 1): (0.06,) * MIN_SAMPLES})
    assert me.patience_s("published", (1,)) == 0.06
    assert me.patience_s("published", (1, 5)) == 0.2
    assert me.patience_s("published", ()) == 0.0


def last_waits(agent: Agent, last: int, *, published: bool = True) -> list[Wait]:
    waits: list[Wait] = []

    def note(wait: Wait) -> frozenset[int]:
        waits.append(wait)
        return wait_on_network(agent, wait)

    drive(let_others_read(agent, last, published=published), note)
    return waits


def test_one_that_is_done_serves_those_who_are_not(pair: tuple[Agent, Agent]) -> None:
    """It waits for the slow one to read its last snapshot; the slow one knows that it need not wait in turn."""
    fast, slow = pair
    for agent, number in ((fast, 9), (slow, 4)):
        agent.publish("snapshot", number)
        merge(agent, number, "async")
    fast.publish("snapshot", 9)  # again: as if the slow one had not read it yet
    assert last_waits(fast, 9)[0].peers == (1,)
    assert ("read", 1) in fast.past.expiries, "the slow one has not come: the deadline passed"
    merge(slow, 9, "async")
    last_waits(fast, 9)
    assert ("read", 1) not in fast.past.expiries
    assert last_waits(slow, 9) == []


def test_one_that_leaves_without_reading_says_so(pair: tuple[Agent, Agent]) -> None:
    one, other = pair
    one.config = one.config.model_copy(
        update={"exchange": one.config.exchange.model_copy(update={"timeout_s": 1e6, "min_timeout_s": None})}
    )
    one.publish("snapshot", 9)
    assert last_waits(other, 9, published=False) == []
    assert len(last_waits(one, 9)) == 1  # at once: the test's own limit is the oracle


def test_one_that_is_gone_by_the_time_it_is_asked_whether_it_still_reads_is_not_waited_for(
    pair: tuple[Agent, Agent],
) -> None:
    """Both have ended without the other's last snapshot. It heard that this one reads no more, and left; this one asks
    a moment later, and nobody answers. That the other said goodbye, the coordinator knows."""
    one, other = pair
    one.config = one.config.model_copy(
        update={"exchange": one.config.exchange.model_copy(update={"timeout_s": 1e6, "min_timeout_s": None})}
    )
    one.publish("snapshot", 9)
    other.transport.close()
    beat = threading.Timer(0.2, lambda: one.hear(Directive(done=(1,))))
    beat.start()
    assert len(last_waits(one, 9)) == 1  # ends with the heartbeat: the test's own limit is the oracle
    beat.join()
