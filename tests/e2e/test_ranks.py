"""Agents of several ranks, and a gang that is started again: real processes under one torchrun."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dimat.config import load_config
from dimat.runfolder import prepare, processes
from dimat.simulate import simulate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ROUNDS = 40


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Two agents with 64 samples each, in batches that two ranks share evenly, without random draws in the model."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 8))
    labels = np.arange(192) % 4
    x = (centres[labels] + 0.5 * rng.normal(size=(192, 8))).astype(np.float32)
    np.savez(tmp_path / "points.npz", x_train=x[:128], y_train=labels[:128], x_test=x[128:], y_test=labels[128:])
    return [
        "agents=2", "topology.graph=path", f"rounds={ROUNDS}", "task.name=arrays", "task.model.name=mlp",
        f"task.data={tmp_path / 'points.npz'}", "task.model.hidden=[16]", "task.partition.scheme=iid",
        "train.batch_size=16", "train.lr=0.01", "merge.calibrate=none",
    ]  # fmt: skip


def test_two_ranks_learn_what_one_would_and_a_crash_starts_all_of_them_again(
    tmp_path: Path, settings: list[str]
) -> None:
    alone = load_config(None, settings)
    simulate(alone, prepare(alone, tmp_path / "simulated"))
    folder = tmp_path / "run"
    flags = [
        part for setting in (*settings, "launch.ranks_per_agent=2", "launch.max_restarts=1") for part in ("-s", setting)
    ]
    command = [sys.executable, "-m", "dimat", "run", *flags, "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            while not list(folder.glob("checkpoints/1/[3-9].json")):
                assert run.poll() is None, run.stdout and run.stdout.read()
                time.sleep(0.02)  # other processes have no event to wait for
            follower = next(entry for entry in processes(folder) if entry["role"] == "follower" and entry["id"] == 1)
            os.kill(follower["pid"], signal.SIGKILL)
            output, _ = run.communicate(timeout=300)
        finally:
            run.terminate()
    assert run.returncode == 0, output

    log = (folder / "logs" / "agents.log").read_text()
    roles = [(entry["role"], entry["id"]) for entry in processes(folder) if entry["role"] != "coordinator"]
    assert sorted(roles) == sorted(2 * [(role, agent) for role in ("agent", "follower") for agent in (0, 1)]), log
    for agent in (0, 1):
        leaving = re.findall(rf"agent {agent}: rank (\d) of 2 leaves with weights ([0-9a-f]{{16}})", log)
        assert sorted(rank for rank, _ in leaving) == ["0", "1"]
        assert len({digest for _, digest in leaving}) == 1, "both ranks hold the same weights"

        name = f"checkpoints/{agent}/{ROUNDS}.safetensors"
        ours, single = load_file(folder / name), load_file(tmp_path / "simulated" / name)
        for tensor in ours:
            assert np.allclose(ours[tensor], single[tensor], atol=1e-3), f"{tensor} of one rank and of two"
