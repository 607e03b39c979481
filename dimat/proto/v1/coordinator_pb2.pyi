from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_FORMING: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_STOPPING: _ClassVar[RunState]
    RUN_STATE_DONE: _ClassVar[RunState]

class MemberState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMBER_STATE_UNSPECIFIED: _ClassVar[MemberState]
    MEMBER_STATE_ABSENT: _ClassVar[MemberState]
    MEMBER_STATE_JOINED: _ClassVar[MemberState]
    MEMBER_STATE_RUNNING: _ClassVar[MemberState]
    MEMBER_STATE_LOST: _ClassVar[MemberState]
    MEMBER_STATE_DONE: _ClassVar[MemberState]
    MEMBER_STATE_FAILED: _ClassVar[MemberState]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_FORMING: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_STOPPING: RunState
RUN_STATE_DONE: RunState
MEMBER_STATE_UNSPECIFIED: MemberState
MEMBER_STATE_ABSENT: MemberState
MEMBER_STATE_JOINED: MemberState
MEMBER_STATE_RUNNING: MemberState
MEMBER_STATE_LOST: MemberState
MEMBER_STATE_DONE: MemberState
MEMBER_STATE_FAILED: MemberState

class JoinRequest(_message.Message):
    __slots__ = ("agent", "session", "address", "fingerprint", "model_bytes", "checkpoints", "num_samples", "histogram")
    class HistogramEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    agent: int
    session: str
    address: str
    fingerprint: str
    model_bytes: int
    checkpoints: _containers.RepeatedScalarFieldContainer[int]
    num_samples: int
    histogram: _containers.ScalarMap[str, int]
    def __init__(self, agent: _Optional[int] = ..., session: _Optional[str] = ..., address: _Optional[str] = ..., fingerprint: _Optional[str] = ..., model_bytes: _Optional[int] = ..., checkpoints: _Optional[_Iterable[int]] = ..., num_samples: _Optional[int] = ..., histogram: _Optional[_Mapping[str, int]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("agent", "session", "round", "phase", "waiting", "wants_stop", "done", "error")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WANTS_STOP_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    agent: int
    session: str
    round: int
    phase: str
    waiting: str
    wants_stop: bool
    done: bool
    error: str
    def __init__(self, agent: _Optional[int] = ..., session: _Optional[str] = ..., round: _Optional[int] = ..., phase: _Optional[str] = ..., waiting: _Optional[str] = ..., wants_stop: _Optional[bool] = ..., done: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("agent", "session", "round", "metrics", "seconds", "weights", "bytes_received", "missing", "moved", "sketch_before", "sketch_after")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    class BytesReceivedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class MissingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    class MovedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    SKETCH_BEFORE_FIELD_NUMBER: _ClassVar[int]
    SKETCH_AFTER_FIELD_NUMBER: _ClassVar[int]
    agent: int
    session: str
    round: int
    metrics: _containers.ScalarMap[str, float]
    seconds: _containers.ScalarMap[str, float]
    weights: _containers.ScalarMap[int, float]
    bytes_received: _containers.ScalarMap[int, int]
    missing: _containers.ScalarMap[int, str]
    moved: _containers.ScalarMap[str, float]
    sketch_before: bytes
    sketch_after: bytes
    def __init__(self, agent: _Optional[int] = ..., session: _Optional[str] = ..., round: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., seconds: _Optional[_Mapping[str, float]] = ..., weights: _Optional[_Mapping[int, float]] = ..., bytes_received: _Optional[_Mapping[int, int]] = ..., missing: _Optional[_Mapping[int, str]] = ..., moved: _Optional[_Mapping[str, float]] = ..., sketch_before: _Optional[bytes] = ..., sketch_after: _Optional[bytes] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: int
    def __init__(self, agent: _Optional[int] = ...) -> None: ...

class Directive(_message.Message):
    __slots__ = ("stop_after", "reason", "changes", "addresses", "superseded", "newest_round", "done")
    class AddressesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    STOP_AFTER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    NEWEST_ROUND_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    stop_after: int
    reason: str
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    addresses: _containers.ScalarMap[int, str]
    superseded: bool
    newest_round: int
    done: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stop_after: _Optional[int] = ..., reason: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., addresses: _Optional[_Mapping[int, str]] = ..., superseded: _Optional[bool] = ..., newest_round: _Optional[int] = ..., done: _Optional[_Iterable[int]] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("number", "from_round", "away", "reason", "leaving")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    number: int
    from_round: int
    away: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    leaving: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, number: _Optional[int] = ..., from_round: _Optional[int] = ..., away: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ..., leaving: _Optional[_Iterable[int]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("agent", "address", "state", "round", "phase", "waiting", "silent_s", "metrics", "num_samples", "histogram")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class HistogramEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    agent: int
    address: str
    state: MemberState
    round: int
    phase: str
    waiting: str
    silent_s: float
    metrics: _containers.ScalarMap[str, float]
    num_samples: int
    histogram: _containers.ScalarMap[str, int]
    def __init__(self, agent: _Optional[int] = ..., address: _Optional[str] = ..., state: _Optional[_Union[MemberState, str]] = ..., round: _Optional[int] = ..., phase: _Optional[str] = ..., waiting: _Optional[str] = ..., silent_s: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ..., num_samples: _Optional[int] = ..., histogram: _Optional[_Mapping[str, int]] = ...) -> None: ...

class RoundSummary(_message.Message):
    __slots__ = ("round", "mean_accuracy", "min_accuracy", "mean_accuracy_before_merge", "consensus_distance", "consensus_distance_before", "predicted_contraction", "observed_contraction", "mean_loss", "num_agents", "num_missing", "spectral_gap", "num_refused", "num_held_back")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    MIN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCURACY_BEFORE_MERGE_FIELD_NUMBER: _ClassVar[int]
    CONSENSUS_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    CONSENSUS_DISTANCE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CONTRACTION_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_CONTRACTION_FIELD_NUMBER: _ClassVar[int]
    MEAN_LOSS_FIELD_NUMBER: _ClassVar[int]
    NUM_AGENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_MISSING_FIELD_NUMBER: _ClassVar[int]
    SPECTRAL_GAP_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_HELD_BACK_FIELD_NUMBER: _ClassVar[int]
    round: int
    mean_accuracy: float
    min_accuracy: float
    mean_accuracy_before_merge: float
    consensus_distance: float
    consensus_distance_before: float
    predicted_contraction: float
    observed_contraction: float
    mean_loss: float
    num_agents: int
    num_missing: int
    spectral_gap: float
    num_refused: int
    num_held_back: int
    def __init__(self, round: _Optional[int] = ..., mean_accuracy: _Optional[float] = ..., min_accuracy: _Optional[float] = ..., mean_accuracy_before_merge: _Optional[float] = ..., consensus_distance: _Optional[float] = ..., consensus_distance_before: _Optional[float] = ..., predicted_contraction: _Optional[float] = ..., observed_contraction: _Optional[float] = ..., mean_loss: _Optional[float] = ..., num_agents: _Optional[int] = ..., num_missing: _Optional[int] = ..., spectral_gap: _Optional[float] = ..., num_refused: _Optional[int] = ..., num_held_back: _Optional[int] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("number", "state", "start_round", "stop_after", "reason", "members", "newest", "changes")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    START_ROUND_FIELD_NUMBER: _ClassVar[int]
    STOP_AFTER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    number: int
    state: RunState
    start_round: int
    stop_after: int
    reason: str
    members: _containers.RepeatedCompositeFieldContainer[Member]
    newest: RoundSummary
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    def __init__(self, number: _Optional[int] = ..., state: _Optional[_Union[RunState, str]] = ..., start_round: _Optional[int] = ..., stop_after: _Optional[int] = ..., reason: _Optional[str] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., newest: _Optional[_Union[RoundSummary, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ...) -> None: ...
