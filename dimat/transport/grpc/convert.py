"""Values of `dimat.messages` to protobuf messages and back, all by one rule.

A field of a dataclass and the field of the same name in its protobuf message hold the same thing. Maps are read in the
order of their keys (protobuf keeps none), enum values are the Python word behind the enum's name, and a field that is
absent keeps the dataclass's default. So a new field is written twice, here and there, and converted by nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from dimat import messages
from dimat.errors import PayloadError, TransportError
from dimat.messages import PROTOCOL_VERSION, Header, Payload, Schema, TensorSpec
from dimat.proto.v1 import continual_pb2, coordinator_pb2, peer_pb2, tensors_pb2
from dimat.transport import continual

T = TypeVar("T")
M = TypeVar("M", bound=Message)

MESSAGES: Mapping[type[Any], type[Message]] = {
    messages.TensorSpec: tensors_pb2.TensorSpec,
    messages.Schema: tensors_pb2.Schema,
    messages.Header: peer_pb2.Header,
    messages.Description: peer_pb2.Description,
    messages.Join: coordinator_pb2.JoinRequest,
    messages.Heartbeat: coordinator_pb2.HeartbeatRequest,
    messages.Report: coordinator_pb2.ReportRequest,
    messages.Change: coordinator_pb2.Change,
    messages.Drain: coordinator_pb2.DrainRequest,
    messages.Directive: coordinator_pb2.Directive,
    messages.Member: coordinator_pb2.Member,
    messages.RoundSummary: coordinator_pb2.RoundSummary,
    messages.View: coordinator_pb2.View,
    continual.Offer: continual_pb2.Offer,
    continual.SubmitAnswer: continual_pb2.SubmitAnswer,
    continual.LedgerEntry: continual_pb2.LedgerEntry,
    continual.LedgerStatus: continual_pb2.LedgerStatus,
    continual.Merged: continual_pb2.Merged,
}
"""Which protobuf message each dataclass becomes."""
_DATACLASSES = {message.DESCRIPTOR.full_name: kind for kind, message in MESSAGES.items()}


def to_proto(value: Any) -> Any:
    """The protobuf message that says what the dataclass `value` says."""
    message = MESSAGES[type(value)]()
    for field in _plan(message.DESCRIPTOR.full_name):
        given = getattr(value, field.name)
        if given is None:
            continue
        if field.is_map:
            getattr(message, field.name).update(given)
        elif field.is_repeated:
            getattr(message, field.name).extend([to_proto(item) for item in given] if field.nested else given)
        elif field.nested is not None:
            getattr(message, field.name).CopyFrom(to_proto(given))
        else:
            setattr(message, field.name, field.numbers[given] if field.numbers else given)
    return message


def from_proto(kind: type[T], message: Any) -> T:
    """The dataclass `kind` that says what `message` says.

    Raises:
        TransportError: an enum value that this version does not know, or bytes that were no message (see `reading`).
    """
    if message is None:
        raise TransportError(f"what came is no {kind.__name__} of this version of dimat")
    values: dict[str, Any] = {}
    for field in _plan(message.DESCRIPTOR.full_name):
        if field.has_presence and not message.HasField(field.name):
            continue
        held = getattr(message, field.name)
        if field.is_map:
            values[field.name] = dict(sorted(held.items()))
        elif field.is_repeated:
            values[field.name] = tuple([from_proto(field.nested, item) for item in held] if field.nested else held)
        elif field.nested is not None:
            values[field.name] = from_proto(field.nested, held)
        elif field.words:
            if held not in field.words:
                raise TransportError(
                    f"{message.DESCRIPTOR.name}.{field.name} is {held}, which this version of dimat does not know"
                )
            values[field.name] = field.words[held]
        else:
            values[field.name] = held
    return kind(**values)


def reading(kind: type[M]) -> Callable[[bytes], M | None]:
    """Reads the answers of a call; bytes that are no message become None, which `from_proto` refuses.

    gRPC itself would do the same, and write a traceback to the log for each.
    """

    def read(data: bytes) -> M | None:
        try:
            return kind.FromString(data)
        except DecodeError:
            return None

    return read


def announcement(payload: Payload) -> peer_pb2.Announcement:
    """What the first frame of a stream says."""
    return peer_pb2.Announcement(
        header=to_proto(payload.header),
        tensors=[to_proto(tensor.spec) for tensor in payload.tensors],
        checksums=[tensor.checksum for tensor in payload.tensors],
    )


MAX_SCALARS = 64
"""More numbers than any header carries."""


def announced(
    message: peer_pb2.Announcement, schema: Schema
) -> tuple[Header, tuple[TensorSpec, ...], tuple[bytes, ...]]:
    """Header, specifications and checksums of an announcement of about as many tensors as `schema` has.

    Counting comes before converting: a million tiny specifications would take the reader's memory, and its loop's time.

    Raises:
        PayloadError: more tensors, checksums or scalars than the reader's own schema can have.
    """
    limit = len(schema.tensors) + 1  # one too many is still named
    counts = {"tensors": len(message.tensors), "checksums": len(message.checksums)}
    sizes = {"tensors": limit, "checksums": limit, "scalars": MAX_SCALARS}
    for what, count in {**counts, "scalars": len(message.header.scalars)}.items():
        if count > sizes[what]:
            raise PayloadError(
                f"a payload of {count} {what} was announced; this agent's model has {len(schema.tensors)} tensors"
            )
    specs = tuple(from_proto(TensorSpec, spec) for spec in message.tensors)
    return from_proto(Header, message.header), specs, tuple(message.checksums)


def description(message: peer_pb2.Description, whom: str, most_tensors: int) -> messages.Description:
    """What an agent says of itself; a model of more than `most_tensors` tensors is not listened to.

    Raises:
        TransportError: it speaks another version of the protocol, or did not say what its model is.
    """
    if message.protocol != PROTOCOL_VERSION:
        raise TransportError(
            f"{whom} speaks version {message.protocol} of the protocol, this agent version {PROTOCOL_VERSION}",
            hint="install the same version of dimat everywhere",
        )
    if not message.HasField("schema"):
        raise TransportError(f"{whom} did not describe its model")
    if len(message.schema.tensors) > most_tensors:
        raise TransportError(f"{whom} describes a model of {len(message.schema.tensors)} tensors: not the same model")
    return from_proto(messages.Description, message)


@dataclass(frozen=True, slots=True)
class _Field:
    """What a field needs, found once: descriptors are slow to ask, and a model has hundreds of tensors."""

    name: str
    has_presence: bool
    is_map: bool
    is_repeated: bool
    nested: type[Any] | None
    """The dataclass that its message becomes."""
    words: Mapping[int, str]
    """Of an enum: the word of every number but 0."""
    numbers: Mapping[str, int]


@cache
def _plan(message: str) -> tuple[_Field, ...]:
    """The fields of a message, given by its full name."""
    fields = []
    for field in MESSAGES[_DATACLASSES[message]].DESCRIPTOR.fields:
        kind = field.message_type
        is_map = kind is not None and kind.GetOptions().map_entry
        words = _words(field.enum_type) if field.enum_type is not None else {}
        fields.append(
            _Field(
                name=field.name,
                has_presence=field.has_presence,
                is_map=is_map,
                is_repeated=field.is_repeated,
                nested=_DATACLASSES[kind.full_name] if kind is not None and not is_map else None,
                words=words,
                numbers={word: number for number, word in words.items()},
            )
        )
    return tuple(fields)


def _words(enum: Any) -> dict[int, str]:
    """The words of an enum by number: its values' names without the enum's, such as `float32` for D_TYPE_FLOAT32."""
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
    return {value.number: value.name.removeprefix(prefix).lower() for value in enum.values if value.number}
