"""A training loader over tensors in memory: one permutation an epoch, then slices.

torch's DataLoader collates sample by sample in Python; on samples as small as digits that costs more than training.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dimat.errors import TaskError
from dimat.tasks.scaling import Scaling


class TensorLoader:
    """Batches (x, y) of one shard in a new order each epoch, nothing left out.

    A last batch of a single sample joins the batch before it: batch norm cannot train on one sample.

    Args:
        x: samples (N, ...), kept in their stored dtype; batches are float32.
        y: labels (N,).
        batch_size: samples per batch; at least 1.
        generator: draws the orders; its state is what a checkpoint keeps.
        scaling: applied to each batch, so that bytes stay bytes in memory.

    Raises:
        TaskError: the batch size is below 1, or there are no samples.

    >>> loader = TensorLoader(torch.arange(5.0), torch.arange(5), 2, torch.Generator().manual_seed(0))
    >>> len(loader), [len(y) for _, y in loader]
    (2, [2, 3])
    """

    def __init__(
        self, x: Tensor, y: Tensor, batch_size: int, generator: torch.Generator, scaling: Scaling | None = None
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise TaskError(f"batch_size is a whole number of at least 1, {batch_size!r} was given")
        if len(x) == 0 or len(x) != len(y):
            raise TaskError(
                f"a loader needs samples with one label each, {len(x)} samples and {len(y)} labels were given"
            )
        self.x = x
        self.y = y
        self.batch_size = batch_size
        self.generator = generator
        self.scaling = scaling

    def __len__(self) -> int:
        num_full, rest = divmod(len(self.x), self.batch_size)
        return max(1, num_full + (rest > 1))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.draw():
            x = self.x[rows]
            yield (self.scaling.apply(x) if self.scaling else x), self.y[rows]

    def draw(self) -> list[Tensor]:
        """Which samples each batch of a new epoch holds: iterating draws the same, and reads them."""
        order = torch.randperm(len(self.x), generator=self.generator)
        starts = [index * self.batch_size for index in range(len(self))]
        ends = [*starts[1:], len(order)]  # the last batch takes what is left
        return [order[start:end] for start, end in zip(starts, ends, strict=True)]
