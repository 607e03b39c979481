"""What must start in a blink starts without torch; each module is imported in an interpreter of its own."""

import subprocess
import sys

import pytest

LIGHT = [
    "dimat",
    "dimat.config",
    "dimat.faults",
    "dimat.messages",
    "dimat.topology",
    "dimat.topology.topology",
    "dimat.transport.base",
    "dimat.transport.memory",
    "dimat.transport.grpc",
    "dimat.transport.grpc.continual_client",
    "dimat.transport.grpc.continual_server",
    "dimat.coordinator",
    "dimat.coordinator.service",
    "dimat.cli.app",
    "dimat.cli.live",
    "dimat.cli.coordinator",
    "dimat.report",
]


@pytest.mark.parametrize("module", LIGHT)
def test_it_loads_without_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr


def test_help_loads_nothing_heavy() -> None:
    """The command line answers in a blink because these are not loaded."""
    code = (
        "import sys\nfrom dimat.cli import app\nsys.argv = ['dimat', '--help']\n"
        "try:\n    app.main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'numpy', 'networkx', 'pydantic', 'grpc', 'rich', 'matplotlib', 'cryptography')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    assert "simulate" in done.stdout
