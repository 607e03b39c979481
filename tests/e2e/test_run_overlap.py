"""Processes whose snapshots travel while they train: they merge, and end by themselves long before any deadline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dimat.coordinator import Store

SETTINGS = [
    "task.model.name=mlp",
    "task.model.hidden=[16]",
    "train.epochs=2",
    "agents=3",
    "rounds=5",
    "exchange.mode=async",
    "exchange.overlap=true",
    "exchange.timeout_s=1000",
]


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_run_that_overlaps_merges_and_ends(tmp_path: Path) -> None:
    """The last snapshots of all are read by nobody, and who has said that it reads no more is not waited for: the
    deadline is far beyond what the run may take."""
    flags = [part for setting in SETTINGS for part in ("-s", setting)]
    command = [sys.executable, "-m", "dimat", "run", *flags, "--out", str(tmp_path / "run"), "-q"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with Store.open(tmp_path / "run", read_only=True) as store:
        reports = store.reports(sketches=False)
    assert len(reports) == 15
    assert all("hidden_s" in report.metrics for report in reports)
    for agent in range(3):
        merged = [report for report in reports if report.agent == agent and len(report.weights) > 1]
        assert merged, "who is fast reads the others' earlier rounds, who is slow their last ones"
        assert any(report.metrics["hidden_s"] > 0 for report in merged)
