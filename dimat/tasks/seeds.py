"""Random generators of a task, one for each purpose: drawing a probe cannot shift the order of training."""

from __future__ import annotations

import numpy as np
import torch

from dimat.seeds import derive_seed


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """The numpy generator of one purpose, such as `numpy_generator(seed, "probe", agent)`.

    >>> numpy_generator(0, "probe", 3).integers(1000) == numpy_generator(0, "probe", 3).integers(1000)
    np.True_
    """
    return np.random.default_rng(derive_seed(seed, *purpose))


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """The torch generator of one purpose; its state can be saved and put back by `get_state` and `set_state`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
