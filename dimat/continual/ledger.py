"""The durable state of one continual merge: models come one after another, and none is lost or absorbed by half.

    ledger = Ledger.create(Path("merged"), Path("base.safetensors"), "opcm", alpha=0.5)
    ledger.add(Path("a.safetensors"))          # reads the old state, writes the new one beside, then one transaction
    ledger.export(Path("merged.safetensors"))

Killed before the transaction a ledger is as it was, killed after it is done; what was left lying about is cleared by
the next writer. Writers queue on a lock; readers see the old version or the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dimat.continual import change
from dimat.continual.create import create
from dimat.continual.entry import Entry
from dimat.continual.export import Exported, export
from dimat.continual.status import Status, status_of
from dimat.continual.step import merged_tensor
from dimat.continual.store import Store
from dimat.continual.verify import verify
from dimat.errors import UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ledger(Store):
    """A ledger on disk; see `Store` for its attributes."""

    @classmethod
    def create(
        cls,
        path: Path,
        base: Path,
        method: str,
        *,
        keep: int = 1,
        align: str | None = None,
        model: str | None = None,
        example: Any = None,
        who: str = "",
        **options: Any,
    ) -> Ledger:
        """Make a ledger in the folder `path`, which must not exist or be empty.

        Args:
            path: the folder.
            base: the common ancestor, a file or a folder; it is copied in, with config and tokenizer files.
            method: any merge method of constant memory.
            keep: how many states `undo` can go back.
            align: `weights` permutes every arrival into the base's order of units first.
            model: for `align`, what makes the module: `package.module:function` or `path/to/file.py:function`.
            example: for `align`, what the module is called with: a tensor, a tuple, or a mapping.
            who: who makes it, for the journal.
            options: of the method; all of them are written down, so that a later release merges on alike.

        Raises:
            UsageError: something that was given cannot be used; nothing was written.
            DimatError: the disk is full; nothing was left behind.

        >>> import tempfile
        >>> from dimat.modelfile import write_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     home = Path(folder)
        ...     for name, value in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        ...         write_model(home / f"{name}.safetensors", {"w": torch.full((2,), value)})
        ...     ledger = Ledger.create(home / "ledger", home / "base.safetensors", "mean")
        ...     entries = [ledger.add(home / f"{name}.safetensors") for name in "ab"]
        ...     ledger.merged()["w"].tolist(), [entry.name for entry in entries], ledger.verify()
        ([2.0, 2.0], ['a', 'b'], [])
        """
        path, base = Path(path), Path(base)
        create(path, base, method, options, keep=keep, align=align, model=model, example=example, who=who)
        return cls.open(path)

    def entries(self) -> tuple[Entry, ...]:
        """The models that are in, in order."""
        return self.journal.page().entries

    def digests(self) -> dict[str, Entry]:
        """The models that are in, by digest; the first where one is in twice."""
        return {entry.digest: entry for entry in reversed(self.entries())}

    def status(self) -> Status:
        """Everything that is known without reading a weight."""
        return status_of(self.path, self.manifest, self.journal)

    def verify(self) -> list[str]:
        """What is wrong with it, each a sentence that names the file; empty when nothing is."""
        return verify(self.path)

    def merged(self) -> dict[str, torch.Tensor]:
        """The merged model in memory, in the base's dtypes.

        Raises:
            UsageError: no model is in yet.
        """
        with self.current() as (_, held):
            base, fold = self.base, self.fold
            return {name: merged_tensor(fold, base, held, name, base.read(name)) for name in base.tensors}

    def export(self, out: Path, *, dtype: torch.dtype | None = None, overwrite: bool = False) -> str:
        """Write the merged model tensor by tensor, and a card beside it; its digest.

        Args:
            out: a file when the base is one, else a folder, with the base's config and tokenizer files.
            dtype: of its floating-point tensors; by default the base's.
            overwrite: replace what is there.

        Raises:
            UsageError: no model is in yet, or `out` cannot be written to.
            DimatError: writing failed; nothing was left behind.
        """
        return self.write(out, dtype=dtype, overwrite=overwrite).digest

    def write(self, out: Path, *, dtype: torch.dtype | None = None, overwrite: bool = False) -> Exported:
        """`export`, with the version that was written."""
        out = Path(out)
        if self.path.resolve() in (out.resolve(), *out.resolve().parents):
            raise UsageError(f"out {out} lies inside of the ledger {self.path}", hint="name a place beside it")
        with self.current() as (page, held):
            return export(self.fold, self.base, self.manifest, page, held, out, dtype, overwrite)

    def add(
        self,
        model: Path,
        *,
        name: str | None = None,
        weight: float = 1.0,
        who: str = "",
        again: bool = False,
        stats: Path | Mapping[str, Path] | None = None,
    ) -> Entry:
        """Absorb a model: when this returns it is in for good, and when it raises or is killed it is not.

        Args:
            model: a file or a folder, with the base's tensors.
            name: what to call it; by default its file's or folder's name.
            weight: its weight.
            who: who adds it, for the journal.
            again: absorb it also when it is in already.
            stats: its statistics, for methods that need them; a mapping by kind where they need several.

        Raises:
            AlreadyAbsorbed: its digest is in already; the exception's `entry` is where.
            UsageError: a taken name, NaN or Inf, a damaged file, statistics that are missing.
            SchemaError: the first tensor that the base has otherwise, with both shapes and files.
            DimatError: the disk is full; the ledger is as it was.
        """
        entry = change.add(self, Path(model), name, weight, who, again, stats)
        if not entry.norm:
            logger.warning("%s equals the base: it adds nothing, and counts as a model", model)
        return entry

    def remove(self, name: str, model: Path, *, who: str = "", stats: Path | Mapping[str, Path] | None = None) -> Entry:
        """Take a model out again; up to rounding the ledger is then one that never saw it.

        Args:
            name: what the journal calls it.
            model: the same model, known by its digest.
            who: who removes it, for the journal.
            stats: the same statistics, where the method needs them.

        Raises:
            UsageError: the method cannot, no model has that name, or the file is another model.
        """
        return change.remove(self, name, Path(model), who, stats)

    def undo(self) -> Entry:
        """Go back to the version before; the entry that went, or, after a `remove`, that is back.

        Raises:
            UsageError: the state before is not kept.
        """
        return change.undo(self)
