"""`dimat merge --align weights`: every model is permuted into the basis of one of them before it is folded.

What may move is found and proven once; then each model is read, matched, permuted, compared with what it computed
before, and written to a folder of its own, so that two models are in memory at a time. The folder is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dimat.align import match_weights
from dimat.align.checkpoints import apply_tied, function_error, load_state
from dimat.cli.align import TOLERANCE, Prepared, proven_spec
from dimat.cli.align import Request as AlignRequest
from dimat.cli.align import prepare as prepare_align
from dimat.cli.merge_job import Job
from dimat.cli.merge_words import Alignment
from dimat.errors import AlignmentError, UsageError
from dimat.merge.digest import digest_of
from dimat.merge.source import InMemory
from dimat.modelfile import ModelFile, fit, open_model, same_architecture, write_model
from dimat.modelfile.fit import read_tensors

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AlignedModel:
    """One of the models, in the basis of the reference.

    Attributes:
        file: the aligned copy; the model itself where it is the reference.
        digest: of the model as it was given.
        units: in the groups that may move.
        moved: of these, how many did.
    """

    file: ModelFile
    digest: str
    units: int
    moved: int


def check_alignment(job: Job, out: Path) -> Prepared:
    """Everything about the alignment that can be checked before a weight is read.

    Raises:
        UsageError: the factory, its example input or a model that does not fit; no room.
    """
    assert job.align is not None
    others = [model for model in job.models if model.path != job.reference.path]
    if not others:
        raise UsageError("--align: there is one model alone, with nothing to bring into its basis")
    ready = prepare_align(_request(job.align, job.reference, others[0], out.resolve().parent, f".{out.name}.aligned"))
    for other in others[1:]:
        same_architecture(job.reference, other, ready.ties)
        fit(ready.model, other, job.align.model)
    num_bytes = job.reference.num_bytes
    least = 4 * max(num_bytes, sum(one.numel() * one.element_size() for one in ready.model.state_dict().values()))
    if job.memory_bytes is not None and job.memory_bytes < least:
        raise UsageError(
            f"--memory {job.memory_bytes:,}: aligning holds two models, a module and a copy, about {least:,} bytes",
            hint="align first: dimat align A B --model ... writes aligned copies, which merge in little memory",
        )
    return ready


def align_models(job: Job, ready: Prepared, folder: Path, tell: Tell) -> list[AlignedModel]:
    """Aligned copies of all models, in their order.

    Args:
        job: the merge.
        ready: what `check_alignment` gave.
        folder: where the copies go.
        tell: hears what is going on.

    Raises:
        AlignmentError: what a model computes would have changed.
    """
    assert job.align is not None
    model, ties = ready.model, ready.ties
    tell("finding what may move")
    tensors = read_tensors(job.reference, model)
    reference = fit(model, job.reference, job.align.model).state(tensors)
    load_state(model, reference)
    spec, _ = proven_spec(_request(job.align, ready.a, ready.b, folder, "0"), model, ready.examples)
    units = sum(group.size for group in spec.groups)
    aligned = []
    for number, file in enumerate(job.models):
        if file.path == job.reference.path:
            aligned.append(AlignedModel(file, digest_of(InMemory(str(file.path), tensors)), units, 0))
            continue
        tell(f"aligning {file.path}")
        stored = read_tensors(file, model)
        state = fit(model, file, job.align.model).state(stored)
        matching = match_weights(spec, reference, state)
        moved = apply_tied(spec, state, matching.perms, ties)
        change = function_error(model, state, moved, ready.examples.example)
        if not change <= TOLERANCE:
            raise AlignmentError(
                f"the aligned copy of {file.path} would not compute what the model does: relative error {change:.3g} "
                f"on the example from {ready.examples.source}; nothing was written",
                hint="another call of the model may take another path: give an example like the inputs it really gets",
            )
        path = _place(folder, str(number), is_folder=file.is_folder)
        write_model(path, {name: moved.get(name, one) for name, one in stored.items()}, like=file)
        num_moved = sum(round(group.moved * group.size) for group in matching.groups)
        aligned.append(AlignedModel(open_model(path), digest_of(InMemory(str(file.path), stored)), units, num_moved))
    return aligned


def _request(align: Alignment, a: ModelFile, b: ModelFile, folder: Path, name: str) -> AlignRequest:
    place = _place(folder, name, is_folder=b.is_folder or a.is_folder)
    return AlignRequest(a.path, b.path, align.model, place, align.by, inputs=align.inputs)


def _place(folder: Path, name: str, *, is_folder: bool) -> Path:
    return folder / (name if is_folder else f"{name}.safetensors")
