"""Merge models on disk into a model on disk; what is in memory is a few slices of each, whatever the models' size.

    lanes      read, hash, look over   ┐
    apart      fold each step          ├ all at once, step by step
    this       hash, write the output  ┘

Methods that need scalars of the whole model keep their states on disk meanwhile (`dimat.merge.spill`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dimat.errors import UsageError
from dimat.hashing import Begun, HashedFile
from dimat.merge.absorb import Arrival, arrive
from dimat.merge.ahead import ReadAhead
from dimat.merge.apart import computed_apart
from dimat.merge.api import Fold
from dimat.merge.digest import SLICE_ENTRIES, Digest, digest_of, hash_tensor
from dimat.merge.engine import Folded, check_models, finish, fold_step, scalars_of
from dimat.merge.feed import DirectFeed, Feed, Schedule
from dimat.merge.memory import Given, Plan, default_plan, plan_within, shared_cores, state_bytes, steady_memory
from dimat.merge.noted import CountedReads, HashingFeed, Progress
from dimat.merge.side_by_side import may_go_side_by_side, side_by_side
from dimat.merge.source import OnDisk, Source, TensorInfo
from dimat.merge.spill import Spill, check_room
from dimat.modelfile import Layout, ModelFile, check_out, lay_out, write_streamed
from dimat.modelfile.pieces import SHARD_BYTES

_MOST_READY = 4
"""Merged slices that wait to be written."""
ROOMY_SLICE_ENTRIES = 2 * SLICE_ENTRIES
"""Of slices where memory is not limited: with half as many hand-overs between threads a merge takes a tenth less."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge has written.

    Attributes:
        num_models: models absorbed.
        num_tensors: tensors written.
        num_parameters: their entries.
        seconds: from the first check to the last byte.
        digest: of the written model; see `dimat.merge.digest`.
        input_digests: of the models, in their order.
        base_digest: of the base; None where the method reads none.
    """

    num_models: int
    num_tensors: int
    num_parameters: int
    seconds: float
    digest: str
    input_digests: tuple[str, ...]
    base_digest: str | None


ExtraFiles = Mapping[str, bytes] | Callable[[Merged], Mapping[str, bytes]]


def merge_files(
    method: Fold,
    models: Sequence[ModelFile],
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    base: ModelFile | None = None,
    stats: Sequence[Mapping[str, ModelFile]] | None = None,
    folds: Sequence[Fold] | None = None,
    weight_of: Callable[[str, int], float] | None = None,
    dtype: torch.dtype | None = None,
    memory_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    like: ModelFile | None = None,
    extra_files: ExtraFiles | None = None,
    overwrite: bool = False,
    hashed: Mapping[Path, HashedFile] | None = None,
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Merged:
    """Merge `models` into `out`: a file, or a folder when the first model is one.

    Args:
        method: the fold.
        models: of one architecture, in the order of absorption.
        out: must not exist, unless `overwrite`.
        weights: one weight per model; one each when None.
        base: the models' common ancestor, for folds that need one.
        stats: for folds that need statistics, one mapping per model: kind -> file.
        folds: one fold per model, where models differ in the options of `method`.
        weight_of: (tensor name, number of the model) -> weight, where tensors differ in it.
        dtype: of the floating-point tensors written; by default those of the first model.
        memory_bytes: what the whole process may hold resident.
        metadata: text by key, kept in the written files; by default that of the first model.
        like: whose files travel along into a folder (config, tokenizer); by default the first model.
        extra_files: written with the model (inside a folder, beside a file): content by name, or what makes it of the
            result.
        overwrite: whether `out` may be replaced.
        hashed: what was hashed already, by file; see `dimat.hashing`.
        progress: called with (bytes read, bytes to read).
        shard_bytes: a folder's weights are one file up to this size.

    Raises:
        UsageError: models that cannot be merged, or an output that cannot be written.
        SchemaError: models that differ in a tensor.
        DimatError: reading or writing failed; nothing is left behind.
    """
    started = time.perf_counter()
    reads = Progress(progress)
    sources = [CountedReads(OnDisk(model), reads) for model in models]
    anchor = None if base is None else CountedReads(OnDisk(base), reads)
    evidence = [{kind: CountedReads(OnDisk(file), reads) for kind, file in kinds.items()} for kinds in stats or []]
    check_models(method, sources, weights, anchor, evidence or None)
    if folds is not None and len(folds) != len(models):
        raise UsageError(f"merge got {len(folds)} folds for {len(models)} models, expected one each")
    shapes = {
        name: (dtype if dtype is not None and one.dtype.is_floating_point else one.dtype, one.shape)
        for name, one in models[0].tensors.items()
    }
    layout = lay_out(shapes, is_folder=models[0].is_folder, shard_bytes=shard_bytes)
    inputs = (*models, *([] if base is None else [base]), *(file for kinds in stats or [] for file in kinds.values()))
    check_out(out, is_folder=models[0].is_folder, num_bytes=layout.num_bytes, inputs=inputs, overwrite=overwrite)

    each = tuple(folds or [method] * len(models))
    given = Given(method, each, sources, anchor, evidence, {name: kind for name, (kind, _) in shapes.items()})
    plan = default_plan(len(models)) if memory_bytes is None else plan_within(given, memory_bytes)
    room = out.resolve().parent
    if method.needs_scalars:
        check_room(room, state_bytes(given) + layout.num_bytes)

    reads.total = _bytes_to_read(given)
    with steady_memory(limited=memory_bytes is not None, tight=plan.tight), shared_cores(method):
        begun = [{} if model is None else begun_of(model, hashed or {}) for model in (base, *models)]
        arrivals = _arrive_all(given, weights, weight_of, plan, reads, begun[1:])
        feed = HashingFeed(method, arrivals, anchor, begun)
        written = Digest()

        def result() -> Merged:
            return Merged(
                num_models=len(models),
                num_tensors=len(shapes),
                num_parameters=sum(info.num_entries for info in sources[0].tensors.values()),
                seconds=time.perf_counter() - started,
                digest=written.hexdigest(),
                input_digests=tuple(one.digest or feed.digests[i].hexdigest() for i, one in enumerate(arrivals)),
                base_digest=feed.base_digest(),
            )

        def extras() -> Mapping[str, bytes]:
            return extra_files(result()) if callable(extra_files) else extra_files or {}

        roomy = memory_bytes is None and not method.needs_scalars  # sums over slices shall be rounded alike everywhere
        schedule = Schedule(method, arrivals, layout.names, ROOMY_SLICE_ENTRIES if roomy else SLICE_ENTRIES)
        with ReadAhead(feed, schedule, len(models), plan.num_lanes, plan.lane_bytes) as ahead:
            merged = _finished(schedule, ahead, anchor, room, layout, alone=memory_bytes is not None)
            if not plan.tight and all(fold.elementwise for fold in (method, *each)):  # slices: ready ones take little
                merged = computed_apart(merged, _MOST_READY, partial(_end, reads, ahead))
            with closing(_pieces(merged, layout, written)) as pieces:
                notes = models[0].metadata if metadata is None else metadata
                write_streamed(out, layout, pieces, notes, like=like or models[0], extra_files=extras)
        reads.complete()
        return result()


def _end(reads: Progress, ahead: ReadAhead) -> None:
    """Have threads that read, and those that wait for it, end at their next tensor."""
    reads.stopped = True
    ahead.stop()


def _arrive_all(
    given: Given,
    weights: Sequence[float] | None,
    weight_of: Callable[[str, int], float] | None,
    plan: Plan,
    reads: Progress,
    begun: Sequence[Mapping[str, Begun]],
) -> list[Arrival]:
    """Every model looked over, several at a time; where digests are asked for, several tensors at a time."""

    def hash_rest(place: tuple[int, str]) -> tuple[int, str, Begun]:
        i, name = place
        return i, name, hash_tensor(given.models[i], name, begun[i].get(name))

    def look_over(i: int) -> Arrival:
        return arrive(
            given.folds[i],
            given.models[i],
            given.base,
            1.0 if weights is None else float(weights[i]),
            given.stats[i] if given.stats else None,
            digest=digest_of(given.models[i], hashed[i]) if given.folds[i].digests else None,
            weight_of=None if weight_of is None else lambda name: weight_of(name, i),
        )

    with ThreadPoolExecutor(max(plan.num_lanes, 1), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        hashed = [dict(one) for one in begun]
        try:
            named = [i for i, fold in enumerate(given.folds) if fold.digests]
            places = [(i, name) for i in named for name, one in given.models[i].tensors.items() if one.num_entries]
            for i, name, whole in pool.map(hash_rest, places):
                hashed[i][name] = whole
            return list(pool.map(look_over, range(len(given.models))))
        except BaseException:  # Ctrl-C, NaN in one of them: the others are not looked over to their ends
            reads.stopped = True
            raise


def _parts(
    schedule: Schedule, feed: Feed, base: Source | None, room: Path
) -> Generator[tuple[Folded, Mapping[str, float]]]:
    """Every step folded, with the scalars to read it out by; kept on disk until those are known."""
    method, arrivals = schedule.method, schedule.arrivals
    if not method.needs_scalars:
        for step in schedule:
            yield fold_step(method, arrivals, step, feed), {}
        return
    with Spill(room) as spill:

        def spilled() -> Iterator[Folded]:
            for step in schedule:
                part = fold_step(method, arrivals, step, feed)
                spill.append({"": part.integers} if part.integers is not None else part.state or {})
                yield part

        scalars = scalars_of(method, arrivals, spilled())
        again = DirectFeed(method, arrivals, base)
        for step, kept in zip(schedule, spill, strict=True):
            floating = step.info.dtype.is_floating_point
            anchor = again.base(step) if floating else None
            state, integers = (kept, None) if floating else (None, kept[""])
            yield Folded(step.name, step.info, step.start, step.stop, state, anchor, integers), scalars


def _finished(
    schedule: Schedule, feed: Feed, base: Source | None, room: Path, layout: Layout, *, alone: bool
) -> Generator[tuple[str, torch.Tensor]]:
    """Name and merged entries of every step, in the order of the layout; one step at a time where `alone`."""
    method, arrivals = schedule.method, schedule.arrivals

    def merged(part: Folded, scalars: Mapping[str, float]) -> tuple[str, torch.Tensor]:
        return part.name, finish(method, part, scalars, layout.shapes[part.name][0])

    if may_go_side_by_side(schedule) and not alone:
        yield from side_by_side(
            lambda step, taken: merged(fold_step(method, arrivals, step, taken), {}), schedule, feed
        )
        return
    with closing(_parts(schedule, feed, base, room)) as parts:
        for part, scalars in parts:
            yield merged(part, scalars)


def _pieces(merged: Generator[tuple[str, torch.Tensor]], layout: Layout, written: Digest) -> Generator[torch.Tensor]:
    """The merged entries, hashed on their way."""
    with closing(merged):
        for name, entries in merged:
            written.add(name, TensorInfo(*layout.shapes[name]), entries)
            yield entries


def begun_of(model: ModelFile, hashed: Mapping[Path, HashedFile]) -> dict[str, Begun]:
    """What of a model's tensors was hashed already, by name; nothing of files that were changed since."""
    begun = {}
    for name, tensor in model.tensors.items():
        file = hashed.get(tensor.path)
        if file is not None and file.version == model.versions[tensor.path] and tensor.num_bytes:
            known = file.tensors.get((tensor.start, tensor.start + tensor.num_bytes))
            if known is not None:
                begun[name] = known
    return begun


def _bytes_to_read(given: Given) -> int:
    """Bytes of all passes over the models, as far as they are known: a survey may ask for more than one."""
    base = 0 if given.base is None else _num_bytes(given.base)
    total = base + sum(_num_bytes(source) for kinds in given.stats for source in kinds.values())
    for fold, model in zip(given.folds, given.models, strict=True):
        survey = 0 if fold.survey is None else _num_bytes(model) + (base if fold.needs_base else 0)
        total += _num_bytes(model) * (2 if fold.digests else 1) + survey
    return total + (base if given.method.needs_scalars else 0)


def _num_bytes(source: Source) -> int:
    return sum(info.num_entries * info.dtype.itemsize for info in source.tensors.values())
