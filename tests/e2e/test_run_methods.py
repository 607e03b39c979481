"""A method with a base and an order: processes over gRPC end with the bits of a simulation, and need nothing more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dimat.config import load_config
from dimat.runfolder import prepare
from dimat.simulate import simulate

SETTINGS = [
    "task.model.name=mlp",
    "task.model.hidden=[16]",
    "train.epochs=1",
    "train.batch_size=64",
    "agents=3",
    "topology.graph=path",
    "rounds=3",
    "merge.method=opcm",
    "merge.options.alpha=0.4",
    "merge.every=2",
]


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_opcm_over_grpc_ends_with_the_bits_of_its_simulation(tmp_path: Path) -> None:
    flags = [part for setting in SETTINGS for part in ("-s", setting)]
    command = [sys.executable, "-m", "dimat", "run", *flags, "--out", str(tmp_path / "run"), "-q"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config = load_config(None, SETTINGS)
    simulate(config, prepare(config, tmp_path / "simulated"))
    for agent in range(3):
        ends = [tmp_path / kind / "checkpoints" / str(agent) / "3.safetensors" for kind in ("run", "simulated")]
        assert ends[0].read_bytes() == ends[1].read_bytes()
