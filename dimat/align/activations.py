"""Activation matching: pair the units that fire together on a probe.

For each group the Pearson correlation of every unit of one model with every unit of the other,

    r_ij = cov(x_i, y_j) / sqrt(var x_i · var y_j),

over all samples and positions of the probe, and the assignment that maximises Σᵢ r_{i, p(i)} (Li et al. 2016,
arXiv 1511.07543; DIMAT, arXiv 2404.08079). Both models run once; only the block self-against-other is kept, so memory
is bounded by the sum of group sizes squared plus the taps of one batch.

The two halves can be had apart: `correlations` runs the models, `match_correlations` solves. What several probes said
is added in between.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from dimat.align.calls import evaluating
from dimat.align.correlation import Correlations, PairSums
from dimat.align.groups import PermutationSpec
from dimat.align.matching import GroupMatch, Matching
from dimat.align.solve import best_permutation, check_bonus, total_similarity, unit_similarity
from dimat.align.taps import read_taps
from dimat.align.units import BLOCKS, Group, Tap
from dimat.errors import AlignmentError, SchemaError

_TIE = 1e-9
"""Bonus of the identity that decides between equal pairings only; correlations are at least this exact in float64."""

logger = logging.getLogger(__name__)


def activation_matching(
    spec: PermutationSpec,
    reference: nn.Module,
    other: nn.Module,
    batches: Iterable[Any],
    *,
    stickiness: float = 0.0,
    margin: float = 0.0,
) -> dict[str, Tensor]:
    """The permutations that bring `other` into the basis of `reference`; `match_activations` also tells how well.

    >>> import torch
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
    return match_activations(spec, reference, other, batches, stickiness=stickiness, margin=margin).perms


def match_activations(
    spec: PermutationSpec,
    reference: nn.Module,
    other: nn.Module,
    batches: Iterable[Any],
    *,
    stickiness: float = 0.0,
    margin: float = 0.0,
) -> Matching:
    """Pair units by the correlation of their activations before the non-linearity, all groups in one pass.

    Args:
        spec: the groups of both models.
        reference: the model whose basis is kept.
        other: the model to permute.
        batches: the probe; a batch is a tensor, a tuple of arguments or a mapping of keyword arguments. Batches of
            about 64 samples keep what is tapped in the cache.
        stickiness: bonus for leaving a unit where it is, in units of correlation.
        margin: a group moves only when the rise of its objective is more than this share of what it rises to,
            (after - before) > margin · |after|, the bonus aside. Both exist because swapping units that are nearly
            equal gains nothing and harms: once models share a basis, noise must not move them.

    Returns:
        A `Matching`. Units that are constant (or not finite) on the probe have no correlation; they are counted, and
        stay in place where they can. Groups without a tap stay as they are and count as constant.

    Raises:
        SchemaError: a model is of another architecture than the spec; the message names the first tensor that differs.
        AlignmentError: the probe is empty, or a model does not take the path on which the taps were found.
        UsageError: `stickiness` or `margin` is negative or not finite.
    """
    check_bonus(stickiness, margin)
    found = correlations(spec, reference, other, batches)
    return match_correlations(spec, found, stickiness=stickiness, margin=margin)


def correlations(spec: PermutationSpec, reference: nn.Module, other: nn.Module, batches: Iterable[Any]) -> Correlations:
    """Run both models on a probe and sum up how their units go together; arguments and errors of `match_activations`.

    The sums of several probes are added by `Correlations.combine` and solved by `match_correlations`.
    """
    for role, model in (("reference", reference), ("other", other)):
        try:
            spec.check_state(model.state_dict())
        except SchemaError as error:
            raise SchemaError(f"the {role} model is not of the spec's architecture: {error}") from error
    taps = {  # (group, part) -> its taps; a tap's place in the list is its row in the sums
        (group.name, part): [tap for tap in group.taps if tap.place.part == part]
        for group in spec.groups
        for part in sorted({tap.place.part for tap in group.taps})
    }
    sums = {
        (name, part): PairSums.empty(spec.by_name[name].num_units(part), len(own)) for (name, part), own in taps.items()
    }
    with evaluating(reference, other):
        for batch in batches:
            ours: dict[tuple[str, Tap], Tensor] = {}

            def keep(group: str, tap: Tap, rows: Tensor, ours: dict[tuple[str, Tap], Tensor] = ours) -> None:
                ours[group, tap] = rows

            def pair(group: str, tap: Tap, rows: Tensor, ours: dict[tuple[str, Tap], Tensor] = ours) -> None:
                key = group, tap.place.part
                sums[key].add(taps[key].index(tap), ours.pop((group, tap)), rows)

            read_taps(spec, reference, batch, keep)
            read_taps(spec, other, batch, pair)
    if sums and not any(own.counts.any() for own in sums.values()):
        raise AlignmentError("the probe is empty: activation matching needs at least one batch with a sample")
    return Correlations(spec.fingerprint, sums)


def match_correlations(
    spec: PermutationSpec, correlations: Correlations, *, stickiness: float = 0.0, margin: float = 0.0
) -> Matching:
    """The matching that follows from correlations; arguments and answer of `match_activations`.

    Raises:
        AlignmentError: the correlations are those of another spec.
        UsageError: `stickiness` or `margin` is negative or not finite.
    """
    check_bonus(stickiness, margin)
    if correlations.fingerprint != spec.fingerprint:
        raise AlignmentError("these correlations were counted by another spec: their units are not the spec's")
    perms, matches = spec.identity(), []
    before = after = 0.0
    for group in spec.groups:
        sums = correlations.of(group)
        similarities = {part: own.correlation() for part, own in sums.items()}
        perm = best_permutation(group, similarities, stickiness + _TIE, margin=margin)
        here = perms[group.name]
        kept, gained = (total_similarity(group, similarities, some) for some in (here, perm))
        constant, num_compared = _evidence(group, sums)
        alike = unit_similarity(group, similarities, perm)
        moved = float((perm != here).double().mean())
        matches.append(
            GroupMatch(group.name, group.size, moved, kept / num_compared, gained / num_compared, constant, alike)
        )
        perms[group.name] = perm
        before, after = before + kept, after + gained
    return Matching(perms, tuple(matches), before, after)


def _evidence(group: Group, sums: dict[int, PairSums]) -> tuple[int, int]:
    """Units of which nothing is known; and how many pairs, of units or of blocks, have a correlation at best.

    What is dead in both models is dead once, wherever it stands: so the worse of the two counts.
    """
    dead = {part: int((~own.live()).sum(dim=1).max()) for part, own in sums.items()}
    num_compared = sum(group.num_units(part) - count for part, count in dead.items())
    constant = sum(
        dead.get(part, group.num_units(part)) for part in (range(len(group.parts)) if group.parts else (BLOCKS,))
    )
    num_read = sum(group.num_units(part) for part in sums)
    if 2 * num_compared < num_read:
        logger.warning(
            "%d of the %d units of group %s are constant (or not finite) on the probe and stay where they are",
            num_read - num_compared, num_read, group.name,
        )  # fmt: skip
    return constant, max(1, num_compared)
