"""Fixtures that several parts share."""

import ctypes
import gc
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# Two cores, many small models: more threads than work only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A suite in the background of a shell is told to ignore Ctrl+C, and so would every process be that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair: no property may fail because others work on it too.
settings.register_profile("dimat", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dimat")


@pytest.fixture(scope="module", autouse=True)
def out_of_sight() -> None:
    """Take all that is there before a module's tests out of the sight of the collector of cycles.

    An alignment asks the collector which tensors live before it follows a model, and went over half a million objects
    of libraries and collected tests every time. Tensors stay in sight: those that modules have made are found as they
    are outside of tests.
    """
    gc.collect()
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    gc.freeze()
    for tensor in tensors:
        ctypes.pythonapi.PyObject_GC_UnTrack(ctypes.py_object(tensor))
        ctypes.pythonapi.PyObject_GC_Track(ctypes.py_object(tensor))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Every test computes with one torch thread, as agents do by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
