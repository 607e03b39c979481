"""One seed for a run, and every other seed derived from it by name, so that no two uses share a random stream."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) that depends on the run's seed and on what it is for, and on nothing else.

    >>> derive_seed(0, "init", 3) == derive_seed(0, "init", 3)
    True
    >>> derive_seed(0, "init", 3) == derive_seed(0, "init", 4)
    False
    """
    text = "/".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
