"""Activation matching: pair the units that fire together on a probe.

For each group the Pearson correlation of every unit of one model with every unit of the other,

    r_ij = cov(x_i, y_j) / sqrt(var x_i · var y_j),

over all samples and positions of the probe, and the linear assignment that maximises Σᵢ r_{i, p(i)} (Li et al. 2016,
arXiv 1511.07543; DIMAT, arXiv 2404.08079). Both models run once; only the block self-against-other is kept, so memory
is bounded by the sum of group sizes squared plus the taps of one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dimat.align.calls import evaluating
from dimat.align.groups import PermutationSpec
from dimat.align.matching import GroupMatch, Matching
from dimat.align.solve import best_permutation, total_similarity
from dimat.align.taps import read_taps
from dimat.align.units import Tap
from dimat.errors import AlignmentError

_TIE = 1e-9
"""Bonus of the identity that decides between equal pairings only; correlations are at least this exact in float64."""

logger = logging.getLogger(__name__)


def activation_matching(
    spec: PermutationSpec, reference: nn.Module, other: nn.Module, batches: Iterable[Any], *, stickiness: float = 0.0
) -> dict[str, Tensor]:
    """The permutations that bring `other` into the basis of `reference`; `match_activations` also tells how well.

    >>> from dimat.align import permutation_spec
    >>> _ = torch.manual_seed(0)
    >>> one, two = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    >>> spec = permutation_spec(one, torch.zeros(2, 4))
    >>> hidden = spec.random(seed=1)
    >>> _ = two.load_state_dict(spec.apply(one.state_dict(), hidden))
    >>> found = activation_matching(spec, one, two, [torch.randn(64, 4)])
    >>> spec.moved(spec.compose(hidden, found))
    0.0
    """
    return match_activations(spec, reference, other, batches, stickiness=stickiness).perms


def match_activations(
    spec: PermutationSpec, reference: nn.Module, other: nn.Module, batches: Iterable[Any], *, stickiness: float = 0.0
) -> Matching:
    """Pair units by the correlation of their activations before the non-linearity, all groups in one pass.

    Args:
        spec: the groups of both models.
        reference: the model whose basis is kept.
        other: the model to permute.
        batches: the probe; a batch is a tensor, a tuple of arguments or a mapping of keyword arguments. Batches of
            about 64 samples keep what is tapped in the cache.
        stickiness: bonus for leaving a unit where it is, in units of correlation.

    Returns:
        A `Matching`. Units that are constant (or not finite) on the probe in either model have no correlation; they
        are counted, and stay in place where they can. Groups without a tap stay as they are and count as constant.

    Raises:
        AlignmentError: the probe is empty, or a model does not take the path on which the taps were found.
    """
    sums = {
        (group.name, part): PairSums(group.num_units(part))
        for group in spec.groups
        for part in sorted({tap.place.part for tap in group.taps})
    }
    num_batches = 0
    with evaluating(reference, other):
        for batch in batches:
            num_batches += 1
            ours: dict[tuple[str, Tap], Tensor] = {}

            def keep(group: str, tap: Tap, rows: Tensor, ours: dict[tuple[str, Tap], Tensor] = ours) -> None:
                ours[group, tap] = rows

            def pair(group: str, tap: Tap, rows: Tensor, ours: dict[tuple[str, Tap], Tensor] = ours) -> None:
                sums[group, tap.place.part].add(tap, ours.pop((group, tap)), rows)

            read_taps(spec, reference, batch, keep)
            read_taps(spec, other, batch, pair)
    if not num_batches:
        raise AlignmentError("the probe is empty: activation matching needs at least one batch")
    return _solve(spec, sums, stickiness)


class PairSums:
    """Centred sums over the probe for one group: Σ dx dyᵀ, Σ dx², Σ dy², where d is the distance from the mean.

    Each tap has its own mean, the sums are over all taps. Batches are centred before they are multiplied and joined in
    float64 (Chan, Golub, LeVeque 1979), so a large mean does not cancel.
    """

    def __init__(self, size: int) -> None:
        self.cross = torch.zeros(size, size, dtype=torch.float64)
        self.squares = torch.zeros(2, size, dtype=torch.float64)
        self.magnitudes = torch.zeros(2, size, dtype=torch.float64)  # Σ mean², to tell constant from small
        self.num_samples = 0
        self._means: dict[Tap, tuple[int, Tensor]] = {}

    def add(self, tap: Tap, x: Tensor, y: Tensor) -> None:
        """Take in one batch of both models at one tap, two matrices of shape (size, n); both are overwritten."""
        count = x.shape[1]
        mean = torch.stack([_centre(rows) for rows in (x, y)])
        self.cross += (x @ y.T).to("cpu", torch.float64)
        self.squares += (
            torch.stack([torch.linalg.vector_norm(rows, dim=1) for rows in (x, y)]).to("cpu", torch.float64) ** 2
        )
        self.magnitudes += count * mean**2
        self.num_samples += count
        seen, old = self._means.get(tap, (0, torch.zeros_like(mean)))
        shift, weight = mean - old, seen * count / (seen + count)
        self.cross += weight * torch.outer(shift[0], shift[1])
        self.squares += weight * shift**2
        self._means[tap] = (seen + count, old + shift * (count / (seen + count)))

    def correlation(self) -> tuple[Tensor, int]:
        """Pearson correlations of shape (size, size), and the number of units without one in either model.

        A unit has none when its deviation is rounding (below 1e-6 of its own root mean square) or not finite.
        """
        power = self.squares + self.magnitudes
        useless = ~(self.squares > 1e-12 * power) | ~torch.isfinite(power)
        scale = torch.where(useless, 0.0, self.squares.rsqrt())
        found = torch.nan_to_num(self.cross * torch.outer(scale[0], scale[1]), nan=0.0, posinf=0.0, neginf=0.0)
        return found.clamp(-1.0, 1.0), int(useless.any(dim=0).sum())


def _solve(spec: PermutationSpec, sums: dict[tuple[str, int], PairSums], stickiness: float) -> Matching:
    perms, stats = spec.identity(), []
    before = after = 0.0
    for group in spec.groups:
        if not group.taps:
            stats.append(GroupMatch(group.name, group.size, 0.0, 0.0, 0.0, group.size))
            continue
        found = {part: sums[name, part].correlation() for name, part in sums if name == group.name}
        similarities, constant = {part: one[0] for part, one in found.items()}, sum(one[1] for one in found.values())
        perm = best_permutation(group, similarities, stickiness + _TIE)
        here = torch.arange(group.size)
        kept, gained = (total_similarity(group, similarities, some) for some in (here, perm))
        live = max(1, group.size - constant)
        if 2 * constant > group.size:
            logger.warning(
                "%d of the %d units of group %s are constant (or not finite) on the probe and stay where they are",
                constant, group.size, group.name,
            )  # fmt: skip
        stats.append(
            GroupMatch(
                group.name, group.size, float((perm != here).double().mean()), kept / live, gained / live, constant
            )
        )
        perms[group.name] = perm
        before, after = before + kept, after + gained
    return Matching(perms, tuple(stats), before, after)


def _centre(rows: Tensor) -> Tensor:
    """Subtract each row's mean in place; the means, in float64 on the CPU."""
    mean = rows.mean(dim=1, keepdim=True)
    rows.sub_(mean)
    return mean[:, 0].to("cpu", torch.float64)
