"""`dimat align A B`: permute the hidden units of B into the order of A; what B computes stays what it was.

Everything is checked before anything is computed: files, architecture, factory, example input, groups, and where the
answer goes. The answer is written last, after its function has been compared with that of B on the example.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dimat.align import match_activations, match_weights, permutation_spec
from dimat.align.calls import call_model, evaluating, tensors_in
from dimat.align.checkpoints import apply_tied, distance, function_error, load_state
from dimat.align.groups import PermutationSpec
from dimat.align.matching import Matching
from dimat.align.verify import verify
from dimat.cli.aligned import Aligned, as_json, print_aligned
from dimat.cli.examples import WAYS, Examples, find_examples
from dimat.cli.spec import read_spec
from dimat.errors import EXIT_DONE, AlignmentError, UsageError
from dimat.modelfile import Fit, ModelFile, build_model, check_out, fit, open_model, same_architecture, write_model
from dimat.modelfile.fit import read_tensors, tied_names
from dimat.plugins import unknown

WAYS_TO_MATCH = ("weights", "activations")
TOLERANCE = 1e-4
"""Largest relative change of the outputs that float32 rounding explains."""

logger = logging.getLogger(__name__)
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What was typed; the fields are the command's options."""

    a: Path
    b: Path
    model: str
    out: Path
    by: str = "weights"
    data: Path | None = None
    inputs: tuple[str, ...] = ()
    spec: Path | None = None
    batch_size: int = 64
    max_samples: int = 512
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that was checked, before anything is computed."""

    a: ModelFile
    b: ModelFile
    like: ModelFile
    model: nn.Module
    fits: tuple[Fit, Fit]
    ties: Mapping[str, tuple[str, ...]]
    examples: Examples


def align_command(request: Request, format: str, quiet: bool) -> int:
    """Align, write and tell; the exit code."""
    with _progress(quiet) as tell:
        aligned = align(request, tell)
    if format == "json":
        print(json.dumps(as_json(aligned)))
    else:
        print_aligned(aligned)
    return EXIT_DONE


def align(request: Request, tell: Tell = logger.info) -> Aligned:
    """Write the aligned copy of B and answer with what was found.

    Raises:
        UsageError: something that was given cannot be used; nothing was written.
        AlignmentError: the groups of the model do not verify, or B's function would have changed; nothing was written.
    """
    tell("checking the models")
    ready = prepare(request)
    model, ties = ready.model, ready.ties
    a_tensors, b_tensors = (read_tensors(file, model) for file in (ready.a, ready.b))
    a, b = ready.fits[0].state(a_tensors), ready.fits[1].state(b_tensors)
    load_state(model, b)
    tell("finding what may move" if request.spec is None else f"proving {request.spec}")
    spec, error = proven_spec(request, model, ready.examples)
    tell(f"matching by {request.by}")
    matching = _match(request, spec, model, (a, b), ready.examples, tell)
    moved = apply_tied(spec, b, matching.perms, ties)
    tell("comparing what B computes, before and after")
    change = function_error(model, b, moved, ready.examples.example)
    if not change <= TOLERANCE:
        raise AlignmentError(
            f"the aligned model would not compute what {request.b} does: relative error {change:.3g} on the example "
            f"from {ready.examples.source}, where at most {TOLERANCE:.0e} is allowed; nothing was written",
            hint="another call of the model may take another path: give an example like the inputs it really gets",
        )
    tell(f"writing {request.out}")
    written = {name: moved.get(name, tensor) for name, tensor in b_tensors.items()}
    write_model(request.out, written, like=ready.like, metadata=ready.b.metadata)
    trained = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    return Aligned(
        out=request.out,
        by=request.by,
        spec=spec,
        matching=matching,
        verified=error,
        change=change,
        distance_before=distance(a, b, trained),
        distance_after=distance(a, moved, trained),
    )


def prepare(request: Request) -> Prepared:
    """Check all that can be checked without computing; see `align`."""
    if request.by not in WAYS_TO_MATCH:
        raise UsageError(f"--by: {unknown('way to match', request.by, WAYS_TO_MATCH)}")
    if request.by == "activations" and request.data is None:
        raise UsageError(
            "--by activations compares units on data, and no --data FILE was given",
            hint="--data FILE.npz or FILE.safetensors; --by weights needs none",
        )
    if request.data is not None and request.inputs:
        raise UsageError("--data and --input both say what the model is called with", hint="leave --input out")
    a, b = open_model(request.a), open_model(request.b)
    like = b if b.is_folder or not a.is_folder else a
    check_out(request.out, is_folder=like.is_folder, num_bytes=b.num_bytes, inputs=(a, b))
    model = build_model(request.model)
    ties = tied_names(model)
    same_architecture(a, b, ties)
    fits = fit(model, a, request.model), fit(model, b, request.model)
    examples = find_examples(
        model,
        request.model,
        request.data,
        list(request.inputs),
        batch_size=request.batch_size,
        max_samples=request.max_samples,
        seed=request.seed,
    )
    _try_out(model, request.model, examples)
    logger.info("the example input is from %s", examples.source)
    return Prepared(a, b, like, model, fits, ties, examples)


def proven_spec(request: Request, model: nn.Module, examples: Examples) -> tuple[PermutationSpec, float]:
    """The groups, traced or read from `--spec`, and the relative error of a random permutation of all of them.

    Raises:
        UsageError: the model cannot be traced, or the file holds no spec of this model, or one that is wrong.
        AlignmentError: traced groups do not verify.
    """
    if request.spec is None:
        try:
            spec = permutation_spec(model, *examples.args, **examples.kwargs)
        except AlignmentError as error:
            hint = "write the groups by hand and give them with --spec FILE (PermutationSpec.to_json shows the form)"
            raise UsageError(str(error), hint=f"{error.hint}; or {hint}" if error.hint else hint) from error
        return spec, verify(spec, model, examples.args, examples.kwargs, tolerance=TOLERANCE)
    spec = read_spec(request.spec, model)
    if request.by == "activations" and not any(group.taps for group in spec.groups):
        raise UsageError(
            f"spec {request.spec} does not say where activations are read (taps), so --by activations has no evidence",
            hint="match --by weights",
        )
    try:
        return spec, verify(spec, model, examples.args, examples.kwargs, tolerance=TOLERANCE)
    except AlignmentError as error:
        raise UsageError(f"spec {request.spec}: {error}", hint="a spec that does not verify is never used") from error


def _match(
    request: Request,
    spec: PermutationSpec,
    model: nn.Module,
    states: tuple[dict[str, Tensor], dict[str, Tensor]],
    examples: Examples,
    tell: Tell,
) -> Matching:
    a, b = states
    if request.by == "weights":
        return match_weights(spec, a, b, seed=request.seed)
    reference = build_model(request.model)
    load_state(reference, a)

    def told() -> Iterator[Any]:
        for number, batch in enumerate(examples.probe, 1):
            tell(f"matching by activations: batch {number} of {len(examples.probe)}")
            yield batch

    return match_activations(spec, reference, model, told())


def _try_out(model: nn.Module, reference: str, examples: Examples) -> None:
    """Call the model once: its own error is told here, wrapped once."""
    try:
        with evaluating(model):
            output = call_model(model, examples.example)
    except Exception as error:  # somebody's code runs here, and may raise anything
        raise UsageError(
            f"the model of {reference} fails on the example input {_told(examples.example)} from {examples.source}: "
            f"{type(error).__name__}: {error}",
            hint=WAYS,
        ) from error
    if not any(tensor.is_floating_point() for tensor in tensors_in(output)):
        raise UsageError(
            f"the model of {reference} returns no floating-point tensor, so nothing proves that its function is kept",
            hint="name a factory whose model returns logits or features",
        )


def _told(value: Any) -> str:
    """Shapes and dtypes of an input, in a few words."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_told(item)}" for key, item in value.items())
    return ", ".join(_told(item) for item in value) if isinstance(value, tuple) else type(value).__name__


@contextmanager
def _progress(quiet: bool) -> Iterator[Tell]:
    """A line on stderr that says what is going on, where stderr is a terminal; the log has it with -v."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    if quiet or not console.is_terminal:
        yield logger.info
        return
    with console.status("") as status:

        def tell(step: str) -> None:
            logger.info(step)
            status.update(step)

        yield tell
