"""The gate: what it takes of a merge, and all that it leaves alone."""

import copy
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.agent.build import build_agent
from dimat.agent.gate import SHARES, choose_share, hold_back, labelled_batches, passes, probe_loss, row_taken, towards
from dimat.agent.randomness import capture
from dimat.agent.state import Agent
from dimat.config import load_config
from dimat.statedict import copy_of, load_into
from dimat.transport.base import Transport


def make(*more: str) -> Agent:
    config = load_config(
        None,
        [
            "agents=10",
            "merge.gate.margin=0.2",
            "merge.align=none",
            "task.model.name=cnn",
            "task.model.width=0.1",
            *more,
        ],
    )
    return build_agent(config, 0, Path(), "s", lambda schema: cast("Transport", None))


@settings(max_examples=200, deadline=None)
@given(
    losses=st.lists(st.floats(allow_infinity=True), min_size=4, max_size=4),
    own=st.floats(0, 10),
    margin=st.floats(0, 3),
)
def test_the_first_share_that_passes_is_taken_and_no_other_is_tried(
    losses: list[float], own: float, margin: float
) -> None:
    asked: list[float] = []

    def loss_of(share: float) -> float:
        asked.append(share)
        return losses[SHARES.index(share)]

    good = [math.isfinite(loss) and loss <= own + margin for loss in losses]
    expected = next((share for share, fine in zip(SHARES, good, strict=True) if fine), 0.0)
    assert choose_share(loss_of, own, margin) == expected
    assert asked == list(SHARES[: good.index(True) + 1 if True in good else 4])


def test_an_agent_that_has_come_to_nothing_takes_what_is_finite() -> None:
    assert passes(7.0, math.nan, 0.1) and passes(7.0, math.inf, 0.1)
    assert not passes(math.nan, math.nan, 0.1) and not passes(math.inf, math.inf, 0.1)


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=6), share=st.sampled_from([0.0, *SHARES]))
def test_the_row_taken_is_that_of_the_model_taken(weights: list[float], share: float) -> None:
    """What the gate leaves of a mean is the mean by the row that it reports."""
    row = {peer: weight / sum(weights) for peer, weight in enumerate(weights)}
    generator = torch.Generator().manual_seed(len(weights))
    models = {peer: torch.randn(5, generator=generator, dtype=torch.float64) for peer in row}
    merged = sum(weight * models[peer] for peer, weight in row.items())
    taken = row_taken(0, row, share)
    assert sum(taken.values()) == pytest.approx(1.0)
    shrunk = towards({"w": models[0]}, {"w": torch.as_tensor(merged)}, share)["w"]
    torch.testing.assert_close(shrunk, torch.as_tensor(sum(weight * models[peer] for peer, weight in taken.items())))


def test_the_probe_is_at_most_512_own_samples_with_labels_and_draws_nothing() -> None:
    agent = make("agents=2", "task.partition.scheme=iid")
    before = capture(agent.loader)
    batches = labelled_batches(agent.loader, 512)
    after = capture(agent.loader)
    assert sum(len(y) for _, y in batches) == 512
    assert [len(y) for _, y in labelled_batches(agent.loader, 40)] == [32, 8]
    for one, other in ((before.torch_stream, after.torch_stream), (before.loader_stream, after.loader_stream)):
        assert one is not None and other is not None and torch.equal(one, other)
    own = {image.numpy().tobytes() for image in agent.loader.scaling.apply(agent.loader.x)}
    assert all(image.numpy().tobytes() in own for x, _ in batches for image in x)


def test_the_probe_loss_is_that_of_the_task_over_all_samples() -> None:
    agent = make()
    agent.model.eval()
    with torch.no_grad():
        x, y = (torch.cat(parts) for parts in zip(*agent.gate_batches, strict=True))
        expected = float(torch.nn.functional.cross_entropy(agent.model(x), y))
    agent.model.train()
    assert probe_loss(agent.task, agent.model, agent.gate_batches) == pytest.approx(expected, rel=1e-5)
    assert agent.model.training


def gate(agent: Agent, merged: Mapping[str, torch.Tensor]) -> tuple[float, dict[int, float], list[dict[int, float]]]:
    mine, rows = copy_of(agent.model), []
    load_into(agent.model, merged)

    def calibrate(row: Mapping[int, float]) -> None:
        rows.append(dict(row))

    share, row = hold_back(agent, mine, merged, {0: 0.5, 1: 0.5}, calibrate)
    return share, row, rows


def test_what_passes_is_taken_whole_to_the_bit() -> None:
    agent = make()
    merged = {name: t * 1.001 if t.is_floating_point() else t for name, t in copy_of(agent.model).items()}
    assert gate(agent, merged) == (1.0, {0: 0.5, 1: 0.5}, [])
    assert all(torch.equal(tensor, merged[name]) for name, tensor in agent.model.state_dict().items())


def test_what_does_not_pass_is_halved_until_it_does() -> None:
    agent = make()
    mine = copy_of(agent.model)
    merged = {**mine, "head.bias": mine["head.bias"] + torch.tensor([6.0] + [0.0] * 9)}
    share, row, rows = gate(agent, merged)
    assert 0 < share < 1
    assert row == pytest.approx({0: 1 - share / 2, 1: share / 2})
    assert len(rows) == SHARES.index(share) and rows[-1] == row, "each smaller one was calibrated as what it is"
    torch.testing.assert_close(
        agent.model.state_dict()["head.bias"], mine["head.bias"] + share * (merged["head.bias"] - mine["head.bias"])
    )
    # An oracle in plain code: the first share of these whose loss is at most 0.2 above.
    losses = {}
    for tried in (0.0, *SHARES):
        load_into(agent.model, towards(mine, merged, tried))
        losses[tried] = probe_loss(agent.task, agent.model, agent.gate_batches)
    assert share == next(tried for tried in SHARES if losses[tried] <= losses[0.0] + 0.2)


def test_nothing_is_taken_of_nonsense_and_all_else_stays_as_it_was() -> None:
    agent = make()
    agent.task.loss(agent.model.train(), next(iter(agent.loader))).backward()
    agent.optimizer.step()
    agent.model.norm2.eval()
    mine, streams = copy_of(agent.model), capture(agent.loader)
    momentum = copy.deepcopy(agent.optimizer.state_dict())
    modes = {name: module.training for name, module in agent.model.named_modules()}
    merged = {name: torch.randn(t.shape) * 1e9 if t.is_floating_point() else t for name, t in mine.items()}
    torch.set_rng_state(streams.torch_stream)
    share, row, _ = gate(agent, merged)
    assert (share, row) == (0.0, {0: 1.0})
    assert all(torch.equal(tensor, mine[name]) for name, tensor in agent.model.state_dict().items())
    assert {name: module.training for name, module in agent.model.named_modules()} == modes
    for key, state in agent.optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], momentum["state"][key]["momentum_buffer"])
    now = capture(agent.loader)
    assert torch.equal(now.torch_stream, streams.torch_stream)
    assert np.array_equal(now.numpy_stream["state"]["key"], streams.numpy_stream["state"]["key"])
    assert now.python_stream == streams.python_stream == random.getstate()


def test_a_loss_that_draws_is_judged_on_the_same_draws() -> None:
    agent = make()
    plain = agent.task.loss

    class Drawing:
        def loss(self, model: torch.nn.Module, batch: object) -> torch.Tensor:
            return plain(model, batch) + torch.rand(())

    before = torch.get_rng_state()
    first, second = (probe_loss(Drawing(), agent.model, agent.gate_batches) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
