"""Read the merged model out of a ledger, tensor by tensor, into a file or folder like the base; a card lies beside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dimat.continual.journal import Page
from dimat.continual.manifest import Manifest
from dimat.continual.state import Held
from dimat.continual.step import merged_tensor
from dimat.errors import UsageError
from dimat.merge.api import Fold
from dimat.merge.digest import Digest
from dimat.merge.source import OnDisk, TensorInfo
from dimat.modelfile import check_out, lay_out, write_streamed
from dimat.modelfile.config import config_in
from dimat.modelfile.folder import CONFIG

CARD_IN_FOLDER, CARD_ENDING = "dimat_merge.json", ".merge.json"
"""Names of the card, those that `dimat merge` gives it."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Exported:
    """A merged model that was written.

    Attributes:
        digest: of what was written; see `dimat.merge.digest`.
        version: of the ledger.
        num_models: models in it.
    """

    digest: str
    version: int
    num_models: int


def export(
    fold: Fold,
    base: OnDisk,
    manifest: Manifest,
    page: Page,
    held: Held,
    out: Path,
    dtype: torch.dtype | None,
    overwrite: bool,
) -> Exported:
    """See `Ledger.export`."""
    if dtype is not None and dtype not in DTYPES.values():
        raise UsageError(f"dtype {dtype} is none that a merged model is written in; expected {', '.join(DTYPES)}")
    infos = {
        name: TensorInfo(dtype if dtype is not None and info.dtype.is_floating_point else info.dtype, info.shape)
        for name, info in base.tensors.items()
    }
    is_folder = base.file.is_folder
    layout = lay_out({name: (info.dtype, info.shape) for name, info in infos.items()}, is_folder=is_folder)
    check_out(out, is_folder=is_folder, num_bytes=layout.num_bytes, inputs=(base.file,), overwrite=overwrite)
    card_name = CARD_IN_FOLDER if is_folder else out.name + CARD_ENDING
    if not is_folder and not overwrite and out.with_name(card_name).exists():
        raise UsageError(f"the card {out.with_name(card_name)} exists already", hint="--force replaces it")
    digest = Digest()

    def pieces() -> Iterator[torch.Tensor]:
        for name in layout.names:
            merged = merged_tensor(fold, base, held, name, base.read(name), infos[name].dtype)
            digest.add(name, infos[name], merged)
            yield merged

    def extra_files() -> dict[str, bytes]:
        card = card_of(manifest, page, digest.hexdigest())
        files = {card_name: (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode()}
        config = config_in(base.file, str(dtype).removeprefix("torch.")) if is_folder and dtype else None
        return files if config is None else files | {CONFIG: config}

    write_streamed(out, layout, pieces(), base.file.metadata, like=base.file, extra_files=extra_files)
    return Exported(digest.hexdigest(), page.current.version, len(page.entries))


def card_of(manifest: Manifest, page: Page, digest: str) -> dict[str, Any]:
    """Where a merged model comes from: the method, the base, the models in order, and the versions of the software."""
    import safetensors

    from dimat import __version__

    return {
        "method": manifest.method,
        "options": dict(manifest.options),
        "base": {"digest": manifest.base_digest},
        "align": manifest.align,
        "models": [
            {"name": one.name, "digest": one.digest, "weight": one.weight, "order": one.order, "time": one.time}
            for one in page.entries
        ],
        "version": page.current.version,
        "digest": digest,
        "software": {"dimat": __version__, "torch": torch.__version__, "safetensors": safetensors.__version__},
    }
