"""Count-sketches: 4096 numbers that stand for a model, so that distances are known without moving models.

A count-sketch is a random linear map S from the d parameters to k numbers. Every entry p has a bucket h(p) in 0..k-1
and a sign s(p) of plus or minus one, and

    (S x)_b = sum over entries p with h(p) = b of s(p) x_p

Because S is linear, S(x - y) = Sx - Sy; because E ||S z||^2 = ||z||^2 with relative variance at most 2/k, the norm of a
difference of sketches is the distance of the models to about sqrt(1 / 2k): 1.1 % for k = 4096, whatever d is.

The buckets and signs are a Philox stream keyed by the run's seed: they depend on the seed and the entry's position
alone, so equal models sketch alike on every agent. numpy promises the raw Philox stream for all versions (its
distributions it does not), hence `random_raw`.

Source: Charikar, Chen, Farach-Colton, «Finding frequent items in data streams» (2002); the norm bound as in
Weinberger et al., «Feature hashing for large scale multitask learning», arXiv 0902.2206.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dimat.seeds import derive_seed

if TYPE_CHECKING:
    import torch

SKETCH_SIZE = 4096
"""Numbers in a sketch: 16 KiB on the wire and a standard error of 1.1 %."""

CHUNK = 1 << 18
"""Entries worked on at a time: about 5 MiB of scratch memory, whatever the size of the model. A multiple of four."""


def sketch(
    tensors: Mapping[str, torch.Tensor] | Iterable[torch.Tensor], *, seed: int, size: int = SKETCH_SIZE
) -> bytes:
    """The count-sketch of a model's parameters.

    Time is O(d), about 8 ms per million entries on one core; memory is bounded by `CHUNK`.

    Args:
        tensors: a state dict, taken in the order of its names, or tensors in an order that all agents share. Tensors
            that are not floating point (counters, indices) are left out.
        seed: the run's seed. The stream is derived from it by name and shares no random numbers with initial weights.
        size: k, the number of buckets, a power of two up to 32768.

    Returns:
        k little-endian float32 values (sums are kept in float64).

    Raises:
        ValueError: `size` is not a power of two from 1 to 32768.

    >>> import torch
    >>> ones = torch.ones(1000)
    >>> round(sketch_norm(sketch([ones], seed=0)) / float(ones.norm()), 1)
    1.0
    """
    if size < 1 or size > 1 << 15 or size & (size - 1):
        raise ValueError(f"sketch size {size} is not a power of two from 1 to 32768")
    # One bincount over 2k bins serves for bucket and sign: the upper half are the entries whose sign is minus.
    totals = np.zeros(2 * size)
    stream = None
    for index, values in enumerate(_chunks(tensors)):
        if index == 0:
            bins = _first_bins(seed, len(values), 2 * size)
        else:
            stream = stream or _after_first_chunk(seed)
            bins = _bins(stream, len(values), 2 * size)
        totals += np.bincount(bins, weights=values, minlength=2 * size)
    return (totals[:size] - totals[size:]).astype("<f4").tobytes()


def sketch_norm(data: bytes) -> float:
    """The Euclidean norm of a sketch: an estimate of the norm of what was sketched."""
    return float(np.linalg.norm(_values(data)))


def sketch_distance(a: bytes, b: bytes) -> float:
    """The estimated Euclidean distance of two sketched models.

    Raises:
        ValueError: the sketches have different sizes.
    """
    if len(a) != len(b):
        raise ValueError(f"sketches of {len(a) // 4} and of {len(b) // 4} numbers cannot be compared")
    return float(np.linalg.norm(_values(a) - _values(b)))


def _values(data: bytes) -> npt.NDArray[np.float64]:
    return np.frombuffer(data, dtype="<f4").astype(np.float64)


# Agents of one process sketch models of one size, twice a round: the bins cost more than the sums.
@lru_cache(maxsize=2)
def _first_bins(seed: int, num_entries: int, num_bins: int) -> npt.NDArray[np.intp]:
    """The bins of the first chunk, which is all of a small model."""
    return _bins(np.random.Philox(key=derive_seed(seed, "sketch")), num_entries, num_bins)


def _after_first_chunk(seed: int) -> np.random.Philox:
    stream = np.random.Philox(key=derive_seed(seed, "sketch"))
    stream.random_raw(CHUNK // 4)
    return stream


def _bins(stream: np.random.Philox, num_entries: int, num_bins: int) -> npt.NDArray[np.intp]:
    """The bins of the next `num_entries` entries: four 16-bit numbers are cut from each 64-bit word of the stream."""
    words: npt.NDArray[np.uint64] = np.asarray(stream.random_raw(-(-num_entries // 4)))
    halves = words.astype("<u8", copy=False).view("<u2")[:num_entries]
    return (halves & np.uint16(num_bins - 1)).astype(np.intp)


def _chunks(tensors: Mapping[str, torch.Tensor] | Iterable[torch.Tensor]) -> Iterator[npt.NDArray[np.float64]]:
    """All entries one after another as float64, `CHUNK` at a time: many small tensors cost no more than a large one."""
    import torch

    ordered = [tensors[name] for name in sorted(tensors)] if isinstance(tensors, Mapping) else tensors
    chunk = np.empty(CHUNK)
    window = torch.from_numpy(chunk)
    filled = 0
    for tensor in ordered:
        if not tensor.is_floating_point():
            continue
        flat = tensor.detach().reshape(-1)
        start = 0
        while start < flat.numel():
            num = min(CHUNK - filled, flat.numel() - start)
            window[filled : filled + num].copy_(flat[start : start + num])  # converts dtype and device on the way
            start, filled = start + num, filled + num
            if filled == CHUNK:
                yield chunk
                filled = 0
    if filled:
        yield chunk[:filled]
