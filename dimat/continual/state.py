"""The state of a fold on disk: one `.safetensors` file, tensors named `<key>:<tensor>`, totals in its metadata.

Its size depends on the architecture and the method alone. Nothing in it tells when it was written or what came before,
so that the same models in the same order give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dimat.continual.intact import check_intact
from dimat.continual.lock import held
from dimat.continual.manifest import Manifest
from dimat.errors import DimatError, UsageError
from dimat.merge.api import Fold, State
from dimat.merge.source import Source
from dimat.merge.totals import Totals
from dimat.modelfile import ModelFile, open_model
from dimat.modelfile.append import AppendedFile

_ENTRY_BYTES = 160
"""Room in the header for one entry of a tensor's state, beside its name."""
RESCUE = (
    "dimat continual verify names everything that is damaged; undo goes back to the state before when only the newest "
    "one is; else take the ledger from a backup, or build it anew from its models"
)
_MAX_ENTRIES = 16
"""Entries that a state may have for each tensor."""


@dataclass(frozen=True, slots=True)
class Held:
    """The state of one version.

    Attributes:
        file: where its tensors are; None for the empty state.
        keys: tensor -> the keys of its state.
        totals: of all models.
        measures: `Fold.measure`, summed over all tensors.
    """

    file: ModelFile | None = None
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def scalars(self) -> dict[str, float]:
        """What `Fold.finish` gets."""
        return self.totals.scalars(self.measures)

    def of(self, fold: Fold, base: Source, name: str) -> State:
        """The state of one tensor, in memory of its own."""
        if self.file is None:
            anchor = base.read(name) if fold.needs_base or fold.norms else None
            return fold.of(name, base.tensors[name].shape).init(anchor)
        return {key: self.file.read(f"{key}:{name}") for key in self.keys.get(name, ())}


@contextmanager
def reading(path: Path | None, manifest: Manifest, base: Source, digest: str | None = None) -> Iterator[Held]:
    """The state in the file `path`, which stays as long as the block does; the empty state for None.

    Args:
        path: the file.
        manifest: of the ledger.
        base: of the ledger.
        digest: of the file, as the journal has it; None when it was written just now.

    Raises:
        FileNotFoundError: the file is gone.
        DimatError: it is damaged, or belongs to another ledger.
    """
    if path is None:
        yield Held()
        return
    with held(path):
        if digest is not None:
            check_intact(path, digest, RESCUE)
        yield open_state(path, manifest, base)


def open_state(path: Path, manifest: Manifest, base: Source) -> Held:
    """The state in the file `path`; see `reading`."""
    try:
        file = open_model(path)
    except UsageError as error:
        raise DimatError(f"state {error}", hint=RESCUE) from error
    for key, value in identity(manifest).items():
        if file.metadata.get(key) != value:
            found = file.metadata.get(key)
            raise DimatError(f"state {path} is of another ledger: its {key} is {found}, the ledger's is {value}")
    keys: dict[str, tuple[str, ...]] = {}
    for stored in file.tensors:
        key, _, name = stored.partition(":")
        info = base.tensors.get(name)
        if info is None:
            raise DimatError(f"state {path} has the tensor {name!r}, the base {base.label} has not")
        keys[name] = (*keys.get(name, ()), key)
    for name, info in base.tensors.items():
        if info.dtype.is_floating_point and name not in keys:
            raise DimatError(f"state {path} lacks the tensor {name!r} of the base {base.label}")
    told = json.loads(file.metadata["totals"])
    return Held(file, keys, Totals(**told["totals"]), told["measures"])


def identity(manifest: Manifest) -> dict[str, str]:
    """What a state's metadata says of the ledger it belongs to."""
    return {
        "method": manifest.method,
        "options": json.dumps(manifest.options, sort_keys=True),
        "base": manifest.base_digest,
    }


class StateWriter:
    """A state in the making, in a file beside; `commit` gives it its name.

    Args:
        path: where the state goes.
        manifest: of the ledger.
        base: whose floating-point tensors it has a state for.
    """

    def __init__(self, path: Path, manifest: Manifest, base: Source) -> None:
        self.path = path
        self.beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._manifest = manifest
        names = [name for name, info in base.tensors.items() if info.dtype.is_floating_point]
        longest = sum(len(json.dumps(name).encode()) + _ENTRY_BYTES for name in names)
        told = sum(len(value) for value in identity(manifest).values())
        self._file = AppendedFile(self.beside, 4096 + 2 * told + _MAX_ENTRIES * longest)

    def __enter__(self) -> StateWriter:
        self._file.__enter__()
        return self

    def append(self, name: str, state: State) -> None:
        """Add the state of one tensor."""
        if len(state) > _MAX_ENTRIES or any(":" in key or len(key) > 32 for key in state):
            raise UsageError(
                f"the state of {name!r} has the entries {', '.join(sorted(state))}; a ledger keeps at most "
                f"{_MAX_ENTRIES} for each tensor, with keys of at most 32 characters and no colon"
            )
        for key in sorted(state):
            self._file.append(f"{key}:{name}", state[key])

    def commit(self, totals: Totals, measures: Mapping[str, float]) -> None:
        """Have the file on the disk under its name."""
        told = json.dumps({"totals": asdict(totals), "measures": dict(measures)}, sort_keys=True)
        self._file.close({**identity(self._manifest), "totals": told})
        self.beside.replace(self.path)
        sync_folder(self.path.parent)

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(None, None, None)
        self.beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
