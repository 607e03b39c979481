"""One round of one agent, from local training to the report. Everything dimat does happens here or is called from here.

train     local epochs on the agent's own data (with `exchange.overlap` the neighbours' newest travel meanwhile)
publish   freeze a snapshot; neighbours may fetch it from now on
wait      until the neighbours have published, or the deadline
gather    fetch the neighbours' snapshots of this round at the same time (`async`: their newest, without a wait)
align     bring the neighbours into my basis, where the policy asks for it
check     leave out whose model lies too far off, where `merge.checks` ask for it
fold      me and the neighbours who answered, weighted by my row of W
calibrate batch-norm statistics, or those of all channels, on my own samples (and then on the neighbours', by them)
gate      take less of a merge that makes me worse on my own samples, where `merge.gate` asks for it
report    numbers and sketches, never weights
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from dimat.agent.ahead import no_transfer_left
from dimat.agent.algorithms.rounds import run_steps
from dimat.agent.basis import Alignment, agree_on_basis, align_neighbours, has_to_agree, shares_moved
from dimat.agent.checks import screen
from dimat.agent.gate import hold_back
from dimat.agent.gather import gather
from dimat.agent.host import evaluate, train
from dimat.agent.nearby import nearby_row
from dimat.agent.newest import fetch_ahead, gather_newest
from dimat.agent.start import adopt_root
from dimat.agent.state import Agent
from dimat.agent.statistics import share_statistics
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.agent.sweeps import forget_sums, sweep_basis
from dimat.agent.train import make_optimizer
from dimat.calibrate import recalibrate, repair
from dimat.merge import fold_models
from dimat.messages import Report
from dimat.snapshot.encode import decode
from dimat.snapshot.sketch import sketch
from dimat.statedict import StateDict, load_into, parameters_of
from dimat.transport.base import HISTORY


def run_round(agent: Agent, number: int) -> Steps[Report]:
    """Train, exchange and merge once; yields each thing it waits for and returns the numbers of the round."""
    if agent.algorithm is not None:  # one that exchanges while it trains
        return (yield from run_steps(agent, number))
    with no_transfer_left(agent):
        return (yield from merge_round(agent, number))


def merge_round(agent: Agent, number: int) -> Steps[Report]:
    """A round of `algorithm: merge`: train first, then exchange and merge."""
    config, clock = agent.config, PhaseClock(agent.status)
    agent.status.round = number
    if agent.basis_round == number - HISTORY:  # whoever reads this agent has read what it published in that round
        forget_sums(agent)

    num_bytes: Counter[int] = Counter()
    if agent.basis in ("adopt", "restart") and not agent.basis_settled:
        num_bytes.update((yield from adopt_root(agent, clock)).bytes_received)

    with clock("train"):
        fetch_ahead(agent, number)
        loss = yield from train(agent, number)
    with clock("evaluate"):
        before = yield from evaluate(agent)
    if not agent.merges(number):
        return _report(agent, number, clock, loss, before, bytes_received=dict(num_bytes))

    found, doubtful = Alignment(), False
    if agent.basis == "agree" and has_to_agree(agent, number):
        agreed = yield from agree_on_basis(agent, number, clock)
        agreed = yield from sweep_basis(agent, number, agreed, clock)
        found = Alignment(shares_moved(agreed.perms), agreed.skipped)
        num_bytes.update(agreed.bytes_received)
        doubtful = agreed.doubtful

    with clock("publish"):
        mine = decode(agent.publish("snapshot", number))
    with clock("sketch"):
        sketch_before = sketch(parameters_of(agent.model), seed=config.seed)

    row = nearby_row(agent, number) if doubtful else agent.row(number)
    exchange = gather if config.exchange.mode == "sync" else gather_newest
    gathered = yield from exchange(agent, number, row, clock)

    with clock("align"):
        states = gathered.states
        if config.merge.basis == "each_round" and config.merge.align != "none":
            states, found = align_neighbours(agent, states)
    if config.merge.checks.on:
        with clock("check"):
            gathered = screen(agent, mine, states, gathered)
            states = gathered.states
    weights, share = gathered.weights, 1.0
    with clock("fold"):
        merged = fold_neighbourhood(agent, mine, states, weights)
        load_into(agent.model, merged)
        if config.merge.gate.margin is None:
            merged = {}  # a whole model, which nobody asks for any more
    calibrate = partial(calibrate_merged, agent, mine, states)
    with clock("calibrate"):
        calibrate(weights)
    if config.merge.gate.margin is not None:
        with clock("gate"):
            share, weights = hold_back(agent, mine, merged, weights, calibrate)
    num_bytes.update(gathered.bytes_received)
    if agent.shares_statistics:
        num_bytes.update((yield from share_statistics(agent, number, weights, clock)))
    if config.merge.optimizer_state == "reset" and share > 0:
        agent.optimizer = make_optimizer(config.train, agent.model)
    agent.remember_base()
    with clock("evaluate"):
        after = yield from evaluate(agent)
    with clock("sketch"):
        sketch_after = sketch(parameters_of(agent.model), seed=config.seed)

    return _report(
        agent, number, clock, loss, before, after, share=share, skipped=found.skipped,
        weights=weights, bytes_received=dict(num_bytes), missing=gathered.missing,
        moved=found.moved, sketch_before=sketch_before, sketch_after=sketch_after, hidden_s=gathered.hidden_s,
    )  # fmt: skip


def fold_neighbourhood(
    agent: Agent, mine: StateDict, others: Mapping[int, StateDict], weights: Mapping[int, float]
) -> dict[str, torch.Tensor]:
    """Fold this agent and its neighbours by the run's method, sorted by agent id.

    Float addition is not associative, and some methods depend on the order. A method with a base gets this agent's own.
    """
    models = {agent.id: mine, **others}
    order = sorted(models)
    base = mine if agent.method.own_base else agent.base
    merged = fold_models(agent.method, [models[peer] for peer in order], [weights[peer] for peer in order], base)
    # Counters (num_batches_tracked) are each agent's own: they tell how long it trained, not what it learnt.
    return {name: tensor if tensor.is_floating_point() else mine[name] for name, tensor in merged.items()}


def calibrate_merged(
    agent: Agent, mine: StateDict, others: Mapping[int, StateDict], weights: Mapping[int, float]
) -> None:
    """Put right, on own samples, what folding has done to the statistics of the agent's model."""
    if agent.config.merge.calibrate in ("batchnorm", "neighbourhood"):
        recalibrate(agent.model, agent.own_samples, max_samples=agent.config.merge.calibrate_samples)
    elif agent.config.merge.calibrate == "repair":
        repair_merged(agent, mine, others, weights)


