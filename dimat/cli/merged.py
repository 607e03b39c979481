"""What `dimat merge` answers: one JSON object, or a few lines of the same; and what it would do."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dimat.cli.merge_job import Job
from dimat.merge.stream import Merged


@dataclass(frozen=True, slots=True)
class Answer:
    """What was merged.

    Attributes:
        job: what was asked for.
        merged: what was written.
        out: where.
        card: where the card is.
        seconds: from the first check to the last byte, with aligning.
        moved: share of the units that aligning moved, over all models; None when nothing was aligned.
    """

    job: Job
    merged: Merged
    out: Path
    card: Path
    seconds: float
    moved: float | None


def as_json(answer: Answer) -> dict[str, Any]:
    """{method, num_models, num_tensors, num_parameters, seconds, peak_rss_bytes, out, digest, card}."""
    merged = answer.merged
    return {
        "method": answer.job.method,
        "num_models": merged.num_models,
        "num_tensors": merged.num_tensors,
        "num_parameters": merged.num_parameters,
        "seconds": round(answer.seconds, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "out": str(answer.out),
        "digest": merged.digest,
        "card": str(answer.card),
    }


def print_answer(answer: Answer) -> None:
    """The same in words."""
    merged = answer.merged
    models = f"{merged.num_models} model{'s' if merged.num_models > 1 else ''}"
    print(f"merged {models} by {answer.job.method} into {answer.out}")
    print(
        f"  {merged.num_tensors:,} tensors, {merged.num_parameters:,} parameters; {answer.seconds:.1f} s, "
        f"at most {_mebibytes(peak_rss_bytes())} resident"
    )
    if answer.moved is not None:
        print(f"  aligned to {answer.job.reference.path}: {answer.moved:.1%} of the units moved")
    print(f"  digest {merged.digest}")
    print(f"  card {answer.card}")


def plan_as_json(job: Job, out: Path) -> dict[str, Any]:
    """What would be done: {method, options, models, base, num_*, num_bytes, dtypes, out, memory_bytes}."""
    shapes = job.layout.shapes.values()
    return {
        "dry_run": True,
        "method": job.method,
        "options": job.options,
        "num_models": len(job.models),
        "models": [str(model.path) for model in job.models],
        "base": None if job.base is None else str(job.base.path),
        "num_tensors": len(shapes),
        "num_parameters": sum(torch.Size(shape).numel() for _, shape in shapes),
        "num_bytes": job.layout.num_bytes,
        "dtypes": sorted({str(dtype).removeprefix("torch.") for dtype, _ in shapes}),
        "out": str(out),
        "memory_bytes": job.memory_bytes,
    }


def print_plan(job: Job, out: Path) -> None:
    """The same in words."""
    plan = plan_as_json(job, out)
    given = ", ".join(f"{key}={value}" for key, value in (job.options or {}).items())
    options = "as the recipe says, tensor by tensor" if job.options is None else given or "none"
    print(f"would merge {len(job.models)} model{'s' if len(job.models) > 1 else ''} by {job.method} into {out}")
    print(f"  options: {options}")
    for i, model in enumerate(job.models):
        weight = f", weight {job.weights[i]:g}" if job.weights is not None else ""
        print(f"  model {model.path}{weight}")
    if job.base is not None:
        print(f"  base {job.base.path}")
    if job.align is not None:
        print(f"  aligned by {job.align.by} to {job.reference.path} first")
    print(f"  {plan['num_tensors']:,} tensors, {plan['num_parameters']:,} parameters, {', '.join(plan['dtypes'])}")
    limit = "no limit" if job.memory_bytes is None else f"at most {_mebibytes(job.memory_bytes)}"
    print(f"  {job.layout.num_bytes:,} bytes of weights to write; memory: {limit}")
    print("every check has passed; nothing was written")


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
