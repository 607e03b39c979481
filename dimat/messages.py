"""What crosses the wire, as frozen values: without torch, without protobuf.

A model travels as a *payload*: a small header and a named set of tensors, each a specification and its raw bytes.
Numbers travel to the coordinator as *reports*; the coordinator answers with *views*. `transport` alone turns these
values into bytes and back; `snapshot` alone turns tensors into payloads and back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

PROTOCOL_VERSION = 1

ITEM_SIZES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes per entry of every dtype that may travel; names are torch's without the prefix."""


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """The 16-byte checksum of one tensor's bytes (XXH3-128).

    It tells broken bytes from whole ones at memory speed. It is not a signature: who sent them is TLS's to prove.

    >>> len(digest(b"abc"))
    16
    """
    import xxhash

    return xxhash.xxh3_128_digest(data)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one tensor.

    >>> TensorSpec("fc.weight", "float32", (10, 64)).num_bytes
    2560
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor's entries take."""
        num_entries = 1
        for size in self.shape:
            num_entries *= size
        return num_entries * ITEM_SIZES[self.dtype]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Schema:
    """What a model is made of: its tensors in order, and the fingerprint of its permutation groups."""

    tensors: tuple[TensorSpec, ...]
    groups: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(spec.num_bytes for spec in self.tensors)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that are equal exactly when two schemas are."""
        text = json.dumps([[[t.name, t.dtype, list(t.shape)] for t in self.tensors], self.groups])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def difference(self, other: Schema) -> str | None:
        """The first thing in which the two differ, as a clause, or None when they are equal.

        >>> a = Schema((TensorSpec("w", "float32", (2, 3)),))
        >>> b = Schema((TensorSpec("w", "float32", (2, 4)),))
        >>> a.difference(b)
        "tensor 'w' is float32 [2, 3] here and float32 [2, 4] there"
        """
        for mine, theirs in zip(self.tensors, other.tensors, strict=False):
            if mine.name != theirs.name:
                return f"the tensor here is {_short(mine.name)} where there it is {_short(theirs.name)}"
            if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
                return (
                    f"tensor {_short(mine.name)} is {mine.dtype} {list(mine.shape[:8])} here "
                    f"and {theirs.dtype[:20]} {list(theirs.shape[:8])} there"
                )
        if len(self.tensors) != len(other.tensors):
            longer, where = (self, "here") if len(self.tensors) > len(other.tensors) else (other, "there")
            extra = longer.tensors[min(len(self.tensors), len(other.tensors))]
            return f"tensor {_short(extra.name)} {list(extra.shape[:8])} exists only {where}"
        if self.groups != other.groups:
            return "the tensors are alike but the permutation groups differ: the forward functions are not the same"
        return None


def _short(name: str) -> str:
    """A name as it may stand in a message: what a peer calls its tensors must not fill anybody's log."""
    return repr(name if len(name) <= 120 else f"{name[:100]}... ({len(name)} characters)")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor on its way: `data` is its raw bytes (little endian, C order), `checksum` their digest."""

    spec: TensorSpec
    data: memoryview
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a payload is: `kind` (`snapshot`, `basis`, ...), the round it belongs to, who made it.

    `scalars` travel along, such as a push-sum weight or a sample count, so that later methods need no new call.
    """

    kind: str
    round: int
    agent: int
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Payload:
    """A header and the tensors it speaks of; frozen once published."""

    header: Header
    tensors: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.spec.num_bytes for tensor in self.tensors)

    @property
    def identity(self) -> bytes:
        """Sixteen bytes that differ where header or tensors do: how a reader says what it holds already."""
        header = self.header
        what = json.dumps([header.kind, header.round, header.agent, sorted(header.scalars.items())])
        return digest(b"".join([what.encode(), *(tensor.checksum for tensor in self.tensors)]))

    @property
    def schema(self) -> Schema:
        """The tensors' specifications; the groups are the agent's to know."""
        return Schema(tuple(tensor.spec for tensor in self.tensors))


@dataclass(frozen=True, slots=True)
class Description:
    """What an agent says of itself when asked."""

    agent: int
    session: str
    schema: Schema
    newest: Mapping[str, int]
    """The newest round published, by kind."""
    protocol: int = PROTOCOL_VERSION


# ------------------------------------------------------------------------------------------ to the coordinator and back


@dataclass(frozen=True, slots=True)
class Join:
    """An agent enters the run (again)."""

    agent: int
    session: str
    """Random per process: a fast restart is not mistaken for the process before it."""
    address: str
    fingerprint: str
    model_bytes: int
    checkpoints: tuple[int, ...] = ()
    """Rounds of which it holds a checkpoint; 0 stands for the untrained start and is always held."""
    num_samples: int = 0
    histogram: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """An agent is alive; where it stands and what it waits for, in words."""

    agent: int
    session: str
    round: int
    phase: str
    waiting: str = ""
    wants_stop: bool = False
    """The user asked this agent to stop; the coordinator then names the round after which all do."""
    done: bool = False
    """The agent has left: after its last round, or because of `error`."""
    error: str = ""


REFUSED = "refused: "
"""How the reason begins for which a neighbour that did answer has no part in a merge (`Report.missing`)."""


