"""When a client of a served ledger asks again and when it gives up: two clocks, moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from dimat.errors import DimatError, PayloadError, PeerUnavailable, SchemaError, UsageError
from dimat.transport.grpc import continual_retry
from dimat.transport.grpc.continual_retry import MAX_LOSSES, Patience, retried


class Clock:
    """Seconds; sleeping moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

        async def sleep(pause_s: float) -> None:
            self.pauses.append(pause_s)
            self.now += pause_s

        monkeypatch.setattr(continual_retry.asyncio, "sleep", sleep)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def status(code: grpc.StatusCode, details: str = "why") -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details)


def run(once: Callable[[], Awaitable[Any]], patience: Patience) -> Any:
    return asyncio.run(retried(once, patience))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED]
)
def test_who_is_away_is_asked_again_until_patience_is_over(clock: Clock, code: grpc.StatusCode) -> None:
    num_calls = 0

    async def once() -> None:
        nonlocal num_calls
        num_calls += 1
        raise status(code)

    with pytest.raises(DimatError) as given_up:
        run(once, Patience("the ledger", 60.0, clock))
    assert given_up.value.exit_code == 1
    assert 55.0 < clock.now <= 60.0
    assert num_calls > 10
    assert max(clock.pauses) <= continual_retry.MAX_PAUSE_S


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, SchemaError),
        (grpc.StatusCode.INVALID_ARGUMENT, UsageError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, UsageError),
        (grpc.StatusCode.UNIMPLEMENTED, DimatError),
    ],
)
def test_answers_are_not_asked_for_again(clock: Clock, code: grpc.StatusCode, kind: type[Exception]) -> None:
    num_calls = 0

    async def once() -> None:
        nonlocal num_calls
        num_calls += 1
        raise status(code)

    with pytest.raises(kind, match="why"):
        run(once, Patience("the ledger", 60.0, clock))
    assert num_calls == 1


def test_bytes_that_change_time_after_time_are_no_accident(clock: Clock) -> None:
    num_calls = 0

    async def once() -> None:
        nonlocal num_calls
        num_calls += 1
        raise status(grpc.StatusCode.DATA_LOSS)

    with pytest.raises(PayloadError):
        run(once, Patience("the ledger", 60.0, clock))
    assert num_calls == MAX_LOSSES + 1


def test_every_call_that_gets_further_sets_the_clock_back(clock: Clock) -> None:
    patience = Patience("the ledger", 60.0, clock)
    position = 0

    async def once() -> int:
        nonlocal position
        clock.now += 50.0
        position += 1
        patience.heard(position)
        if position < 100:
            raise status(grpc.StatusCode.UNAVAILABLE)
        return position

    assert run(once, patience) == 100
    assert clock.now > 5000.0


def test_calls_that_get_nowhere_do_not_though_the_server_speaks(clock: Clock) -> None:
    patience = Patience("the ledger", 60.0, clock)

    async def once() -> None:
        clock.now += 5.0
        patience.heard(("receiving", 7))
        raise status(grpc.StatusCode.UNAVAILABLE, "busy")

    with pytest.raises(PeerUnavailable, match=r"given up after 60 s: .*busy"):
        run(once, patience)
    assert clock.now < 75.0


def test_a_break_after_a_long_wait_is_a_first_one(clock: Clock) -> None:
    patience = Patience("the ledger", 60.0, clock)
    num_calls = 0

    async def once() -> str:
        nonlocal num_calls
        num_calls += 1
        if num_calls < 3:
            for _ in range(100):  # it waits in a queue, and is told so
                clock.now += 5.0
                patience.heard(("queued", 7))
            raise status(grpc.StatusCode.UNAVAILABLE)
        return "in"

    assert run(once, patience) == "in"


def test_silence_within_a_call_ends_it() -> None:
    async def silent() -> None:
        patience = Patience("the ledger", 0.05)
        with pytest.raises(PeerUnavailable, match="the ledger is silent"):
            await patience.wait(asyncio.get_running_loop().create_future())

    asyncio.run(silent())
