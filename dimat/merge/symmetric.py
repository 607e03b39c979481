"""Eigenvectors of S S^T by numpy's LAPACK, on as many threads as torch would take here.

numpy carries OpenBLAS. Its product of a matrix with its own transpose computes one triangle, and on processors that
torch's MKL has no kernels of its own for (AMD) it is faster in all of it: eigenvectors of 768 x 768 in 106 ms where
torch takes 143, the Gram matrix of 768 x 3072 in 53 ms where torch takes 109. On others (Intel) the two are equal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def gram_of(a: Tensor) -> Tensor:
    """A A^T of a float64 (m, n), both triangles."""
    rows = a.detach().cpu().numpy()
    with _as_many_threads_as_torch():
        return torch.from_numpy(rows @ rows.T).to(a.device)


def eigenvectors(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues (m), smallest first, and eigenvectors (m, m), as columns, of a float64 (m, m); overwrites it.

    Raises:
        LinAlgError: of numpy, if they do not converge.
    """
    # What LAPACK takes for itself beside the answer, by divide and conquer: a copy, and twice as much to work in. It
    # is never touched, so it costs nothing, but who asks what torch holds (dimat.merge.demand) counts it.
    work_area = torch.empty(3 * symmetric.numel(), dtype=torch.float64)
    with _as_many_threads_as_torch():
        values, vectors = np.linalg.eigh(symmetric.cpu().numpy())
    del work_area
    return torch.from_numpy(values).to(symmetric.device), torch.from_numpy(vectors).to(symmetric.device)


_lock = threading.Lock()
_inside: list[None] = []
_outside: list[int] = []


@contextmanager
def _as_many_threads_as_torch() -> Iterator[None]:
    """OpenBLAS counts its threads for the whole process, torch for each thread: the first who enters has them set.

    Those who are inside at the same time are the workers of one merge, with one thread each, or a single caller. As
    many threads as torch has make the same bits: torchrun tells both to take one, a simulation tells torch alone.
    """
    with _lock:
        if not _inside:
            _outside[:] = [library.num_threads for library in _libraries()]
            _set_threads([torch.get_num_threads()] * len(_outside))
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                _set_threads(_outside)


def _set_threads(numbers: Sequence[int]) -> None:
    for library, number in zip(_libraries(), numbers, strict=True):
        if library.num_threads != number:
            library.set_num_threads(number)


@cache
def _libraries() -> Sequence[Any]:
    """Every BLAS that numpy and scipy have loaded, as threadpoolctl finds them."""
    from threadpoolctl import ThreadpoolController

    return tuple(ThreadpoolController().select(user_api="blas").lib_controllers)
