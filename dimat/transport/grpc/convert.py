"""Values of `dimat.messages` to protobuf messages and back, all by one rule.

A field of a dataclass and the field of the same name in its protobuf message hold the same thing. Maps are read in the
order of their keys (protobuf keeps none), enum values are the Python word behind the enum's name, and a field that is
absent keeps the dataclass's default. So a new field is written twice, here and there, and converted by nobody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from dimat import messages
from dimat.errors import TransportError
from dimat.messages import PROTOCOL_VERSION, Header, Payload, TensorSpec
from dimat.proto.v1 import coordinator_pb2, peer_pb2, tensors_pb2

T = TypeVar("T")

MESSAGES: Mapping[type[Any], type[Message]] = {
    messages.TensorSpec: tensors_pb2.TensorSpec,
    messages.Schema: tensors_pb2.Schema,
    messages.Header: peer_pb2.Header,
    messages.Description: peer_pb2.Description,
    messages.Join: coordinator_pb2.JoinRequest,
    messages.Heartbeat: coordinator_pb2.HeartbeatRequest,
    messages.Report: coordinator_pb2.ReportRequest,
    messages.Directive: coordinator_pb2.Directive,
    messages.Member: coordinator_pb2.Member,
    messages.RoundSummary: coordinator_pb2.RoundSummary,
    messages.View: coordinator_pb2.View,
}
"""Which protobuf message each dataclass becomes."""
_DATACLASSES = {message.DESCRIPTOR.full_name: kind for kind, message in MESSAGES.items()}


def to_proto(value: Any) -> Any:
    """The protobuf message that says what the dataclass `value` says."""
    message = MESSAGES[type(value)]()
    for field in fields(value):
        _set(message, message.DESCRIPTOR.fields_by_name[field.name], getattr(value, field.name))
    return message


def from_proto(kind: type[T], message: Any) -> T:
    """The dataclass `kind` that says what `message` says.

    Raises:
        TransportError: an enum value that this version does not know.
    """
    values = {}
    for name, field in message.DESCRIPTOR.fields_by_name.items():
        if field.has_presence and not message.HasField(name):
            continue
        values[name] = _get(field, getattr(message, name))
    return kind(**values)


def announcement(payload: Payload) -> peer_pb2.Announcement:
    """What the first frame of a stream says."""
    return peer_pb2.Announcement(
        header=to_proto(payload.header),
        tensors=[to_proto(tensor.spec) for tensor in payload.tensors],
        checksums=[tensor.checksum for tensor in payload.tensors],
    )


def announced(message: peer_pb2.Announcement) -> tuple[Header, tuple[TensorSpec, ...], tuple[bytes, ...]]:
    """Header, specifications and checksums of an announcement."""
    specs = tuple(from_proto(TensorSpec, spec) for spec in message.tensors)
    return from_proto(Header, message.header), specs, tuple(message.checksums)


def description(message: peer_pb2.Description, whom: str) -> messages.Description:
    """What an agent says of itself.

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
    return from_proto(messages.Description, message)


def _set(message: Any, field: Any, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, Mapping):
        getattr(message, field.name).update(value)
    elif isinstance(value, tuple):
        getattr(message, field.name).extend([to_proto(item) if type(item) in MESSAGES else item for item in value])
    elif type(value) in MESSAGES:
        getattr(message, field.name).CopyFrom(to_proto(value))
    elif field.enum_type is not None:
        setattr(message, field.name, field.enum_type.values_by_name[_prefix(field.enum_type) + value.upper()].number)
    else:
        setattr(message, field.name, value)


def _get(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.message_type is not None:
        kind = _DATACLASSES[field.message_type.full_name]
        return tuple(from_proto(kind, item) for item in value) if field.is_repeated else from_proto(kind, value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        if known is None or value == 0:
            raise TransportError(f"{field.full_name} is {value}, which this version of dimat does not know")
        return known.name.removeprefix(_prefix(field.enum_type)).lower()
    return tuple(value) if field.is_repeated else value


def _prefix(enum: EnumDescriptor) -> str:
    """`D_TYPE_` for DType."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"


__all__ = ["DecodeError", "announced", "announcement", "description", "from_proto", "to_proto"]
