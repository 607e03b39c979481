"""Correlations between the units of two models as sums that can be added: over batches, and over several probes.

Two agents at the ends of an edge have different data. Each can run both models on its own, and the sums of both
probes together are the sums over all their samples: nothing but (units x units) numbers has to travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dimat.align.units import Group
from dimat.errors import AlignmentError

_ROUNDING = 1e-6
"""A unit whose deviation is a smaller share of its root mean square than this is constant: the rest is rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class PairSums:
    """Centred sums for n units: Σ dx dyᵀ, Σ dx², Σ dy², x of the reference and y of the other model.

    d is the distance from the mean at the same tap; the sums are over all samples, positions and taps. Batches are
    centred before they are multiplied and joined in float64 (Chan, Golub, LeVeque 1979), so a large mean does not
    cancel. Everything is float64 and on the CPU.

    Attributes:
        cross: Σ dx dyᵀ, shape (n, n).
        squares: Σ dx² and Σ dy², shape (2, n).
        means: of x and y at each tap, shape (taps, 2, n).
        counts: samples times positions seen at each tap, shape (taps,).
    """

    cross: Tensor
    squares: Tensor
    means: Tensor
    counts: Tensor

    @staticmethod
    def empty(num_units: int, num_taps: int) -> PairSums:
        """The sums over no sample."""
        shapes = (num_units, num_units), (2, num_units), (num_taps, 2, num_units), (num_taps,)
        return PairSums(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, tap: int, x: Tensor, y: Tensor) -> None:
        """Take in one batch of both models at one tap, matrices of shape (n, samples); both are overwritten."""
        count = x.shape[1]
        if not count:
            return
        means = torch.stack([_centre(rows) for rows in (x, y)])
        self.cross.add_((x @ y.T).to("cpu", torch.float64))
        for own, rows in zip(self.squares, (x, y), strict=True):
            own.add_(torch.linalg.vector_norm(rows, dim=1).to("cpu", torch.float64) ** 2)
        self._join(tap, means, torch.tensor(float(count)))

    def combine(self, other: PairSums) -> PairSums:
        """The sums over the samples of both. Neither is changed."""
        if self.means.shape != other.means.shape:
            shapes = f"{tuple(self.means.shape)} and {tuple(other.means.shape)}"
            raise AlignmentError(f"sums over (taps, 2, units) of {shapes} cannot be added")
        joined = PairSums(
            self.cross + other.cross, self.squares + other.squares, self.means.clone(), self.counts.clone()
        )
        for tap, count in enumerate(other.counts):
            if count:
                joined._join(tap, other.means[tap], count)
        return joined

    def live(self) -> Tensor:
        """Which units of either model vary on the probe and stay finite: bool of shape (2, n)."""
        # NaN and Inf fail the comparison as well.
        power = self.squares + (self.counts[:, None, None] * self.means**2).sum(dim=0)
        return self.squares > _ROUNDING**2 * power

    def correlation(self) -> Tensor:
        """Pearson correlation of unit i of the reference with unit j of the other at [i, j]; 0 unless both are live."""
        scale = torch.where(self.live(), self.squares.rsqrt(), 0.0)
        found = self.cross * scale[0][:, None]
        return found.mul_(scale[1]).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-1.0, 1.0)

    def _join(self, tap: int, means: Tensor, count: Tensor) -> None:
        """Add what the distance between two means contributes; the plain sums of both are added already."""
        seen, total = self.counts[tap], self.counts[tap] + count
        shift, weight = means - self.means[tap], seen * count / total
        self.cross.addr_(shift[0], shift[1], alpha=float(weight))
        self.squares.add_(weight * shift**2)
        self.means[tap] += shift * (count / total)
        self.counts[tap] = total


@dataclass(frozen=True, slots=True, eq=False)
class Correlations:
    """The sums of every group and part that has a tap.

    Attributes:
        fingerprint: of the spec whose units are counted.
        sums: (group name, part) -> its sums; part is `BLOCKS` (-1) for whole blocks, and for a plain group's units.
    """

    fingerprint: str
    sums: Mapping[tuple[str, int], PairSums]

    def combine(self, other: Correlations) -> Correlations:
        """As if both probes had been one. The order matters to rounding only.

        Raises:
            AlignmentError: the two are not of one spec.
        """
        if self.fingerprint != other.fingerprint or self.sums.keys() != other.sums.keys():
            raise AlignmentError("these correlations are of two different specs and cannot be added")
        return Correlations(self.fingerprint, {key: own.combine(other.sums[key]) for key, own in self.sums.items()})

    def of(self, group: Group) -> dict[int, PairSums]:
        """The sums of one group by part."""
        return {part: sums for (name, part), sums in self.sums.items() if name == group.name}


def _centre(rows: Tensor) -> Tensor:
    """Subtract each row's mean in place; the means, in float64 on the CPU."""
    mean = rows.mean(dim=1, keepdim=True)
    rows.sub_(mean)
    return mean[:, 0].to("cpu", torch.float64)
