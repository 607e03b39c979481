"""`dimat doctor` beside a run that goes on: every edge is dialled, and the run does not notice."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dimat.coordinator import Store
from dimat.runfolder import processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SETTINGS = ["task.model.name=mlp", "task.model.hidden=[16]", "train.batch_size=8", "agents=3", "rounds=5000"]
FLAGS = [part for setting in SETTINGS for part in ("-s", setting)]


def test_agents_that_are_up_are_dialled_and_do_not_notice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "dimat", "run", *FLAGS, "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            while len(list(folder.glob("checkpoints/*/1.json"))) < 3:
                assert run.poll() is None, run.stdout and run.stdout.read()
                time.sleep(0.05)  # other processes have no event to wait for
            address = next(entry["address"] for entry in processes(folder) if entry["role"] == "coordinator")
            ask = [sys.executable, "-m", "dimat", "doctor", *FLAGS, "--out", str(folder), "--format", "json"]
            told = subprocess.run([*ask, "--coordinator", address], capture_output=True, text=True)
            assert run.poll() is None, "the run ended before it was looked at"
            run.send_signal(signal.SIGINT)
            output, _ = run.communicate(timeout=200)
        finally:
            run.terminate()
    assert told.returncode == 0, told.stdout + told.stderr
    result = json.loads(told.stdout)
    assert {(edge["reader"], edge["peer"]) for edge in result["edges"]} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }
    assert all(edge["error"] == "" and edge["round_trip_s"] > 0 for edge in result["edges"])
    assert [f["state"] for f in result["checks"] if f["check"] == "clock"] == ["ok"] * 4  # the coordinator's too
    assert run.returncode == 130, output
    with Store.open(folder, read_only=True) as store:
        assert not any(report.missing for report in store.reports(sketches=False))
