"""Eigenvectors by numpy: they are eigenvectors, and take as many threads as torch would."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dimat.merge import symmetric
from dimat.merge.demand import _peak
from dimat.merge.symmetric import eigenvectors, gram_of


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (20, 64), (64, 20)])
def test_eigenvectors_are_those_of_the_gram_matrix(shape: tuple[int, int]) -> None:
    a = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for one in (a, a.T, a[:, ::2]):
        gram = gram_of(one)
        assert torch.allclose(gram, one @ one.T, atol=1e-12)
        values, vectors = eigenvectors(gram.clone())
        assert values.equal(values.sort().values)
        assert torch.allclose((vectors * values) @ vectors.T, gram, atol=1e-10)
        assert torch.allclose(vectors.T @ vectors, torch.eye(len(gram), dtype=torch.float64), atol=1e-12)


class Library:
    """Stands for OpenBLAS."""

    def __init__(self) -> None:
        self.num_threads = 7
        self.told: list[int] = []

    def set_num_threads(self, number: int) -> None:
        self.num_threads = number
        self.told.append(number)


def test_blas_takes_as_many_threads_as_torch_and_has_its_own_back(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(symmetric, "_libraries", lambda: (library,))

    def work(number: int) -> None:
        torch.set_num_threads(number)  # of this thread
        gram_of(torch.ones(2, 2, dtype=torch.float64))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work, 3).result()
        pool.submit(work, 1).result()
    assert library.told == [3, 7, 1, 7]
    with ThreadPoolExecutor(2) as pool, symmetric._as_many_threads_as_torch():
        before = list(library.told)
        pool.submit(work, 1).result()
    assert library.told == [*before, 7]  # who is inside already chose


def test_numpys_blas_is_found() -> None:
    assert any(library.num_threads for library in symmetric._libraries())


def test_what_lapack_works_in_is_counted() -> None:
    gram = torch.eye(100, dtype=torch.float64)
    _, peak = _peak(lambda: eigenvectors(gram))
    assert peak >= (3 + 1) * gram.nbytes