@dataclass(frozen=True, slots=True)
class Report:
    """Numbers of one agent's round. Never weights: two count-sketches stand for them."""

    agent: int
    session: str
    round: int
    metrics: Mapping[str, float]
    """`loss` (train), `accuracy_before`, `accuracy` (merged, calibrated), `loss_before`, `loss_after`, `lr`; where
    there are checks `refused` (how many neighbours), with a gate `gate` (the share of the merge that was taken), where
    models were to be aligned `matchings_skipped` (the share of them that no matching was needed for), with
    `exchange.overlap` `hidden_s` (seconds that the round would have waited for transfers otherwise)."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds by phase: train, publish, wait, gather, align, fold, calibrate, evaluate, checkpoint."""
    weights: Mapping[int, float] = field(default_factory=dict)
    """The row of the mixing matrix that was really used, self included."""
    bytes_received: Mapping[int, int] = field(default_factory=dict)
    """Payload bytes by the agent they came from: in a merge, and before it for one start or an agreed basis."""
    missing: Mapping[int, str] = field(default_factory=dict)
    """Neighbours that did not take part in this merge, and why; what was refused begins with `REFUSED`."""
    moved: Mapping[str, float] = field(default_factory=dict)
    """Share of units that alignment moved, by group; empty when nothing was aligned."""
    sketch_before: bytes = b""
    """Count-sketch of the parameters before the merge, little-endian float32; empty when the round had no merge."""
    sketch_after: bytes = b""

    @property
    def refused(self) -> dict[int, str]:
        """Those of the missing who did answer and were refused, and why.

        >>> Report(0, "s", 1, {}, missing={1: "refused: it is far off", 2: "had not published"}).refused
        {1: 'it is far off'}
        """
        return {
            peer: reason.removeprefix(REFUSED) for peer, reason in self.missing.items() if reason.startswith(REFUSED)
        }


@dataclass(frozen=True, slots=True)
class Change:
    """Who is in the graph from a round on. The newest change whose round has come holds.

    It names a round that nobody has begun, so that both ends of an edge know of it in time and use one graph.
    """

    number: int
    """Counts up from 1; of two changes for one round the higher holds."""
    from_round: int
    away: tuple[int, ...]
    """All who are not in it, ascending."""
    reason: str = ""
    leaving: tuple[int, ...] = ()
    """Those of `away` that leave in order: until `from_round` they are in their rounds and are waited for."""


@dataclass(frozen=True, slots=True)
class Drain:
    """The user's wish that one agent leaves in order, while the others go on."""

    agent: int


@dataclass(frozen=True, slots=True)
class Directive:
    """The coordinator's answer to a heartbeat or a report: the round after which everybody stops, once decided."""

    stop_after: int | None = None
    reason: str = ""
    changes: tuple[Change, ...] = ()
    """The newest changes of the graph, ascending by number."""
    addresses: Mapping[int, str] = field(default_factory=dict)
    """Of the agents that came back, where they are now."""
    superseded: bool = False
    """Another process has taken the agent's seat: this one shall end, and write nothing more."""
    newest_round: int = 0
    """The newest round that anybody has reported: where whoever is out of the graph joins in again."""
    done: tuple[int, ...] = ()
    """Agents that have said goodbye, ascending: they read and publish nothing more."""


@dataclass(frozen=True, slots=True)
class Member:
    """One agent as the coordinator sees it."""

    agent: int
    address: str = ""
    state: str = "absent"
    """`absent`, `joined`, `running`, `lost`, `done`, `failed`."""
    round: int = 0
    """The last round it reported."""
    phase: str = ""
    waiting: str = ""
    silent_s: float = 0.0
    """Seconds since it was last heard."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The numbers of its last report."""
    num_samples: int = 0
    histogram: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One round over all agents alive, once all of them have reported it."""

    round: int
    mean_accuracy: float
    min_accuracy: float
    mean_accuracy_before_merge: float
    consensus_distance: float
    """Right after the merge: sqrt(mean_i ||x_i - mean x||^2), estimated from sketches."""
    consensus_distance_before: float = float("nan")
    predicted_contraction: float = float("nan")
    observed_contraction: float = float("nan")
    mean_loss: float = float("nan")
    num_agents: int = 0
    num_missing: int = 0
    """Edges that were not used though the topology has them."""
    spectral_gap: float = float("nan")
    """Of the mixing matrix that was really used, over the agents that reported; NaN without a merge."""
    num_refused: int = 0
    """How many times an agent refused what a neighbour had sent."""
    num_held_back: int = 0
    """Agents that took a part of their merge only, or nothing."""


@dataclass(frozen=True, slots=True)
class View:
    """The coordinator's picture of the run; numbered, and sent whole when it changes."""

    number: int
    state: str
    """`forming` (not all have joined), `running`, `stopping` (a last round is named), `done`."""
    start_round: int = 0
    """Agents go on after this round: the newest that every one of them holds."""
    stop_after: int | None = None
    reason: str = ""
    """Why the run is in this state, in words."""
    members: tuple[Member, ...] = ()
    newest: RoundSummary | None = None
    changes: tuple[Change, ...] = ()
    """The newest changes of the graph, ascending by number."""
