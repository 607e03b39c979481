"""What every call to a server passes before its handler sees it: is it too much, is it whole, is it allowed.

Each caller has a budget: calls under way, and calls a second (a bucket that holds one second's worth). With
certificates a caller is an identity, whatever addresses it comes from; in plain text it is a host, on which several
agents may live. Requests are counted before they are parsed. A method that no rule names is refused.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from dimat.errors import Busy, DimatError, NotAllowed, UsageError
from dimat.transport.grpc.callers import Caller, Rule, anybody, caller_of
from dimat.transport.grpc.errors import BUSY, to_status

MAX_CALLERS = 1024
"""Callers whose calls are counted; the one that was silent the longest is forgotten first."""
TELL_S = 10.0
"""A caller that is refused again and again is logged this often."""
HEALTH = "/grpc.health.v1.Health/"

log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller may ask.

    Attributes:
        max_calls_per_s: calls a second.
        max_calls: calls under way at the same moment.
        callers_per_host: in plain text, how many callers may be on one host and share its budget.
    """

    max_calls_per_s: float = 1000.0
    max_calls: int = 64
    callers_per_host: int = 64


@dataclass(slots=True)
class _Account:
    """What a caller has left."""

    calls_left: float
    as_of: float
    under_way: int = 0
    told_at: dict[str, float] = field(default_factory=dict)


class Admission(grpc.aio.ServerInterceptor):
    """Lets calls in by rules and limits; used on the loop alone.

    Args:
        rules: by full method name, such as `/dimat.v1.Peer/Fetch`. The health service is open to whoever gets here.
        limits: per caller.
        clock: seconds, monotonic.
    """

    def __init__(
        self, rules: Mapping[str, Rule], limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rules = rules
        self._limits = limits or Limits()
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The method's handler behind the checks."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self._behind_checks(handler_call_details.method, handler)

    @contextmanager
    def count(self, caller: Caller) -> Iterator[None]:
        """One call of `caller` is under way.

        Raises:
            Busy: it is one too many, or comes too soon.
        """
        many = 1 if caller.identity is not None else self._limits.callers_per_host
        rate, most = self._limits.max_calls_per_s * many, self._limits.max_calls * many
        account, now = self._account(caller, max(1.0, rate)), self._clock()
        account.calls_left = min(max(1.0, rate), account.calls_left + (now - account.as_of) * rate)
        account.as_of = now
        whose = "an identity" if caller.identity is not None else "a host"
        if account.under_way >= most:
            raise Busy(f"{BUSY}{most} calls are under way, as many as {whose} may have at once (security.max_calls)")
        if account.calls_left < 1:
            raise Busy(f"{BUSY}more than {rate:g} calls a second from {whose} (security.max_calls_per_s)")
        account.calls_left -= 1
        account.under_way += 1
        try:
            yield
        finally:
            account.under_way -= 1

    def check(self, method: str, caller: Caller, request: Any) -> None:
        """Raise NotAllowed unless the rules let `caller` ask this."""
        if method.startswith(HEALTH):
            return
        rule = self._rules.get(method)
        if rule is None:
            raise NotAllowed(f"nobody may call {method}")
        rule(caller, request)

    # ------------------------------------------------------------------------------------------------------ plumbing

    def _behind_checks(self, method: str, handler: Any) -> Any:
        """`handler` with raw requests, which are parsed once they are counted, and judged before it sees them."""
        parse = handler.request_deserializer or _as_it_is

        async def answer(raw: Any, context: Context) -> Any:
            caller = caller_of(context)
            try:
                with self.count(caller):
                    request = raw if handler.request_streaming else _parsed(parse, raw)
                    self.check(method, caller, None if handler.request_streaming else request)
                    return await inner(request, context)
            except (Busy, NotAllowed, _Unreadable) as refusal:
                # A handler's own refusals are turned into statuses inside it: this one is the gate's.
                self._tell(method, caller, refusal)
                await context.abort(*to_status(refusal))

        inner: Callable[[Any, Context], Awaitable[Any]]
        inner, make = _behaviour(handler)
        return make(
            answer,
            request_deserializer=handler.request_deserializer if handler.request_streaming else None,
            response_serializer=handler.response_serializer,
        )

    def _account(self, caller: Caller, full: float) -> _Account:
        key = caller.identity.uri if caller.identity is not None else f"{caller.host} {caller.secured}"
        if key not in self._accounts:
            self._accounts[key] = _Account(full, self._clock())
            idle = (old for old, account in self._accounts.items() if not account.under_way and old != key)
            if len(self._accounts) > MAX_CALLERS and (oldest := next(idle, None)) is not None:
                del self._accounts[oldest]
        self._accounts.move_to_end(key)
        return self._accounts[key]

    def _tell(self, method: str, caller: Caller, refusal: DimatError) -> None:
        """Log a refusal; a caller that insists cannot fill the disk."""
        account, now = self._account(caller, 1.0), self._clock()
        kind = f"{method} {type(refusal).__name__}"
        if now - account.told_at.get(kind, float("-inf")) >= TELL_S:
            account.told_at[kind] = now
            log.warning("refused %s by %s: %s", method.rpartition("/")[2], caller, refusal)


class _Unreadable(UsageError):
    """A request that is no message of its call."""


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError:
        raise _Unreadable(f"{len(raw)} bytes came that are no message of this call") from None


def _as_it_is(raw: bytes) -> bytes:
    return raw


def _behaviour(handler: Any) -> tuple[Any, Any]:
    """What a handler does, and how one of its shape is made."""
    shapes = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    return shapes[handler.request_streaming, handler.response_streaming]


def open_to_all(services: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Rule]:
    """Rules that let whoever has an identity call every method of `services`."""
    return {f"/{service}/{method}": anybody for service, methods in services.items() for method in methods}
