from dimat.proto.v1 import tensors_pb2 as _tensors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ("reader", "until", "wait_s", "acknowledged", "with_schema")
    READER_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    WITH_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    reader: int
    until: Published
    wait_s: float
    acknowledged: _containers.RepeatedCompositeFieldContainer[Published]
    with_schema: bool
    def __init__(self, reader: _Optional[int] = ..., until: _Optional[_Union[Published, _Mapping]] = ..., wait_s: _Optional[float] = ..., acknowledged: _Optional[_Iterable[_Union[Published, _Mapping]]] = ..., with_schema: _Optional[bool] = ...) -> None: ...

class Published(_message.Message):
    __slots__ = ("kind", "round")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    kind: str
    round: int
    def __init__(self, kind: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("agent", "session", "schema", "newest", "protocol")
    class NewestEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    agent: int
    session: str
    schema: _tensors_pb2.Schema
    newest: _containers.ScalarMap[str, int]
    protocol: int
    def __init__(self, agent: _Optional[int] = ..., session: _Optional[str] = ..., schema: _Optional[_Union[_tensors_pb2.Schema, _Mapping]] = ..., newest: _Optional[_Mapping[str, int]] = ..., protocol: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("reader", "kind", "round", "position", "held")
    READER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    reader: int
    kind: str
    round: int
    position: int
    held: bytes
    def __init__(self, reader: _Optional[int] = ..., kind: _Optional[str] = ..., round: _Optional[int] = ..., position: _Optional[int] = ..., held: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("announcement", "position", "data")
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    announcement: Announcement
    position: int
    data: bytes
    def __init__(self, announcement: _Optional[_Union[Announcement, _Mapping]] = ..., position: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("header", "tensors", "checksums")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    tensors: _containers.RepeatedCompositeFieldContainer[_tensors_pb2.TensorSpec]
    checksums: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[_tensors_pb2.TensorSpec, _Mapping]]] = ..., checksums: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("kind", "round", "agent", "scalars")
    class ScalarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    round: int
    agent: int
    scalars: _containers.ScalarMap[str, float]
    def __init__(self, kind: _Optional[str] = ..., round: _Optional[int] = ..., agent: _Optional[int] = ..., scalars: _Optional[_Mapping[str, float]] = ...) -> None: ...