def repair_merged(agent: Agent, mine: StateDict, others: Mapping[int, StateDict], weights: Mapping[int, float]) -> None:
    """Give the merged model the channel statistics of those it was folded from; they run one by one in the spare."""
    models = {agent.id: mine, **others}
    order = sorted(models)

    def endpoints() -> Iterator[torch.nn.Module]:
        assert agent.spare is not None
        for peer in order:
            load_into(agent.spare, models[peer])
            yield agent.spare

    shares = [weights[peer] for peer in order]
    limit = agent.config.merge.calibrate_samples
    repair(agent.model, endpoints(), agent.own_samples, shares, max_samples=limit)


def _report(
    agent: Agent,
    number: int,
    clock: PhaseClock,
    loss: float,
    before: Mapping[str, float],
    after: Mapping[str, float] | None = None,
    *,
    share: float = 1.0,
    hidden_s: float = 0.0,
    skipped: float | None = None,
    **exchange: Any,
) -> Report:
    after = before if after is None else after
    metrics = {
        "loss": loss,
        "lr": float(agent.optimizer.param_groups[0]["lr"]),
        "accuracy_before": before["accuracy"],
        "loss_before": before["loss"],
        "accuracy": after["accuracy"],
        "loss_after": after["loss"],
    }
    if "weights" in exchange and agent.config.merge.gate.margin is not None:
        metrics["gate"] = share
    if "weights" in exchange and agent.config.exchange.overlap:
        metrics["hidden_s"] = hidden_s
    if skipped is not None:
        metrics["matchings_skipped"] = skipped
    report = Report(
        agent=agent.id, session=agent.session, round=number, metrics=metrics, seconds=clock.seconds, **exchange
    )
    if "weights" in exchange and (agent.config.merge.checks.on or report.refused):
        metrics["refused"] = float(len(report.refused))
    return report
