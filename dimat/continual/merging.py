"""The merged model of a served ledger, exported once for each version and read by as many as ask."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from dimat.continual.export import export
from dimat.continual.ledger import Ledger
from dimat.continual.outgoing import OutgoingModel
from dimat.errors import RoundGone, UsageError
from dimat.modelfile import open_model
from dimat.transport.continual import Merged, model_digest


@dataclass(frozen=True, slots=True)
class MergedModel:
    """One reader's view of a merged model; implements `dimat.transport.continual.MergedReader`."""

    merged: Merged
    model: OutgoingModel

    def read(self, position: int, num_bytes: int) -> bytes:
        """See `MergedReader.read`."""
        return self.model.read(position, num_bytes)

    def close(self) -> None:
        """See `MergedReader.close`."""
        self.model.close()


class MergedModels:
    """The newest merged model of `ledger`, kept in `folder`."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self._ledger = ledger
        self._folder = folder
        self._mutex = threading.Lock()
        self._newest: tuple[int, Path, Merged] | None = None

    def newest(self, digest: str) -> MergedModel:
        """The newest merged model; it can be read for as long as the answer is open, whatever happens meanwhile.

        Raises:
            RoundGone: `digest` is not empty, and the newest has another one.
            UsageError: no model is in yet.
        """
        with self._mutex:
            version = self._ledger.version
            if self._newest is None or self._newest[0] != version:
                self._newest = (version, *self._export())
            _, path, merged = self._newest
            if digest not in ("", merged.digest):
                raise RoundGone(
                    f"the merged model {digest[:12]} is not the newest any more: that is {merged.digest[:12]}"
                )
            return MergedModel(merged, OutgoingModel.open(open_model(path)))

    def clear(self) -> None:
        """Delete what was exported."""
        with self._mutex:
            self._newest = None
            shutil.rmtree(self._folder, ignore_errors=True)

    def _export(self) -> tuple[Path, Merged]:
        if not self._ledger.entries():
            raise UsageError(
                "the ledger has absorbed no model yet: its merged model would be the base itself",
                hint="dimat continual submit HOST:PORT MODEL",
            )
        self._newest = None  # should this fail, what was there is gone all the same
        shutil.rmtree(self._folder, ignore_errors=True)  # readers of the version before have its files open
        self._folder.mkdir(parents=True)
        is_folder = self._ledger.base.file.is_folder
        path = self._folder / ("merged" if is_folder else "merged.safetensors")
        ledger = self._ledger
        with ledger.current() as (page, held):  # by its parts: `Ledger.write` lets nobody write into a ledger's folder
            told = export(ledger.fold, ledger.base, ledger.manifest, page, held, path, None, False)
        model = OutgoingModel.open(open_model(path))
        try:
            checksums = model.checksums()
        finally:
            model.close()
        digest = model_digest(model.tensors, checksums)
        metadata = dict(model.model.metadata)
        return path, Merged(digest, model.tensors, checksums, told.version, told.num_models, metadata)
