"""Domain errors as gRPC status codes and back: one table, read in both directions.

Handlers raise what they mean; `guarded` turns it into a status, and the caller turns the status into the same error.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from dimat.errors import (
    Busy,
    DimatError,
    NotAllowed,
    PayloadError,
    PeerUnavailable,
    RoundGone,
    SchemaError,
    TransportError,
    UsageError,
)

T = TypeVar("T")
log = logging.getLogger(__name__)

STATUS: tuple[tuple[type[DimatError], grpc.StatusCode], ...] = (
    (RoundGone, grpc.StatusCode.OUT_OF_RANGE),
    (PayloadError, grpc.StatusCode.DATA_LOSS),
    (Busy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (PeerUnavailable, grpc.StatusCode.UNAVAILABLE),
    (SchemaError, grpc.StatusCode.FAILED_PRECONDITION),
    (NotAllowed, grpc.StatusCode.PERMISSION_DENIED),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (UsageError, grpc.StatusCode.RESOURCE_EXHAUSTED),  # a message too large to be read will not shrink by asking again
)
"""The first row whose class fits decides; what fits none is INTERNAL."""

BROKEN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
"""Codes of a connection or a server that went away: asking again may help. The others are answers."""

BUSY = "busy: "
"""What a refusal begins with that will pass, unlike a message that is too large, which has the same code."""
_ABSENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_HINT = "\nhint: "
_MAX_DETAILS = 2000
"""Characters; details travel in HTTP/2 trailers, which are limited to some kilobytes."""


def to_status(error: DimatError) -> tuple[grpc.StatusCode, str]:
    """The status code and details that stand for a domain error."""
    code = next((code for kind, code in STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    details = str(error) + (f"{_HINT}{error.hint}" if error.hint else "")
    return code, details[:_MAX_DETAILS]


def from_status(error: grpc.aio.AioRpcError, whom: str) -> DimatError:
    """The domain error that a failed call means; `whom` was called («agent 3 at HOST:PORT»)."""
    code, details = error.code(), error.details() or ""
    if code in _ABSENT:
        return PeerUnavailable(f"{whom} did not answer: {_plain(code, details)}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(BUSY):
        return Busy(f"{whom} is {details}")
    for kind, known in STATUS:
        if code is known and kind is not Busy:
            message, _, hint = details.partition(_HINT)
            return kind(message, hint=hint or None)
    return TransportError(f"{whom} failed with {code.name}: {details}")


def may_pass(error: grpc.aio.AioRpcError) -> bool:
    """Whether asking again may help."""
    return error.code() in BROKEN or (error.details() or "").startswith(BUSY)


def guarded(
    handler: Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[T]],
) -> Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[T]]:
    """`handler` with its domain errors turned into statuses; a defect is logged here and told as INTERNAL."""

    async def guard(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> T:
        try:
            return await handler(request, context)
        except DimatError as error:
            code, details = to_status(error)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            log.exception("a call could not be answered")
            code, details = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"[:_MAX_DETAILS]
        await context.abort(code, details)
        raise AssertionError("abort always raises")

    return guard


def _plain(code: grpc.StatusCode, details: str) -> str:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "the deadline passed"
    return "the connection was refused" if "Connection refused" in details else details or code.name
