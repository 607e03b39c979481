"""Two hosts, namespaces of this machine, over a slow and lossy line that is cut and mended."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAB = ROOT / "launch" / "lab.sh"
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _needs_namespaces() -> None:
    told = subprocess.run([str(LAB), "check"], env=ENVIRONMENT, capture_output=True, text=True)
    if told.returncode:
        pytest.skip(f"no hosts can be made here: {told.stdout.strip()}")


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines() if line}


def test_a_run_over_a_bad_line_that_is_cut_and_mended_ends_without_a_restart() -> None:
    before = namespaces()
    command = [sys.executable, str(ROOT / "benchmarks" / "lab.py"), "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds " in done.stdout
    assert namespaces() <= before, "no host is left behind"


def test_the_line_is_as_bad_as_asked_for_and_a_lab_leaves_nothing_behind() -> None:
    """A round trip takes twice the delay; nothing passes a line that is cut; `down` ends what runs in the hosts."""
    environment = {**ENVIRONMENT, "LAB": f"t{os.getpid()}", "DELAY_MS": "40", "RATE": "10mbit"}

    def lab(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(LAB), *words], env=environment, capture_output=True, text=True, timeout=60)

    dial = (
        "import socket, time; start = time.monotonic(); "
        "socket.create_connection(('10.77.0.2', 7000), timeout=2); print(time.monotonic() - start)"
    )
    before = namespaces()
    try:
        assert lab("up").returncode == 0
        listener = subprocess.Popen(
            [str(LAB), "exec", "1", sys.executable, "-m", "http.server", "7000", "--bind", "10.77.0.2"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while (first := lab("exec", "0", sys.executable, "-c", dial)).returncode:  # until it listens
            assert listener.poll() is None and "refused" in first.stderr, first.stderr
        took_s = float(lab("exec", "0", sys.executable, "-c", dial).stdout)
        assert took_s >= 0.08, "there and back"
        lab("cut")
        assert "timed out" in lab("exec", "0", sys.executable, "-c", dial).stderr
        lab("heal")
        assert lab("exec", "0", sys.executable, "-c", dial).returncode == 0
    finally:
        down = lab("down")
    assert down.returncode == 0, down.stderr
    assert listener.wait(timeout=10) != 0, "down ended it"
    assert namespaces() <= before
