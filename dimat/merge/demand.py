"""What merging a tensor takes in memory, tried out on a small one of the same kind before the first weight is read.

The merge of a few models is run on two small samples of the tensor's proportions, while every allocation of torch and
numpy is counted; the peaks of both give a fixed part and one per entry. That holds for whatever a method does, a
user's own too. Work areas that LAPACK takes for itself are not seen, and added for the decompositions.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dimat.merge.absorb import arrive
from dimat.merge.api import Fold
from dimat.merge.engine import finish, fold_step, scalars_of
from dimat.merge.feed import DirectFeed, Step
from dimat.merge.source import InMemory, TensorInfo

SMALL, LARGE = 1 << 14, 1 << 16
"""Entries of the two samples."""
_DECOMPOSITIONS = ("eigh", "svd", "linalg_eig")
_WORK_AREAS = 3.0
"""What divide and conquer takes beside input and output, in inputs: two of them for eigh, three for svd."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a merge does with one tensor.

    Attributes:
        method: the fold.
        folds: of the models, one each.
        name: of the tensor.
        dtypes: of the tensor in each model.
        base: its dtype in the base; None without one.
        stats: its dtype by kind of statistics.
        shape: of the tensor; (entries,) of a slice.
        out: its dtype in the output.
    """

    method: Fold
    folds: Sequence[Fold]
    name: str
    dtypes: Sequence[torch.dtype]
    base: torch.dtype | None
    stats: Mapping[str, torch.dtype]
    shape: tuple[int, ...]
    out: torch.dtype


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes.

    Attributes:
        fold: to fold the tensor: what was read, the state, what is computed on the way, and the answer.
        look: to read one model's tensor and look it over, surveys of the whole model included.
        state: of the state alone, with all models in it.
    """

    fold: int
    look: int
    state: int


def demand_of(kind: Kind) -> Demand:
    """What the tensor takes.

    A trial has a few models only. Where dtypes differ several are tried, since a state may grow when a wider one comes:
    those that come first, the widest, and the narrowest one before the widest.
    """
    numbers = range(len(kind.folds))
    widest = sorted(numbers, key=lambda i: -kind.dtypes[i].itemsize)
    orders = [list(numbers)]
    if len({dtype.itemsize for dtype in kind.dtypes}) > 1:
        orders += [widest, [widest[-1], *widest[:-1]]]
    tried = [
        _demand(replace(kind, folds=[kind.folds[i] for i in order], dtypes=[kind.dtypes[i] for i in order]))
        for order in orders
    ]
    return Demand(*(max(found) for found in zip(*map(_numbers, tried), strict=True)))


def _demand(kind: Kind) -> Demand:
    entries = torch.Size(kind.shape).numel()
    num_models = min(len(kind.folds), 2)
    demand = _extrapolated(kind, entries, num_models)
    if kind.method.memory == "linear" and len(kind.folds) > num_models:
        more = _extrapolated(kind, entries, num_models + 1)
        missing = len(kind.folds) - num_models
        grown = [a + missing * max(b - a, 0) for a, b in zip(_numbers(demand), _numbers(more), strict=True)]
        return Demand(grown[0], demand.look, grown[2])
    return demand


def _extrapolated(kind: Kind, entries: int, num_models: int) -> Demand:
    if entries <= LARGE:
        return _tried(kind, kind.shape, num_models)
    shapes = [_shrunk(kind.shape, most) for most in (SMALL, LARGE)]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    small, large = (_numbers(_tried(kind, shape, num_models)) for shape in shapes)
    slopes = [max(b - a, 0) / max(sizes[1] - sizes[0], 1) for a, b in zip(small, large, strict=True)]
    return Demand(*(int(b + slope * (entries - sizes[1])) for b, slope in zip(large, slopes, strict=True)))


def _numbers(demand: Demand) -> tuple[int, int, int]:
    return demand.fold, demand.look, demand.state


def _shrunk(shape: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The shape with its first two lengths cut in proportion, to about `most` entries."""
    cut = 2 if len(shape) > 1 else 1
    factor = (most / torch.Size(shape).numel()) ** (1 / cut)
    return (*(max(1, min(length, round(length * factor))) for length in shape[:cut]), *shape[cut:])


def _tried(kind: Kind, shape: tuple[int, ...], num_models: int) -> Demand:
    tries = [_try(kind, shape, num_models, untouched=False)]
    if len(shape) > 1 and not kind.method.of(kind.name, shape).elementwise:
        tries.append(_try(kind, shape, num_models, untouched=True))
    return Demand(*(max(numbers) for numbers in zip(*map(_numbers, tries), strict=True)))


def _try(kind: Kind, shape: tuple[int, ...], num_models: int, *, untouched: bool) -> Demand:
    """Where rows are `untouched` by all models a decomposition of their changes may take another path."""
    info = TensorInfo(kind.dtypes[0], shape)
    generator = torch.Generator().manual_seed(0)

    def source(dtype: torch.dtype) -> _Copying:
        entries = torch.rand(shape, generator=generator).add_(0.5).to(dtype)  # positive: as statistics are
        if untouched:
            entries[: shape[0] // 2] = 1
        return _Copying(InMemory("a sample", {kind.name: entries}))

    base = None if kind.base is None else source(kind.base)
    models = [source(dtype) for dtype in kind.dtypes[:num_models]]
    stats = [{key: source(dtype) for key, dtype in kind.stats.items()} for _ in models]
    arrivals = []

    def arrive_all() -> None:
        for fold, model, kinds in zip(kind.folds, models, stats, strict=False):
            arrivals.append(arrive(fold, model, base, 1.0, kinds, digest="00" * 32))

    _, looked = _peak(arrive_all)
    step = Step(kind.name, info, 0, info.num_entries, False)
    feed = DirectFeed(kind.method, arrivals, base)
    _, read = _peak(lambda: (feed.base(step), feed.model(0, step)))
    state = 0

    def fold_all() -> torch.Tensor:
        nonlocal state
        part = fold_step(kind.method, arrivals, step, feed)
        state = sum(tensor.nbytes for tensor in (part.state or {}).values())
        return finish(kind.method, part, scalars_of(kind.method, arrivals, [part]), kind.out)

    _, folded = _peak(fold_all)
    return Demand(folded, max(looked, read), state)


@dataclass(frozen=True, slots=True)
class _Copying:
    """A source in memory that gives copies, as files do."""

    source: InMemory

    @property
    def label(self) -> str:
        return self.source.label

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self.source.tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self.source.read(name, start, stop).clone()


def _peak(run: Callable[[], Any]) -> tuple[Any, int]:
    """The answer, and the most bytes that torch and numpy held at once on the way.

    The collector of cycles rests meanwhile: what it freed of older garbage would be taken off the peak.
    """
    collecting = gc.isenabled()
    gc.disable()
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        with _Live() as live:
            answer = run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not tracing:
            tracemalloc.stop()
        if collecting:
            gc.enable()
    return answer, live.peak + max(peak - before, 0)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that live."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # asked by torch, which imports its compiler where this is true: a second and 100 MB

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        answer = func(*args, **(kwargs or {}))
        for tensor in answer if isinstance(answer, tuple | list) else (answer,):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor)
        name = func.name()
        work = sum(one.nbytes for one in args if isinstance(one, torch.Tensor)) * _WORK_AREAS
        self.peak = max(self.peak, self.now + (int(work) if any(word in name for word in _DECOMPOSITIONS) else 0))
        return answer

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        self._holders[place] = self._holders.get(place, 0) + 1
        self.now += size if self._holders[place] == 1 else 0
        weakref.finalize(tensor, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self.now -= size
