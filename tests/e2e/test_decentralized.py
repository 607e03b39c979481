"""The smallest suite of the comparison, killed in the middle and run to its end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.decentralized import table
from benchmarks.decentralized.methods import why_not
from benchmarks.decentralized.suites import cells_of

ROOT = Path(__file__).parents[2]


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_the_smoke_suite_is_killed_goes_on_and_reports(tmp_path: Path) -> None:
    docs, path = tmp_path / "docs", tmp_path / "docs" / "results" / "smoke.csv"
    command = [sys.executable, "-m", "benchmarks.decentralized", "--suite", "smoke", "--cores", "2"]
    command += ["--docs", str(docs), "--cache", str(tmp_path / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    while first.poll() is None and not path.is_file():
        time.sleep(0.05)  # until it has finished a cell: there is no sign of it but the table
    first.kill()
    first.communicate()
    done = table.read(path)
    assert len(table.finished(done)) == len({row.cell for row in done}) > 0  # whole cells only

    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment)
    assert second.returncode == 0, second.stderr
    rows = table.read(path)
    assert table.to_csv(rows[: len(done)]) == table.to_csv(done)  # seconds too: they were not run again
    able = {cell for cell in cells_of("smoke") if not why_not(cell.method)}
    assert table.finished(rows) == able
    assert all(0 < row.numbers["accuracy"] <= 1 and row.numbers["s_train"] > 0 for row in rows)
    assert all(0 < row.numbers["accuracy_averaged"] <= 1 for row in rows)  # rounds 1 and 2 are both measured
    assert all(row.numbers["bytes"] > 0 for row in rows if row.cell.method != "swarm")
    text = (docs / "results.md").read_text()
    assert f"{len(able)} of {len(cells_of('smoke'))} cells are done." in text
    assert len(list((docs / "results").glob("*.png"))) == 6
