"""The agreed basis, made better: each agent matches its weights once more to the sum of all others'.

Down the tree (`dimat.agent.basis`) an agent is matched to its parent alone, and what lies between two leaves is a chain
of such matchings. MergeMany of Git Re-Basin matches one model after the other to the sum of the rest, which raises

    || sum_v P_v x_v ||^2        over the permutations P_v of all agents v

until it rises no more. Here the sum T comes along the same tree (`dimat.agent.treesum`), and in each half of a sweep
every second agent moves:

    x_v <- P x_v        P = argmax <T - x_v, P x_v>, from where it is

All at once would match each to where the others have been a moment ago, which is worse and may go back and forth; one
after the other, as MergeMany does, takes as many steps as there are agents. The root stays: the basis is its. A half
sweep costs two models for every agent but the root, once in a run.

What has been won shows in the mean of all models, T / n: every agent takes its loss on own training samples, with batch
norm measured there, at the first sum and at the last but one. The losses come up with the last sum, and down comes
whether they have clearly fallen. If not, all go back to where the tree had put them: on a ResNet, whose weights say
little about its units, matching by weights undoes what activations have found; who then merges with whom is told in
`dimat.agent.nearby`. A single sweep has no sum in between and is taken as it is.

A sum is as good as the worst in it: where the merge itself bounds what one agent can do (`merge.method` median and its
like, `merge.checks`), there are no sweeps.

What it is worth is told in docs/notes.md. Source: Ainsworth, Hayase, Srinivasa, «Git Re-Basin», arXiv 2209.04836,
algorithm 3; `dimat.align.match_many` is the same in one place. Going back by the loss is dimat's own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from dimat.agent.basis import Agreement, permute_agent
from dimat.agent.gate import labelled_batches, probe_loss
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.agent.tree import place_of
from dimat.agent.treesum import kinds, sum_of_all
from dimat.align import weight_matching
from dimat.calibrate import recalibrate
from dimat.errors import AlignmentError
from dimat.statedict import StateDict, load_into
from dimat.tasks import PROBE_LIMIT

Perms = Mapping[str, Tensor]

STAY = 1e-6
"""Stickiness, in units of the cosine of two units: the search begins where the agent is."""

log = logging.getLogger(__name__)


def sweep_basis(agent: Agent, number: int, agreed: Agreement, clock: PhaseClock) -> Steps[Agreement]:
    """`merge.sweeps` sweeps after the agreement of round `number`; returns that with what they moved and received.

    Where somebody's model is missing in a sum nobody who hears of it moves any more: the basis stays as the halves
    before have left it.
    """
    if not sweeps_in(agent, number):
        return agreed
    assert agent.spec is not None
    place, last = place_of(agent, number), 2 * agent.config.merge.sweeps - 1
    swept: Perms = agent.spec.identity()
    losses: list[float] = []
    for half in range(last + 1):
        for kind in kinds(half - 2):  # whoever has sent its part of the half before has read these
            agent.transport.forget(kind)
        judged = last > 1 and half == last
        everybody = yield from sum_of_all(
            agent, place, number, half, losses if judged else [], agreed.bytes_received, clock
        )
        if everybody.num_models != len(place.members):
            log.info("agent %d: round %d: the basis stays as it is: a model is missing", agent.id, number)
            break
        with clock("align"):
            if judged and not everybody.fallen:
                log.info("agent %d: round %d: the sweeps have not helped and are taken back", agent.id, number)
                permute_agent(agent, agent.spec.invert(swept))
                agreed.doubtful = True
                return agreed
            if last > 1 and half in (0, last - 1):
                losses.append(loss_of_mean(agent, everybody.total, everybody.num_models))
            if place.parent is not None and place.turn % 2 == half % 2:
                swept = _move(agent, everybody.total, swept)
    if place.parent is not None:  # the root has nothing to tell: it stays
        agreed.perms = agent.spec.compose(agreed.perms, swept)
    return agreed


def sweeps_in(agent: Agent, number: int) -> bool:
    """Whether there are sweeps after an agreement in round `number`; all agents of the tree say the same."""
    merge = agent.config.merge
    return (
        merge.sweeps > 0
        and agent.config.exchange.mode == "sync"  # else nobody is waited for
        and agent.method.memory == "constant"
        and not merge.checks.on
        and len(place_of(agent, number).members) > 2  # two have been matched to each other
    )


def forget_sums(agent: Agent) -> None:
    """Free the memory of what the last halves have published: when all readers are past them."""
    num_halves = 2 * agent.config.merge.sweeps
    for half in (num_halves - 2, num_halves - 1):
        for kind in kinds(half):
            agent.transport.forget(kind)


def loss_of_mean(agent: Agent, total: StateDict, num_models: int) -> float:
    """The loss on own training samples of the mean of all models, its batch norm measured on own samples."""
    assert agent.spare is not None
    mine = agent.model.state_dict()
    mean = {name: total[name] / num_models if own.is_floating_point() else own for name, own in mine.items()}
    load_into(agent.spare, mean)
    recalibrate(agent.spare, agent.own_samples, max_samples=PROBE_LIMIT)
    return probe_loss(agent.task, agent.spare, labelled_batches(agent.loader, PROBE_LIMIT))


def _move(agent: Agent, total: StateDict, so_far: Perms) -> Perms:
    """Match the agent to the sum of all others and permute it; returns how it has moved in all."""
    assert agent.spec is not None
    mine = agent.model.state_dict()
    others = {name: total[name] - own if own.is_floating_point() else own for name, own in mine.items()}
    try:
        perms = weight_matching(agent.spec, others, mine, seed=agent.config.seed, stickiness=STAY)
    except AlignmentError as error:  # finite numbers may be too large for their products
        log.warning("agent %d stays in its basis: %s", agent.id, error)
        return so_far
    permute_agent(agent, perms)
    return agent.spec.compose(so_far, perms)
