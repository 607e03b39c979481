"""What is held, who has read it, and sleeping until something changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest

from dimat.errors import RoundGone
from dimat.messages import Header, Payload
from dimat.transport import store as module
from dimat.transport.base import Wait
from dimat.transport.store import Changes, SnapshotStore, wait_for_peers


def payload(round_: int, kind: str = "snapshot") -> Payload:
    return Payload(Header(kind, round_, 0), ())


def test_acknowledgements_go_with_their_round() -> None:
    store = SnapshotStore(0)
    store.publish(payload(1))
    store.acknowledge(5, "snapshot", 1)
    store.acknowledge(6, "snapshot", 9)  # never published: ignored, so that nobody can fill the memory
    assert store.readers("snapshot", 1) == {5}
    assert store.readers("snapshot", 9) == frozenset()
    store.publish(payload(2))
    assert store.readers("snapshot", 1) == {5}
    store.publish(payload(3))
    assert store.readers("snapshot", 1) == frozenset()
    with pytest.raises(RoundGone, match=r"agent 0 .* round 1: it holds rounds \[2, 3\]"):
        store.get("snapshot", 1)


def test_a_round_that_is_published_again_has_not_been_read() -> None:
    """As after a restart: whoever read the former one reads again."""
    store = SnapshotStore(0)
    store.publish(payload(1))
    store.acknowledge(5, "snapshot", 1)
    again = payload(1)
    store.publish(again)
    assert store.readers("snapshot", 1) == frozenset()
    assert store.get("snapshot", None) is again


def test_an_old_round_published_late_does_not_push_out_newer_ones() -> None:
    store = SnapshotStore(0)
    for round_ in (5, 6, 4):
        store.publish(payload(round_))
    assert store.newest() == {"snapshot": 6}
    assert store.get("snapshot", 5).header.round == 5
    with pytest.raises(RoundGone):
        store.get("snapshot", 4)


def test_sleepers_and_listeners_hear_of_changes() -> None:
    changes, heard = Changes(), []
    unsubscribe = changes.subscribe(lambda: heard.append(changes.number))
    changes.wait(changes.number, 0.01)  # nothing happens: it ends with its time
    seen = changes.number
    threading.Timer(0.02, changes.bump).start()
    start = time.monotonic()
    changes.wait(seen, 20.0)
    assert time.monotonic() - start < 10.0
    unsubscribe()
    changes.bump()
    assert heard == [1]
    changes.wait(seen, 20.0)  # it has changed already: no sleep at all


def test_the_words_are_told_again_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once when the missing ones change, later when only the words do, never twice the same."""
    monkeypatch.setattr(module, "WAIT_TICK_S", 0.02)
    told: list[dict[int, str]] = []
    words = iter(["new", "new", "old"] + ["old"] * 100)
    done: set[int] = set()

    def on_change(missing: Mapping[int, str]) -> None:
        told.append(dict(missing))
        if missing == {1: "old"}:
            done.add(1)

    result = wait_for_peers(
        Wait("published", (1,), "snapshot", 1, 20.0),
        Changes(),
        lambda: frozenset(done),
        lambda peer: next(words),
        on_change,
    )
    assert result == {1}
    assert told == [{1: "new"}, {1: "old"}, {}]
