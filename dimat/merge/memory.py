"""Keep a merge within a limit of resident memory: what fits is settled before the first weight is read.

    limit  >=  the process as it is  +  the largest step  +  what the lanes have ready  +  a margin

The largest step is found by trial (`dimat.merge.demand`). Where memory is short, lanes are given up first: without any,
a model is read when it is its turn. What does not fit then either is refused, and the least limit that would do named.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dimat.errors import UsageError
from dimat.merge.api import Fold
from dimat.merge.demand import Kind, demand_of
from dimat.merge.digest import SLICE_ENTRIES
from dimat.merge.feed import is_sliced
from dimat.merge.source import Source

LANE_BYTES = 16 << 20
"""What a lane may have ready: enough that neither side waits for long."""
MOST_LANES = 8
_SWITCH_INTERVAL_S = 1e-3
MARGIN_BYTES = 32 << 20
"""Code that is loaded on the way, thread stacks, headers, the allocator's own holes."""
SPARE_BYTES = 16 << 20
"""By which one run of the same program is larger than another."""
HOLES_BYTES = 64 << 20
"""What threads' arenas may lose to holes while slices are reused; where there is no room for it they are not."""
SLACK = 1.15
"""What a trial on small tensors may miss, as a factor."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's mallopt


@dataclass(frozen=True, slots=True)
class Plan:
    """How a merge reads.

    Attributes:
        num_lanes: threads that read ahead; 0 where there is no room for what they would hold.
        lane_bytes: what each may have ready.
        tight: whether memory is too short to leave holes in it; see `steady_memory`.
    """

    num_lanes: int
    lane_bytes: int
    tight: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """What is merged, as far as memory goes: methods, models, dtypes; see `dimat.merge.stream.merge_files`."""

    method: Fold
    folds: Sequence[Fold]
    models: Sequence[Source]
    base: Source | None
    stats: Sequence[Mapping[str, Source]]
    dtypes: Mapping[str, torch.dtype]
    """Of the output's tensors."""

    def kind(self, name: str) -> tuple[Kind, int]:
        """The kind of the step that merges a tensor or a slice of it, and that step's entries."""
        info = self.models[0].tensors[name]
        shape = info.shape
        if info.num_entries > SLICE_ENTRIES and is_sliced((self.method, *self.folds), name, info):
            shape = (SLICE_ENTRIES,)
        return Kind(
            method=self.method,
            folds=self.folds,
            name=name,
            dtypes=tuple(model.tensors[name].dtype for model in self.models),
            base=None if self.base is None else self.base.tensors[name].dtype,
            stats={kind: source.tensors[name].dtype for kind, source in self.stats[0].items()} if self.stats else {},
            shape=shape,
            out=self.dtypes[name],
        ), torch.Size(shape).numel()


def default_plan(num_models: int) -> Plan:
    """Where nothing is limited."""
    return Plan(max(1, min(torch.get_num_threads(), MOST_LANES, num_models + 1)), LANE_BYTES)


def plan_within(given: Given, limit_bytes: int) -> Plan:
    """How `given` is merged within `limit_bytes`.

    Raises:
        UsageError: it cannot be; the tensor, what it takes and the least limit are named.
    """
    import psutil

    demands = [(kind, demand_of(kind)) for kind in largest_kinds(given)]
    held = psutil.Process().memory_info().rss + MARGIN_BYTES  # after the trials: what they have loaded stays
    if not demands:
        return Plan(0, 0, tight=True)
    kind, demand = max(demands, key=lambda pair: pair[1].fold)
    least = held + int(SLACK * demand.fold)
    if least > limit_bytes:
        raise UsageError(
            f"merging tensor {kind.name!r} {list(given.models[0].tensors[kind.name].shape)} takes "
            f"{mebibytes(int(SLACK * demand.fold))} beside the {mebibytes(held)} of the program itself, the limit is "
            f"{mebibytes(limit_bytes)}",
            hint=f"the least limit that would do: --memory {mebibytes(least + SPARE_BYTES)}",
        )
    look = int(SLACK * max(demand.look for _, demand in demands))
    plan = default_plan(len(given.models))
    for num_lanes in range(plan.num_lanes, 0, -1):
        # Whatever its share, a lane reads one step's entries when it has none ready.
        room = (limit_bytes - least) // num_lanes - look
        if room >= 0:
            tight = room < plan.lane_bytes + HOLES_BYTES // num_lanes
            return Plan(num_lanes, min(room, plan.lane_bytes), tight)
    return Plan(0, 0, tight=True)


