"""How many steps a round has, and that nobody runs away from those who read it."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from least_squares import config_of, held, reports

from dimat.agent.algorithms.exchange import let_all_read
from dimat.agent.algorithms.rounds import NUM_STEPS, endless, steps_a_round
from dimat.agent.deadline import Limits, Past
from dimat.agent.status import Status
from dimat.agent.waiting import remember
from dimat.config import load_config
from dimat.coordinator.options import Options
from dimat.errors import ConfigError, TaskError
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.transport.base import Wait

RING = """
from networkx import DiGraph

def one_way(n, *, round=0, seed=0):
    return DiGraph([(j, (j + 1) % n) for j in range(n)])
"""


def agent(*settings: str, shard: int = 0, remembered: int | None = None) -> Any:
    config = load_config(None, ["algorithm=dsgd", "train.epochs=2", "train.batch_size=32", *settings])
    state = {} if remembered is None else {NUM_STEPS: torch.tensor(remembered)}
    return SimpleNamespace(config=config, remembered=state, largest_shard=shard)


def test_a_round_is_as_long_as_the_largest_shard_needs() -> None:
    assert steps_a_round(agent(shard=320)) == 20
    assert steps_a_round(agent(shard=321)) == 22
    assert steps_a_round(agent("algorithm.steps=7", shard=321)) == 7


def test_who_comes_back_counts_as_it_did_whatever_it_hears() -> None:
    assert steps_a_round(agent(shard=64, remembered=22)) == 22


def test_a_task_that_does_not_tell_its_size_needs_a_number() -> None:
    with pytest.raises(ConfigError, match="does not tell how many samples"):
        steps_a_round(agent())


def test_an_empty_loader_does_not_go_on_for_ever() -> None:
    with pytest.raises(TaskError, match="no batch"):
        next(endless([]))
    batches = endless([1, 2])
    assert [next(batches) for _ in range(5)] == [1, 2, 1, 2, 1]


def test_one_that_is_read_by_a_slow_agent_waits_for_it(tmp_path: Path) -> None:
    """On a one-way ring the source of the slow one hears of it only the long way round, and two exchanges are kept."""
    (tmp_path / "graph.py").write_text(RING)
    settings = ["algorithm=sgp", f"topology.graph={tmp_path / 'graph.py'}:one_way", "algorithm.steps=6", "rounds=2"]
    ends = []
    for pace in ({}, {1: 7}):
        config = config_of(*settings)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        simulate(config, prepare(config, tmp_path / "run"), pace=pace)
        assert not any(report.missing for report in reports(tmp_path / "run").values())
        ends.append([(tmp_path / f"run/checkpoints/{a}/2.safetensors").read_bytes() for a in range(4)])
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "settings", [["algorithm=dsgd"], ["algorithm=cga"], ["algorithm=sgp", "topology.graph=exponential"]]
)
def test_a_final_average_of_all_comes_after_the_last_step(settings: list[str], tmp_path: Path) -> None:
    ends = []
    for final in ("none", "complete"):
        config = config_of(*settings, "train.momentum=0", "rounds=2", "algorithm.steps=3", f"merge.final={final}")
        simulate(config, prepare(config, tmp_path / final))
        ends.append(held(tmp_path / final, config)[1])
        told = reports(tmp_path / final)
        assert not any(report.missing for report in told.values())
    np.testing.assert_allclose(ends[1], np.tile(ends[0].mean(axis=0), (4, 1)), atol=1e-12)
    assert np.ptp(ends[0], axis=0).max() > 1e-3
    assert all(set(told[agent, 2].weights) == {0, 1, 2, 3} for agent in range(4))
    before = np.stack([np.frombuffer(told[agent, 2].sketch_before, "<f4") for agent in range(4)])
    assert np.ptp(before, axis=0).max() > 1e-3, "before is before the average"


def test_at_the_end_what_is_owed_is_served_until_it_was_read() -> None:
    owed = {"step": {8: (1, 2), 9: (1,)}, "gradient:3": {10: (3,)}}
    done: Any = SimpleNamespace(owed=owed, limits=Limits(ceiling_s=12.0))
    assert list(let_all_read(done)) == [
        Wait("acknowledged", (3,), "gradient:3", 10, 12.0),
        Wait("acknowledged", (1, 2), "step", 8, 12.0),
        Wait("acknowledged", (1,), "step", 9, 12.0),
    ]
    assert not any(owed.values())


def test_no_contraction_is_predicted_where_a_step_descends_and_mixes_in_one() -> None:
    assert Options.of(load_config(None), diameter=2).linear
    assert not Options.of(load_config(None, ["algorithm=dsgd"]), diameter=2).linear


def test_on_a_virtual_clock_steps_and_exchanges_last_as_long_as_the_config_says(tmp_path: Path) -> None:
    """Four steps of six samples at 0.1 s, and as many exchanges of a second each, one after the other; cga finds one
    gradient for itself and one for each of two neighbours, and then fetches a second time."""
    clock = ["simulation.compute_s_per_sample=0.1", "simulation.latency_s=1", "algorithm.steps=4", "rounds=1"]
    for name, train_s, gather_s in (("dsgd", 4 * 0.6, 4.0), ("cga", 3 * 4 * 0.6, 8.0)):
        config = config_of(f"algorithm={name}", *clock)
        simulate(config, prepare(config, tmp_path / name))
        for report in reports(tmp_path / name).values():
            assert report.seconds["train"] == pytest.approx(train_s)
            assert report.seconds["gather"] == pytest.approx(gather_s)
        plain = config_of(f"algorithm={name}", *clock[2:])
        simulate(plain, prepare(plain, tmp_path / f"{name}-plain"))
        ends = [(tmp_path / run / "checkpoints/2/1.safetensors").read_bytes() for run in (name, f"{name}-plain")]
        assert ends[0] == ends[1], "time changes nothing else"


def test_the_log_tells_the_round_and_the_exchange(caplog: pytest.LogCaptureFixture) -> None:
    late: Any = SimpleNamespace(id=0, algorithm=object(), status=Status(round=3), past=Past())
    remember(late, Wait("published", (1,), "step", 17, 0.5), frozenset(), {}, 0.6)
    assert caplog.messages == ["agent 0: round 3: step 17: agent 1 has not published it by its deadline of 0.5 s"]
    assert late.past.expiries == {("published", 1): 1}, "and the next deadline for it is shorter"
