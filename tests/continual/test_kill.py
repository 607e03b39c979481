"""Killed at any line, a ledger is as before or as after, and the same command again ends in the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("killed.py")


def run(home: Path, operation: str, number: int) -> dict[str, int]:
    command = [sys.executable, "-W", "error", str(DRIVER), str(home), operation, str(number)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(("operation", "stride"), [("add", 7), ("remove", 13), ("undo", 5)])
def test_a_change_that_is_killed_at_any_line_happened_or_did_not(operation: str, stride: int, tmp_path: Path) -> None:
    found = run(tmp_path, operation, stride)
    assert found["lines"] > 60 and found["before"] > 10 and found["after"] > 2, found


def test_twelve_adds_that_are_killed_and_retried_end_in_the_same_bits(tmp_path: Path) -> None:
    found = run(tmp_path, "many", 12)
    assert found["before"] + found["after"] == 12 and found["before"] and found["after"], found
