"""The benchmark runs, at a size that costs nothing; its figures are for the full size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "transport.py"


def test_the_benchmark_runs_small(tmp_path: Path) -> None:
    out = tmp_path / "transport.json"
    command = [sys.executable, str(SCRIPT), "--smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert set(row["rate_mb_per_s"]) == {"ours", "aio", "sync"}
    assert all(len(times) == 2 for times in row["seconds"].values())
    assert row["extra_peak_bytes"] > row["payload_bytes"] * 0.9  # the buffer itself counts
    assert "ratio" in done.stdout
