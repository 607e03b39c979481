"""Fixtures that several parts share."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch

# Two cores, many small models: more threads than work only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A suite in the background of a shell is told to ignore Ctrl+C, and so would every process be that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Every test computes with one torch thread, as agents do by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
