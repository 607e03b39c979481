"""The card of a merge: what was merged, how, by which versions, and what came out; its recipe gives the same again."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimat.cli.merge_job import Job
from dimat.merge.stream import Merged
from dimat.modelfile import ModelFile

if TYPE_CHECKING:
    from dimat.cli.merge_align import AlignedModel


def card(job: Job, merged: Merged, out: Path, aligned: Sequence[AlignedModel] = ()) -> bytes:
    """The card as JSON.

    Args:
        job: what was merged.
        merged: what came out.
        out: where it is.
        aligned: what was done to each model before, when models were aligned.
    """
    inputs = []
    for i, model in enumerate(job.models):
        entry = _file(model, aligned[i].digest if aligned else merged.input_digests[i])
        if job.weights is not None:
            entry["weight"] = job.weights[i]
        if aligned:
            entry["aligned"] = {"units": aligned[i].units, "moved": aligned[i].moved, "digest": merged.input_digests[i]}
        if job.stats is not None:
            entry["stats"] = {kind: str(file.path) for kind, file in job.stats[i].items()}
        inputs.append(entry)
    packages = ("torch", "numpy", "safetensors")
    content: dict[str, Any] = {
        "dimat": importlib.metadata.version("dimat"),
        "versions": {"python": platform.python_version()} | {one: importlib.metadata.version(one) for one in packages},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "recipe": dict(job.recipe),
        "inputs": inputs,
        "base": None if job.base is None else _file(job.base, merged.base_digest),
        "out": {
            "path": str(out),
            "digest": merged.digest,
            "num_tensors": merged.num_tensors,
            "num_parameters": merged.num_parameters,
            "num_bytes": job.layout.num_bytes,
        },
        "digests": "sha256 over the tensors' names, dtypes, shapes and bytes: see dimat.merge.digest",
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _file(model: ModelFile, digest: str | None) -> dict[str, Any]:
    size = sum(size for size, *_ in model.versions.values())
    return {"path": str(model.path), "digest": digest, "num_bytes": size}