def largest_kinds(given: Given) -> list[Kind]:
    """The largest tensors of each sort (sliced or whole, number of axes, dtypes): others of the sort take less.

    Largest by entries, and of those that are taken whole also by the smaller side: a decomposition takes memory by the
    square of that.
    """
    largest: dict[tuple[object, ...], tuple[int, Kind]] = {}
    for name, info in given.models[0].tensors.items():
        kind, entries = given.kind(name)
        sort = (entries < info.num_entries, len(info.shape), kind.dtypes, kind.base, kind.out)
        sizes = {"entries": entries}
        if len(kind.shape) > 1 and entries:
            sizes["side"] = min(kind.shape[0], entries // kind.shape[0])
        for measure, size in sizes.items():
            if (measure, *sort) not in largest or size > largest[measure, *sort][0]:
                largest[measure, *sort] = size, kind
    return list({kind.name: kind for _, kind in largest.values()}.values())


def state_bytes(given: Given) -> int:
    """What the states of all tensors take on disk."""
    rates: dict[tuple[object, ...], float] = {}
    total = 0.0
    for name, info in given.models[0].tensors.items():
        kind, entries = given.kind(name)
        if not info.dtype.is_floating_point or not entries:
            total += info.num_entries * info.dtype.itemsize
            continue
        sort = (entries < info.num_entries, len(info.shape), kind.dtypes, kind.base)
        if sort not in rates:
            rates[sort] = demand_of(kind).state / entries
        total += rates[sort] * info.num_entries
    return int(total)


def mebibytes(num_bytes: int) -> str:
    """As the command line takes it, rounded up.

    >>> mebibytes(3 * 2**20 + 1)
    '4MiB'
    """
    return f"{math.ceil(num_bytes / 2**20)}MiB"


@contextmanager
def steady_memory(*, limited: bool, tight: bool) -> Iterator[None]:
    """Have the allocator reuse what slices free, and give it back at the end.

    Left to itself, glibc hands every freed slice back to the system and asks for it again: a fault for each page, and
    up to half of the time of a merge. Reuse leaves holes, how many depends on which thread ran when: with an arena for
    each thread one run took 30 MB more than the next. So where memory is limited all share one arena, and where it is
    tight slices go back at once after all. All this stays as it is set here, for the whole process.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError):  # another C library
        yield
        return
    if limited:
        mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, (256 << 10) if tight else ((2 if limited else 32) << 20))
    mallopt(_TRIM_THRESHOLD, (1 if limited else 64) << 20)
    try:
        yield
    finally:
        trim(0)


@contextmanager
def shared_cores(method: Fold) -> Iterator[None]:
    """Have slices computed by fewer threads: the lanes keep the other cores busy.

    Methods that take tensors whole (decompositions) keep all threads, and so do those with digests: when they fold, the
    models are hashed already, and the lanes have little to do (DARE takes a quarter less time). Lanes and pools compute
    with one thread each, which torch remembers for threads that are made later; here that ends. Operations on slices
    take well under a millisecond, so whoever has ended one gets Python's lock back sooner than after the usual 5 ms.
    """
    before, interval_s = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(max(1, before // 2) if method.elementwise and not method.digests else before)
    sys.setswitchinterval(min(interval_s, _SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        torch.set_num_threads(before)
