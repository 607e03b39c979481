"""The benchmarks that are too long for here still run, in their smallest size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("attack.py", "1 of 10 agents lie"),
        ("attention.py", "activations"),
        ("batch.py", "mergekit: absent, not compared"),
        ("barrier.py", "| MLP | the two nets |"),
        ("continual.py", "| OPCM |"),
        ("continual_kill.py", "holds   every state has the same bits"),
        ("churn.py", "holds  those who are there are a ring"),
        ("first_merge.py", "holds  first merge, iid"),
        ("fuzz_wire.py", "holds  run: nothing died"),
        ("opcm.py", "20 models one at a time"),
        ("overhead.py", "resnet20, ring of 5"),
        ("overlap.py", "models read per edge and round"),
        ("staleness.py", "used again"),
        ("simulation.py", "12 agents of 60 samples"),
        ("straggler.py", "one agent 10 times slower"),
        ("partition.py", "holds  at the undisturbed level within 5 rounds after healing"),
        ("soak.py", "KB a round"),
        ("weight_matching.py", "beyond identity"),
    ],
)
def test_it_runs_and_prints_its_table(script: str, words: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--smoke"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert words in done.stdout
