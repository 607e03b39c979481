"""Batch-norm statistics of a neighbourhood: the law of total variance, what distance does, and who is asked."""

from __future__ import annotations

import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from dimat.agent.build import build_agent
from dimat.agent.state import Agent
from dimat.agent.statistics import (
    KIND,
    REACH,
    load_statistics,
    mixture,
    share_statistics,
    statistics_of,
    worth,
)
from dimat.agent.status import PhaseClock
from dimat.calibrate import recalibrate
from dimat.config import load_config
from dimat.statedict import load_into
from dimat.transport.memory import MemoryHub, MemoryTransport

SAME = torch.ones(4)


def told(mean: list[float], variance: list[float], sketch: torch.Tensor = SAME) -> dict[str, torch.Tensor]:
    return {"n.running_mean": torch.tensor(mean), "n.running_var": torch.tensor(variance), "sketch": sketch}


@given(st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=20), min_size=2, max_size=5))
def test_the_mixture_of_equal_models_has_the_statistics_of_all_samples(samples: list[list[float]]) -> None:
    """The oracle: mean and variance over all samples at once; weights are the shares of samples."""
    everything = np.concatenate([np.array(own) for own in samples])
    weights = {agent: len(own) / len(everything) for agent, own in enumerate(samples)}
    measured = {agent: told([float(np.mean(own))], [float(np.var(own))]) for agent, own in enumerate(samples)}
    others = {agent: measured[agent] for agent in measured if agent != 1}
    mixed = mixture(1, measured[1], others, weights)
    assert mixed["n.running_mean"].item() == pytest.approx(everything.mean(), abs=1e-4)
    assert mixed["n.running_var"].item() == pytest.approx(everything.var(), abs=1e-3)


def test_statistics_of_a_model_far_off_count_little_and_the_rest_is_ones_own() -> None:
    away = SAME * (1 + REACH)  # relative distance REACH: half
    mixed = mixture(0, told([0.0], [1.0]), {1: told([1.0], [1.0], away)}, {0: 0.5, 1: 0.5})
    assert mixed["n.running_mean"].item() == pytest.approx(0.25)
    assert mixed["n.running_var"].item() == pytest.approx(1 + 0.25 * 0.75)
    assert worth(SAME, SAME) == 1.0
    assert worth(SAME, SAME * 11) == pytest.approx(1e-4, rel=0.01)
    assert worth(torch.zeros(4), SAME) == 0.0


def test_who_did_not_answer_leaves_its_weight_to_self() -> None:
    mixed = mixture(0, told([0.0], [1.0]), {1: told([3.0], [1.0])}, {0: 0.2, 1: 0.3, 2: 0.5})
    assert mixed["n.running_mean"].item() == pytest.approx(0.9)


def test_the_sketch_tells_the_distance_of_two_models() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(200, 100), nn.BatchNorm1d(100))
    two = nn.Sequential(nn.Linear(200, 100), nn.BatchNorm1d(100))
    exact = math.dist(
        torch.cat([p.flatten() for p in one.parameters()]).tolist(),
        torch.cat([p.flatten() for p in two.parameters()]).tolist(),
    )
    sketches = [statistics_of(model, seed=7)["sketch"].double() for model in (one, two)]
    assert float((sketches[0] - sketches[1]).norm()) == pytest.approx(exact, rel=0.1)


def test_statistics_go_back_by_name() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    measured = statistics_of(model, seed=0)
    assert sorted(measured) == ["0.running_mean", "0.running_var", "sketch"]
    load_statistics(model, {"0.running_mean": torch.tensor([1.0, 2.0]), "0.running_var": torch.tensor([3.0, 4.0])})
    assert model[0].running_mean.tolist() == [1.0, 2.0]
    assert model[0].running_var.tolist() == [3.0, 4.0]


# ------------------------------------------------------------------------------------------------- over a transport

SETTINGS = ["task.model=cnn", "agents=3", "topology.graph=complete", "task.partition.scheme=classes", "init=same"]


