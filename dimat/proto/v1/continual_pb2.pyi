from dimat.proto.v1 import tensors_pb2 as _tensors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUBMIT_STATE_UNSPECIFIED: _ClassVar[SubmitState]
    SUBMIT_STATE_WAITING: _ClassVar[SubmitState]
    SUBMIT_STATE_RECEIVING: _ClassVar[SubmitState]
    SUBMIT_STATE_QUEUED: _ClassVar[SubmitState]
    SUBMIT_STATE_ABSORBED: _ClassVar[SubmitState]
    SUBMIT_STATE_PRESENT: _ClassVar[SubmitState]
SUBMIT_STATE_UNSPECIFIED: SubmitState
SUBMIT_STATE_WAITING: SubmitState
SUBMIT_STATE_RECEIVING: SubmitState
SUBMIT_STATE_QUEUED: SubmitState
SUBMIT_STATE_ABSORBED: SubmitState
SUBMIT_STATE_PRESENT: SubmitState

class SubmitFrame(_message.Message):
    __slots__ = ("offer", "position", "data")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offer: Offer
    position: int
    data: bytes
    def __init__(self, offer: _Optional[_Union[Offer, _Mapping]] = ..., position: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("digest", "tensors", "checksums", "name", "weight", "who", "session", "protocol")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    digest: str
    tensors: _containers.RepeatedCompositeFieldContainer[_tensors_pb2.TensorSpec]
    checksums: _containers.RepeatedScalarFieldContainer[bytes]
    name: str
    weight: float
    who: str
    session: str
    protocol: int
    def __init__(self, digest: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[_tensors_pb2.TensorSpec, _Mapping]]] = ..., checksums: _Optional[_Iterable[bytes]] = ..., name: _Optional[str] = ..., weight: _Optional[float] = ..., who: _Optional[str] = ..., session: _Optional[str] = ..., protocol: _Optional[int] = ...) -> None: ...

class SubmitAnswer(_message.Message):
    __slots__ = ("state", "position", "ahead", "entry")
    STATE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    state: SubmitState
    position: int
    ahead: int
    entry: LedgerEntry
    def __init__(self, state: _Optional[_Union[SubmitState, str]] = ..., position: _Optional[int] = ..., ahead: _Optional[int] = ..., entry: _Optional[_Union[LedgerEntry, _Mapping]] = ...) -> None: ...

class LedgerEntry(_message.Message):
    __slots__ = ("name", "digest", "order", "weight", "norm", "time", "who", "cosine", "version", "cosine_now")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COSINE_NOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    order: int
    weight: float
    norm: float
    time: str
    who: str
    cosine: float
    version: int
    cosine_now: float
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., order: _Optional[int] = ..., weight: _Optional[float] = ..., norm: _Optional[float] = ..., time: _Optional[str] = ..., who: _Optional[str] = ..., cosine: _Optional[float] = ..., version: _Optional[int] = ..., cosine_now: _Optional[float] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LedgerStatus(_message.Message):
    __slots__ = ("method", "options", "base_digest", "num_models", "state_bytes", "models", "version", "protocol", "align", "update_norm", "num_undo")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_MODELS_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ALIGN_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    NUM_UNDO_FIELD_NUMBER: _ClassVar[int]
    method: str
    options: str
    base_digest: str
    num_models: int
    state_bytes: int
    models: _containers.RepeatedCompositeFieldContainer[LedgerEntry]
    version: int
    protocol: int
    align: str
    update_norm: float
    num_undo: int
    def __init__(self, method: _Optional[str] = ..., options: _Optional[str] = ..., base_digest: _Optional[str] = ..., num_models: _Optional[int] = ..., state_bytes: _Optional[int] = ..., models: _Optional[_Iterable[_Union[LedgerEntry, _Mapping]]] = ..., version: _Optional[int] = ..., protocol: _Optional[int] = ..., align: _Optional[str] = ..., update_norm: _Optional[float] = ..., num_undo: _Optional[int] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("digest", "position")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    digest: str
    position: int
    def __init__(self, digest: _Optional[str] = ..., position: _Optional[int] = ...) -> None: ...

class ExportFrame(_message.Message):
    __slots__ = ("merged", "position", "data")
    MERGED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    merged: Merged
    position: int
    data: bytes
    def __init__(self, merged: _Optional[_Union[Merged, _Mapping]] = ..., position: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Merged(_message.Message):
    __slots__ = ("digest", "tensors", "checksums", "version", "num_models", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_MODELS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    digest: str
    tensors: _containers.RepeatedCompositeFieldContainer[_tensors_pb2.TensorSpec]
    checksums: _containers.RepeatedScalarFieldContainer[bytes]
    version: int
    num_models: int
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, digest: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[_tensors_pb2.TensorSpec, _Mapping]]] = ..., checksums: _Optional[_Iterable[bytes]] = ..., version: _Optional[int] = ..., num_models: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...
