"""The checks of what a task does with data: the shards, the probe, the histogram."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dimat.tasks import base
from dimat.tasks.findings import (
    MAX_BATCHES,
    Finding,
    Trial,
    epoch_of,
    generator_state,
    ok,
    problem,
    row_list,
    rows,
    same,
    warning,
)


def check_data(trial: Trial) -> Iterator[Finding]:
    """The loader can be iterated again and again, and repeats for the same agent and seed."""
    _, loader = trial.shard(0)
    if iter(loader) is loader:
        yield problem(
            "data",
            "data() returned an iterator, which is used up after one epoch",
            "return an object whose __iter__ starts a new epoch, such as dimat.tasks.TensorLoader or a DataLoader",
        )
        return
    first, second = epoch_of(loader), epoch_of(loader)
    if not first or not second:
        which = "first" if not first else "second"
        yield problem("data", f"the {which} epoch of agent 0 has no batch", "every agent needs samples in every epoch")
        return
    _, other = trial.shard(0)
    if not same(first, epoch_of(other)):
        yield problem(
            "data",
            "the same agent and seed give different batches: runs would not repeat",
            "seed the partition and the shuffling by seed and agent alone",
        )
        return
    yield ok("data", f"{len(first)} batches an epoch, the same for the same seed, iterable again and again")
    if len(first) > 1 and same(first, second):
        yield warning("data", "both epochs have the same batches in the same order", "reshuffle in each epoch")
    elif len(first) > 1 and not isinstance(getattr(loader, "generator", None), torch.Generator):
        yield warning(
            "data",
            "the loader shuffles, but has no attribute `generator`: a continued run cannot take up its order",
            "shuffle with a torch.Generator seeded by seed and agent, held as loader.generator",
        )


def check_shards(trial: Trial) -> Iterator[Finding]:
    """Agents have samples, and different ones."""
    if trial.num_agents < 2:
        return
    mine, theirs = rows(epoch_of(trial.shard(0)[1])), rows(epoch_of(trial.shard(1)[1]))
    shared = len(mine & theirs) / max(1, min(len(mine), len(theirs)))
    last = trial.num_agents - 1
    if not epoch_of(trial.shard(last)[1]):
        yield problem("shards", f"agent {last} has no batch", "every agent needs samples")
    elif mine == theirs:
        yield warning(
            "shards", "agents 0 and 1 have the same samples", "choose the samples by `agent` and `num_agents`"
        )
    elif shared > 0.2:
        yield warning("shards", f"agents 0 and 1 share {shared:.0%} of their samples", "deal every sample to one agent")
    else:
        yield ok("shards", f"agents 0 to {last} have samples, agents 0 and 1 different ones")


def check_probe(trial: Trial) -> Iterator[Finding]:
    """At most 512 samples of the agent's own, without drawing random numbers."""
    task, loader = trial.shard(0)
    epoch = epoch_of(loader)
    random_state = torch.get_rng_state()
    own_state = generator_state(loader)
    batches = [base.model_inputs(batch) for batch in task.probe()]
    size = sum(base.batch_size(batch) for batch in batches)
    if not batches or not size:
        yield problem("probe", "probe() returned no samples", "return a list with at least one input batch")
        return
    if size > base.PROBE_LIMIT:
        cure = "take a fixed part of the shard"
        yield problem("probe", f"probe() has {size} samples, expected at most {base.PROBE_LIMIT}", cure)
        return
    if not torch.equal(random_state, torch.get_rng_state()) or own_state != generator_state(loader):
        cure = "choose the samples without a generator, or with one of their own made in probe()"
        yield problem("probe", "probe() draws random numbers, which would shift the training", cure)
        return
    if not same(batches, [base.model_inputs(batch) for batch in task.probe()]):
        yield problem("probe", "probe() differs from call to call", "return the same samples, not augmented")
        return
    own = rows(epoch)
    foreign = sum(row not in own for row in row_list(batches)) / size if len(epoch) < MAX_BATCHES else 0.0
    if foreign:
        yield warning(
            "probe",
            f"{foreign:.0%} of the probe's samples are not in an epoch of agent 0",
            "take them from the agent's own shard (if training data is augmented, this is as it should be)",
        )
    else:
        yield ok("probe", f"{size} samples of the agent's own shard, the same on every call")


def check_probe_inputs(trial: Trial) -> Iterator[Finding]:
    """The model takes the batches of the probe."""
    task, _ = trial.shard(0)
    model = trial.seeded_model(task, trial.seed).eval()
    with torch.no_grad():
        for batch in base.probe_batches(task):
            try:
                model(*batch)
            except Exception as error:
                yield problem(
                    "probe",
                    f"the model does not take the probe's batches: {type(error).__name__}: {error}",
                    "a batch is an input tensor, or a tuple of the model's arguments; labels are no part of it",
                )
                return
    yield ok("probe", "the model takes each of its batches")


def check_optional(trial: Trial) -> Iterator[Finding]:
    """`labels` and `shared_probe`, where the task has them."""
    task, _ = trial.shard(0)
    if hasattr(task, "labels"):
        counts = base.label_histogram(task) or {}
        if any(count < 0 for count in counts.values()) or not sum(counts.values()):
            yield problem("labels", f"labels() returned {counts}", "count the samples of each class")
        else:
            yield ok("labels", f"{sum(counts.values())} samples in {len(counts)} classes")
    if hasattr(task, "shared_probe"):
        size = sum(base.batch_size(batch) for batch in base.probe_batches(task, "shared"))
        yield ok("shared_probe", f"{size} samples")
