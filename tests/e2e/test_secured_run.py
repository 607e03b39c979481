"""A run with certificates: the bits of one without, and no key anywhere in its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dimat.config import load_config
from dimat.coordinator import Store
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.transport.authority import new_authority
from dimat.transport.security import COORDINATOR, ONLOOKER, agent, held_identities

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SMALL = [
    "task.model.name=mlp",
    "task.model.hidden=[16]",
    "train.epochs=1",
    "train.batch_size=64",
    "agents=3",
    "topology.graph=path",
    "rounds=2",
    "security.certificates=required",
]


def secrets(certs: Path) -> list[bytes]:
    """Every line of every key: any of them, alone or in a longer text, would give some of it away."""
    return [line for key in certs.glob("*.key") for line in key.read_bytes().splitlines() if not line.startswith(b"--")]


def leaks(folder: Path, keys: list[bytes]) -> list[Path]:
    """Files that hold some of a key."""
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return [path for path, content in contents.items() if b"PRIVATE KEY" in content or any(k in content for k in keys)]


def test_a_secured_run_ends_with_the_bits_of_a_plain_one_and_keeps_its_keys(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    new_authority(certs)
    settings = [part for setting in SMALL for part in ("-s", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "dimat", "run", *settings, "--out", str(tmp_path / "run"), "--certs", str(certs),
         "--format", "json", "-vv"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "INFO"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rounds"] == 2
    assert held_identities(certs) == [COORDINATOR, ONLOOKER, agent(0), agent(1), agent(2)]

    # Plain text and simulation agree bit for bit (test_run.py); so must this.
    config = load_config(None, SMALL)
    simulate(config, prepare(config, tmp_path / "simulated"))
    for number in range(3):
        checkpoint = Path("checkpoints") / str(number) / "2.safetensors"
        assert (tmp_path / "run" / checkpoint).read_bytes() == (tmp_path / "simulated" / checkpoint).read_bytes()
    with Store.open(tmp_path / "run", read_only=True) as store:
        reports = store.reports(sketches=False)
    assert sorted((report.agent, report.round) for report in reports) == [(a, r) for a in range(3) for r in (1, 2)]
    assert not any(report.missing for report in reports)

    keys = secrets(certs)
    assert len(keys) >= 3 * 6
    assert set(leaks(certs, keys)) == set(certs.glob("*.key")), "where keys are, they are found"
    assert leaks(tmp_path / "run", keys) == []
    assert {"coordinator.log", "agents.log"} <= {path.name for path in (tmp_path / "run" / "logs").iterdir()}
    assert str(certs) not in (tmp_path / "run" / "config.yaml").read_text()
    assert "PRIVATE KEY" not in done.stdout + done.stderr
    assert [key for key in keys if key in (done.stdout + done.stderr).encode()] == []
