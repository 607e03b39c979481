"""What can be wrong with a machine before or while a run goes on it, each with its cure: disk, ports, clocks, keys.

Every check returns findings, pure functions of what was measured where that is possible. Edges are in `edges`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from dimat.config import RunConfig
from dimat.errors import UsageError
from dimat.transport.grpc.channels import check_exposure
from dimat.transport.grpc.server import probe
from dimat.transport.security import Credentials

State = Literal["ok", "warning", "wrong", "not checked"]

MAX_SKEW_S = 2.0
"""Clocks that differ by more make logs of two machines hard to read and fresh certificates not valid yet."""
EXPIRES_SOON = timedelta(days=7)
OPTIMIZER_COPIES = {"sgd": 1, "adam": 2, "adamw": 2}
"""Tensors of a model's size that an optimiser's state holds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    """config, folder, disk, port, clock, certificate."""
    subject: str
    """What was looked at."""
    state: State
    told: str
    cure: str = ""
    """What to do, where something is not as it should be."""


def check_folder(folder: Path) -> Finding:
    """Whether the run folder can be written, tried on it or on the nearest folder above that exists."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".doctor-") as file:
            file.write(b"dimat")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        cure = "name a folder that you may write to with --out"
        return Finding("folder", str(folder), "wrong", f"cannot be written: {error.strerror}", cure)
    return Finding("folder", str(folder), "ok", "can be written")


def bytes_of_checkpoints(config: RunConfig, model_bytes: int, diameter: int) -> int:
    """Disk that the checkpoints of all agents take at most: those that are kept, and one more while it is written."""
    kept = config.merge_schedule().lead(diameter) + 3
    return config.agents * kept * model_bytes * (1 + OPTIMIZER_COPIES[config.train.optimizer])


def check_disk(folder: Path, free_bytes: int, needed_bytes: int) -> Finding:
    """Whether the checkpoints of all agents fit, if this disk holds them all.

    >>> check_disk(Path("runs"), free_bytes=2_000_000, needed_bytes=1_000_000).state
    'ok'
    """
    told = f"{in_words(free_bytes)} free, all agents' checkpoints take up to {in_words(needed_bytes)}"
    if free_bytes < needed_bytes:
        cure = "make room, or name a folder on a larger disk with --out"
        return Finding("disk", str(folder), "wrong", told, cure)
    if free_bytes < 2 * needed_bytes:
        return Finding("disk", str(folder), "warning", told, "leave room for logs, metrics and the report")
    return Finding("disk", str(folder), "ok", told)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def check_port(bind: str, port: int, insecure: bool, credentials: Credentials | None = None) -> Finding:
    """Whether this machine can listen at an address; port 0 is any."""
    subject = f"{bind}:{port}" if port else f"{bind}, any port"
    try:
        check_exposure(bind, insecure, credentials)
        probe(bind, port)
    except UsageError as error:
        return Finding("port", subject, "wrong", str(error), error.hint or "")
    return Finding("port", subject, "ok", "can be listened on")


def check_clock(whose: str, skew_s: float | None, round_trip_s: float) -> Finding:
    """Whether another machine's clock agrees with this one's, as far as the way there and back lets it be known.

    >>> check_clock("agent 1", skew_s=-90.0, round_trip_s=0.1).told
    'is 90.0 s behind this clock'
    """
    if skew_s is None:
        return Finding("clock", whose, "not checked", "does not say what time it has", "is it an older dimat?")
    told = f"is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this clock"
    if abs(skew_s) - round_trip_s / 2 <= MAX_SKEW_S:
        return Finding("clock", whose, "ok", f"agrees within {MAX_SKEW_S:g} s")
    return Finding("clock", whose, "wrong", told, "let both machines take their time from one server (NTP)")


def check_certificates(folder: Path, now: datetime | None = None) -> list[Finding]:
    """Expiry of every certificate in `folder`, and who may read the private keys."""
    if not folder.is_dir():
        return [Finding("certificate", str(folder), "wrong", "is not a folder", "dimat needs the folder of --certs")]
    findings = [finding for path in sorted(folder.glob("*.key")) if (finding := _check_key(path))]
    certificates = sorted(path for path in folder.iterdir() if path.suffix in (".pem", ".crt"))
    try:
        from cryptography import x509
    except ImportError:
        told = "expiry cannot be read without the package cryptography"
        return [*findings, Finding("certificate", str(folder), "not checked", told, "pip install cryptography")]
    if not certificates:
        findings.append(Finding("certificate", str(folder), "wrong", "holds no certificate (*.pem, *.crt)"))
    for path in certificates:
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as error:
            if b"PRIVATE KEY" in path.read_bytes():
                continue
            findings.append(Finding("certificate", path.name, "wrong", f"cannot be read: {error}"))
            continue
        # The chain is as good as what expires first.
        begins = max(one.not_valid_before_utc for one in found)
        ends = min(one.not_valid_after_utc for one in found)
        findings.append(check_validity(path.name, begins, ends, now or datetime.now(UTC)))
    return findings


def check_validity(name: str, begins: datetime, ends: datetime, now: datetime) -> Finding:
    """Whether a certificate is valid now, and for another week."""
    if now < begins:
        told = f"is not valid before {begins:%Y-%m-%d %H:%M} UTC"
        return Finding("certificate", name, "wrong", told, "is this machine's clock right?")
    told = f"{'expired' if ends <= now else 'expires'} on {ends:%Y-%m-%d %H:%M} UTC"
    if ends <= now:
        return Finding("certificate", name, "wrong", told, "issue a new one")
    if ends - now < EXPIRES_SOON:
        return Finding("certificate", name, "warning", told, "issue a new one before")
    return Finding("certificate", name, "ok", told)


def _check_key(path: Path) -> Finding | None:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return Finding("certificate", path.name, "wrong", f"others may read this key (mode {mode:o})", "chmod 600")
    return None


def is_wrong(findings: Iterable[Finding], edges: Iterable[Mapping[str, object]]) -> bool:
    """Whether anything has to be done before a run."""
    return any(finding.state == "wrong" for finding in findings) or any(edge["error"] for edge in edges)


def in_words(num_bytes: float) -> str:
    """A size for people.

    >>> in_words(2_500_000)
    '2.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