def agents(*settings: str) -> list[Agent]:
    config, hub = load_config(None, [*SETTINGS, *settings]), MemoryHub()
    made = [
        build_agent(config, n, Path("unused"), f"s{n}", lambda schema, n=n: MemoryTransport(n, "s", schema, hub))
        for n in range(3)
    ]
    for one in made:
        one.transport.start()
    return made


def share(made: list[Agent], present: tuple[int, ...] = (0, 1, 2)) -> dict[int, dict[int, int]]:
    """One exchange after a merge on the complete graph; who is not `present` publishes nothing."""
    weights = dict.fromkeys(range(3), 1 / 3)
    steps = {n: share_statistics(made[n], 1, weights, PhaseClock(made[n].status)) for n in present}
    waits = {n: next(step) for n, step in steps.items()}
    assert all((wait.what, wait.kind, wait.round) == ("published", KIND, 1) for wait in waits.values())
    num_bytes = {}
    for n, step in steps.items():
        with pytest.raises(StopIteration) as end:
            step.send(made[n].transport.ready(waits[n]))  # type: ignore[attr-defined]
        num_bytes[n] = end.value.value
    return num_bytes


def test_agents_with_one_model_take_the_statistics_of_all_their_samples() -> None:
    """The oracle: the model recalibrated on everybody's samples in one place; no agent saw the others'."""
    made = agents()
    central = build_agent(made[0].config, 0, Path("unused"), "s", lambda schema: made[0].transport).model
    load_into(central, made[0].model.state_dict())
    for one in made:
        recalibrate(one.model, one.own_samples)
    own = made[0].model.state_dict()["norm1.running_mean"].clone()
    # Each agent's samples are one batch here, as the mixture counts agents and not samples.
    batches = [(torch.cat([batch[0] for batch in one.own_samples])[:128],) for one in made]
    for one, batch in zip(made, batches, strict=True):
        one.own_samples = [batch]
        recalibrate(one.model, one.own_samples)
    num_bytes = share(made)
    recalibrate(central, [(torch.cat([batch[0] for batch in batches]),)])
    for one in made:
        first = one.model.state_dict()["norm1.running_mean"]
        torch.testing.assert_close(first, central.state_dict()["norm1.running_mean"], rtol=1e-3, atol=1e-4)
        spread = one.model.state_dict()["norm1.running_var"]
        torch.testing.assert_close(spread, central.state_dict()["norm1.running_var"], rtol=0.02, atol=1e-3)
    assert not torch.allclose(own, made[0].model.state_dict()["norm1.running_mean"], atol=1e-3)
    assert num_bytes[0].keys() == {1, 2}
    assert max(num_bytes[0].values()) < 8192, "a few kilobytes, whatever the model"


def test_one_that_does_not_come_costs_its_share_alone() -> None:
    made = agents()
    for one in made:
        recalibrate(one.model, one.own_samples)
    before = [one.model.state_dict()["norm1.running_mean"].clone() for one in made]
    assert share(made, present=(0, 1))[0].keys() == {1}
    found = made[0].model.state_dict()["norm1.running_mean"]
    expected = (2 * before[0] + before[1]) / 3
    torch.testing.assert_close(found, expected)


def test_statistics_that_are_not_finite_are_not_taken() -> None:
    made = agents()
    for name, buffer in made[1].model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(math.nan)
    assert share(made)[0].keys() == {2}
    assert torch.isfinite(statistics_of(made[0].model, 0)["norm1.running_var"]).all()


def test_who_distrusts_models_distrusts_statistics() -> None:
    assert agents()[0].shares_statistics
    assert not agents("merge.method=median")[0].shares_statistics
    assert not agents("merge.calibrate=batchnorm")[0].shares_statistics
    assert not agents("task.model=mlp")[0].shares_statistics


def test_numbers_too_large_to_mix_are_not_taken() -> None:
    made = agents()
    for name, buffer in made[1].model.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(3e38)
    share(made)
    assert torch.isfinite(made[0].model.state_dict()["norm1.running_var"]).all()
    assert float(made[0].model.state_dict()["norm1.running_mean"].abs().max()) < 1e3
