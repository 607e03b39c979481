"""The same plan in real processes: SIGKILL, bytes that are wrong on the wire, a coordinator that is started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dimat.config import load_config
from dimat.coordinator import Store
from dimat.runfolder import prepare, processes
from dimat.simulate import simulate

KILLED, LAST = 3, 6


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_plan_is_carried_out_by_processes(tmp_path: Path) -> None:
    before: list[dict[str, Any]] = [
        {"at": {"agent": 1, "round": 2}, "do": "corrupt"},
        {"at": {"agent": 0, "round": 3}, "do": "truncate"},
        {"do": "drop_link", "between": [2, 3], "rounds": [3, 3]},
        {"at": {"round": 1}, "do": "restart_coordinator"},
    ]
    kill = {"at": {"agent": KILLED, "round": 5, "phase": "gather"}, "do": "kill"}
    settings = [
        "agents=4", f"rounds={LAST}", "task.model.name=mlp", "task.model.hidden=[8]", "train.epochs=1",
        "train.batch_size=128", "exchange.timeout_s=3",
    ]  # fmt: skip
    settings += [f"faults={json.dumps([*before, kill])}"]
    folder = tmp_path / "run"
    flags = [part for setting in settings for part in ("-s", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "dimat", "run", *flags, "--out", str(folder), "--launch", "per-agent", "-q"],
        capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with Store.open(folder, read_only=True) as store:
        reports = {(report.agent, report.round): report for report in store.reports()}
    assert "wrong digest" in reports[2, 2].missing[1]
    assert "truncated" in reports[1, 3].missing[0]
    assert "the link to agent 3 is cut" in reports[2, 3].missing[3]
    assert KILLED in reports[0, 5].missing
    assert {round for agent, round in reports if agent == 0} == set(range(1, LAST + 1))
    assert len([entry for entry in processes(folder) if entry["role"] == "coordinator"]) == 2
    assert (folder / "faults" / "4-kill").is_file()

    # The bits of the same plan over memory, as long as nothing depends on how long a death takes to be noticed.
    config = load_config(None, settings)
    simulated = prepare(config, tmp_path / "simulated")
    simulate(config, simulated)
    for agent in range(4):
        held = [run / "checkpoints" / str(agent) / "4.safetensors" for run in (folder, simulated)]
        assert held[0].read_bytes() == held[1].read_bytes(), agent
