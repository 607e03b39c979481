"""Random masks that belong to a model: which entries are kept follows from who the model is, not from when it came.

The decision on entry e of tensor `name` depends on (seed, the model's digest, name, e) alone. Neither the order of
arrival nor the slices that a tensor is read in change it, and two models share no randomness.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

BLOCK_ENTRIES = 1 << 16
"""Entries drawn from one generator: seeding costs 11 us, which a smaller block would not spread thin enough."""


def keep_mask(
    density: float, seed: int, digest: bytes, name: str, start: int = 0, stop: int = BLOCK_ENTRIES
) -> npt.NDArray[np.bool_]:
    """Which of the entries `start` to `stop` of a tensor are kept, each with probability `density`, below 1.

    >>> whole = keep_mask(0.25, 0, b"digest", "layer.weight", 0, 100)
    >>> bool((whole[40:] == keep_mask(0.25, 0, b"digest", "layer.weight", 40, 100)).all())
    True
    """
    first, last = start // BLOCK_ENTRIES, max(stop - 1, start) // BLOCK_ENTRIES
    blocks = [_block(density, seed, digest, name, index) for index in range(first, last + 1)]
    origin = first * BLOCK_ENTRIES
    return np.concatenate(blocks)[start - origin : stop - origin]


def _block(density: float, seed: int, digest: bytes, name: str, index: int) -> npt.NDArray[np.bool_]:
    key = hashlib.sha256(b"%d\t%d\t%s\t%s" % (seed, index, digest, name.encode()))
    # The raw output of a bit generator is the same in every version of numpy, unlike that of its distributions.
    generator = np.random.SFC64(int.from_bytes(key.digest()[:16], "little"))
    octets = generator.random_raw(BLOCK_ENTRIES // 8).astype("<u8", copy=False).view(np.uint8)
    # Eight bits decide on 255 entries of 256, a quarter of the work of 32 bits each; the others get 64 bits more.
    limit = int(density * 256)
    rest = density * 256 - limit
    keep: npt.NDArray[np.bool_] = octets < limit
    if rest:
        edge = np.flatnonzero(octets == limit)
        keep[edge] = generator.random_raw(len(edge)) < int(rest * 2**64)
    return keep
