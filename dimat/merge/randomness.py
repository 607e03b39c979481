"""Random masks that belong to a model: which entries are kept follows from who the model is, not from when it came.

The decision on entry e of tensor `name` depends on (seed, the model's digest, name, e) alone. Neither the order of
arrival nor the slices that a tensor is read in change it, and two models share no randomness.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

BLOCK_ENTRIES = 1 << 18
"""Entries drawn from one generator, and those of a slice: seeding costs 10 to 20 us, which is little beside them."""


def keep_mask(
    density: float, seed: int, digest: bytes, name: str, start: int = 0, stop: int = BLOCK_ENTRIES
) -> npt.NDArray[np.bool_]:
    """Which of the entries `start` to `stop` of a tensor are kept, each with probability `density`, below 1.

    >>> whole = keep_mask(0.25, 0, b"digest", "layer.weight", 0, 100)
    >>> bool((whole[40:] == keep_mask(0.25, 0, b"digest", "layer.weight", 40, 100)).all())
    True
    """
    keep = np.empty(stop - start, dtype=np.bool_)
    for index in range(start // BLOCK_ENTRIES, -(-stop // BLOCK_ENTRIES)):
        origin = index * BLOCK_ENTRIES
        first, last = max(start - origin, 0), min(stop - origin, BLOCK_ENTRIES)
        place = slice(origin + first - start, origin + last - start)
        _draw(density, b"%d\t%d\t%s\t%s" % (seed, index, digest, name.encode()), first, keep[place])
    return keep


def _draw(density: float, key: bytes, first: int, keep: npt.NDArray[np.bool_]) -> None:
    """The entries of one block from the `first` on; what comes later in the block is not drawn."""
    last = first + len(keep)
    # The raw output of a bit generator is the same in every version of numpy, unlike that of its distributions.
    octets = _generator(key).random_raw(-(-last // 8)).astype("<u8", copy=False).view(np.uint8)[:last]
    # Eight bits decide on 255 entries of 256, a quarter of the work of 32 bits each; the others get 64 bits more.
    limit = int(density * 256)
    rest = density * 256 - limit
    np.less(octets[first:], limit, out=keep)
    if rest:
        edge = np.flatnonzero(octets == limit)
        more = _generator(key + b"\tedge").random_raw(len(edge)) < int(rest * 2**64)
        here = edge >= first
        keep[edge[here] - first] = more[here]


def _generator(key: bytes) -> np.random.SFC64:
    return np.random.SFC64(int.from_bytes(hashlib.sha256(key).digest()[:16], "little"))
