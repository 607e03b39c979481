"""Sweeps over the agreed basis: sums go up and down the tree, every second agent moves, what is missing is seen."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dimat.agent import sweeps
from dimat.agent.basis import Agreement, permute_agent
from dimat.agent.build import build_agent
from dimat.agent.randomness import capture
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.agent.sweeps import forget_sums, sweep_basis
from dimat.agent.treesum import _count, kinds
from dimat.align import weight_matching
from dimat.calibrate import recalibrate
from dimat.config import load_config
from dimat.coordinator import Store
from dimat.messages import Header
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.statedict import StateDict, copy_of
from dimat.transport.base import Wait
from dimat.transport.memory import MemoryHub, MemoryTransport

SETTINGS = ["task.model.name=cnn", "task.model.width=0.25", "agents=5", "topology.graph=path", "init=different"]
SETTINGS += ["merge.basis=agree"]


def agents(*settings: str, num: int = 5) -> list[Agent]:
    config, hub = load_config(None, [*SETTINGS, f"agents={num}", *settings]), MemoryHub()
    made: list[Agent] = []
    for number in range(num):
        like = made[0] if made else None
        made.append(
            build_agent(
                config, number, Path("unused"), "s", lambda sch, n=number: MemoryTransport(n, "s", sch, hub), like
            )
        )
    for one in made:
        one.transport.start()
    return made


def together(some: Sequence[Agent], dead: Sequence[int] = ()) -> tuple[list[Agreement], list[Wait]]:
    """Run the sweeps of all agents in turns, as a simulation does; a wait ends when all have come or nobody goes on."""
    running: dict[int, tuple[Steps[Agreement], Wait]] = {}
    ended: dict[int, Agreement] = {}
    waits: list[Wait] = []

    def go(one: int, steps: Steps[Agreement], answer: frozenset[int] | None) -> None:
        try:
            wait = next(steps) if answer is None else steps.send(answer)
            waits.append(wait)
            running[one] = (steps, wait)
        except StopIteration as end:
            running.pop(one, None)
            ended[one] = end.value

    def come(wait: Wait) -> frozenset[int]:
        return frozenset(p for p in wait.peers if some[p].transport._store.newest().get(wait.kind, -1) >= wait.round)

    for one in some:
        if one.id not in dead:
            go(one.id, sweep_basis(one, 1, Agreement(one.spec.identity()), PhaseClock(one.status)), None)
    while running:
        ready = [one for one, (_, wait) in running.items() if come(wait) == frozenset(wait.peers)]
        for one in ready or sorted(running)[:1]:  # nobody can go on: the first deadline strikes
            steps, wait = running[one]
            go(one, steps, come(wait))
    return [ended[one] for one in sorted(ended)], waits


def square(states: Sequence[StateDict]) -> float:
    """|| sum of the models ||^2 over matrices and kernels: MergeMany's objective without norms, which are alike."""
    names = [name for name, tensor in states[0].items() if tensor.dim() > 1]
    return sum(float(sum(state[name].double() for state in states).square().sum()) for name in names)


def unchanged(one: Agent, before: StateDict) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in copy_of(one.model).items())


def models(some: Sequence[Agent]) -> list[dict[str, torch.Tensor]]:
    return [copy_of(one.model) for one in some]


@pytest.mark.parametrize("graph", ["path", "complete", "exponential"])
def test_the_sum_of_all_models_grows_and_every_model_stays_the_same_function(graph: str) -> None:
    some = agents(f"topology.graph={graph}", "merge.sweeps=1")
    before = models(some)
    ended, _ = together(some)
    assert square(models(some)) > 1.1 * square(before)
    for one, old, agreed in zip(some, before, ended, strict=True):
        moved = one.spec.apply(old, agreed.perms)
        assert all(torch.equal(tensor, moved[name]) for name, tensor in copy_of(one.model).items())
    root = {"path": 2, "complete": 0, "exponential": 0}[graph]
    assert unchanged(some[root], before[root])


def test_permuted_copies_of_one_model_find_together() -> None:
    """Nobody need be matched to a parent first: three copies outvote the one that is out of line."""
    some = agents("init=same", "merge.sweeps=1")
    permute_agent(some[3], some[3].spec.random(3))
    together(some)
    expected = copy_of(some[0].model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in copy_of(some[3].model).items())


@pytest.mark.parametrize(("graph", "root"), [("path", 2), ("exponential", 0)])
def test_halves_move_every_second_agent_by_the_sum_of_all_others(graph: str, root: int) -> None:
    """One sweep by hand: the agents 0, 2 and 4 first, but for the root, then 1 and 3."""
    some = agents(f"topology.graph={graph}", "merge.sweeps=1")
    states = models(some)
    together(some)
    for movers in (sorted({0, 2, 4} - {root}), (1, 3)):
        total = {name: sum(state[name] for state in states) for name in states[0]}
        for mover in movers:
            own = states[mover]
            others = {n: total[n] - own[n] if own[n].is_floating_point() else own[n] for n in own}
            perms = weight_matching(some[0].spec, others, own, seed=some[0].config.seed, stickiness=1e-6)
            states[mover] = some[0].spec.apply(own, perms)
    for one, state in zip(some, states, strict=True):
        for name, tensor in copy_of(one.model).items():
            assert torch.equal(tensor, state[name]), (one.id, name)


def test_four_models_go_along_each_edge_in_a_sweep_and_are_counted() -> None:
    some = agents("merge.sweeps=1")
    ended, _ = together(some)
    size = some[0].schema.num_bytes
    # A path 0 - 1 - 2 - 3 - 4 with its root in 2: what each receives from its child and from its parent, in two halves.
    assert [dict(agreed.bytes_received) for agreed in ended] == [
        {1: 2 * size},
        {0: 2 * size, 2: 2 * size},
        {1: 2 * size, 3: 2 * size},
        {2: 2 * size, 4: 2 * size},
        {3: 2 * size},
    ]


def test_on_a_directed_graph_sums_go_up_by_other_edges_than_they_come_down() -> None:
    """0 -> 1 -> 2 -> 3 -> 4 -> 0 with its root in 0, where an arrow points to who reads."""
    some = agents(f"topology.graph={Path(__file__).parents[1] / 'one_way.py'}:ring", "merge.sweeps=1")
    before = models(some)
    ended, waits = together(some)
    assert square(models(some)) > 1.1 * square(before)
    size = some[0].schema.num_bytes
    # Each but the root reads a total from the agent before it, and each but the furthest a sum as well.
    assert [dict(agreed.bytes_received) for agreed in ended] == [
        {4: 2 * size}, {0: 2 * size}, {1: 4 * size}, {2: 4 * size}, {3: 4 * size},
    ]  # fmt: skip
    asked = {(wait.kind, wait.peers) for wait in waits if wait.kind.endswith(":0")}
    assert asked == {("basis sum:0", (one,)) for one in (1, 2, 3, 4)} | {
        ("basis total:0", (one,)) for one in (0, 1, 2, 3)
    }


@pytest.mark.parametrize("dead", [0, 3])
def test_where_a_model_is_missing_nobody_moves_and_nobody_waits_for_it_twice(dead: int) -> None:
    some = agents("merge.sweeps=2")
    before = models(some)
    _, waits = together(some, dead=[dead])
    assert all(unchanged(one, before[one.id]) for one in some)
    assert {wait.kind for wait in waits} == {"basis sum:0", "basis total:0"}


def test_deadlines_are_longer_further_up_so_that_who_lives_is_not_given_up_with_the_dead() -> None:
    """A path 0 - 1 - 2 - 3 - 4 whose leaf 0 hangs: 1 gives up after one deadline, its parent waits two for 1."""
    _, waits = together(agents("merge.sweeps=1", "exchange.timeout_s=7"), dead=[0])
    up = {wait.peers: wait.timeout_s for wait in waits if wait.kind == "basis sum:0"}
    down = sorted((wait.peers, wait.timeout_s) for wait in waits if wait.kind == "basis total:0")
    assert up == {(0,): 7, (1, 3): 14, (4,): 7}
    assert down == [((2,), 14), ((2,), 14), ((3,), 21)]


def test_a_model_that_is_not_finite_counts_as_missing() -> None:
    some = agents("merge.sweeps=1")
    with torch.no_grad():
        some[4].model.conv1.weight[0, 0, 0, 0] = torch.nan
    before = models(some)
    together(some)
    assert all(unchanged(one, before[one.id]) for one in some[:4])


def test_numbers_too_large_for_their_products_end_nobody() -> None:
    some = agents("merge.sweeps=1")
    with torch.no_grad():
        some[4].model.conv2.weight.fill_(1e30)
    together(some)
    assert all(bool(torch.isfinite(tensor).all()) for one in some for tensor in copy_of(one.model).values())


@pytest.mark.parametrize("said", [math.nan, math.inf, -1.0, 1.5, 6.0, 1e308])
def test_a_count_that_cannot_be_is_none(said: float) -> None:
    assert _count(Header("basis sum:0", 1, 0, {"models": said}), 5) == 0
    assert _count(Header("basis sum:0", 1, 0, {"models": 3.0}), 5) == 3
    assert _count(Header("basis sum:0", 1, 0), 5) == 0


@pytest.mark.parametrize("after", [0.5, 0.8, 0.9, 1.0, math.nan])
def test_sweeps_that_do_not_clearly_lower_the_loss_of_the_mean_are_taken_back(
    monkeypatch: pytest.MonkeyPatch, after: float
) -> None:
    """All agents say 1 before; after two sweeps one of them says something else, and the sum decides for all.

    It has to fall from 5 to below 4.85.
    """
    told: list[int] = []

    def loss(agent: Agent, total: StateDict, num_models: int) -> float:
        told.append(agent.id)
        return after if agent.id == 3 and told.count(3) == 2 else 1.0

    monkeypatch.setattr(sweeps, "loss_of_mean", loss)
    some = agents("merge.sweeps=2")
    before = models(some)
    ended, _ = together(some)
    assert sorted(told) == sorted(2 * [*range(5)])
    assert [unchanged(one, before[one.id]) for one in some] == (
        [False, False, True, False, False] if after < 0.85 else 5 * [True]
    )
    for one, agreed in zip(some, ended, strict=True):
        moved = one.spec.apply(before[one.id], agreed.perms)
        assert all(torch.equal(tensor, moved[name]) for name, tensor in copy_of(one.model).items())


def test_the_loss_is_that_of_the_mean_model_on_own_samples_with_its_own_statistics() -> None:
    (one, *_) = agents()
    total = {name: 4 * tensor if tensor.is_floating_point() else tensor for name, tensor in copy_of(one.model).items()}
    total["norm1.running_mean"] += 100  # taken anew
    streams, own = capture(one.loader), copy_of(one.model)
    found = sweeps.loss_of_mean(one, total, 4)
    assert torch.equal(capture(one.loader).loader_stream, streams.loader_stream)
    assert unchanged(one, own)
    recalibrate(one.model, one.own_samples, max_samples=512)
    one.model.eval()
    x, y = one.loader.x, one.loader.y
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(one.model(one.loader.scaling.apply(x)), y)
    assert len(y) <= 512
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_sums_do_not_stay_in_memory() -> None:
    some = agents("merge.sweeps=2")
    together(some)
    for one in some:
        held = [kind for kind in one.transport._store.newest() if kind.startswith("basis")]
        assert held
        assert set(held) <= {*kinds(2), *kinds(3)}
        forget_sums(one)
        assert not any(kind.startswith("basis") for kind in one.transport._store.newest())


def test_a_run_sweeps_once_through_its_first_round(tmp_path: Path) -> None:
    settings = ["agents=4", "rounds=2", "train.epochs=1", "task.partition.scheme=iid"]
    told = {}
    for num in (0, 1):
        folder = prepare(load_config(None, [*SETTINGS, *settings, f"merge.sweeps={num}"]), tmp_path / str(num))
        simulate(load_config(folder / "config.yaml"), folder)
        with Store.open(folder, read_only=True) as store:
            told[num] = {(report.agent, report.round): report for report in store.reports()}
    size = agents(num=2)[0].schema.num_bytes
    came = {
        (num, number): sum(sum(one.bytes_received.values()) for (_, at), one in of.items() if at == number)
        for num, of in told.items()
        for number in (1, 2)
    }
    assert came[1, 1] - came[0, 1] == 3 * 4 * size  # a path has three edges
    assert came[1, 2] == came[0, 2]
    assert told[1][0, 1].metrics["loss_after"] != told[0][0, 1].metrics["loss_after"]


@pytest.mark.parametrize(
    "settings",
    [
        ["exchange.mode=async"], ["merge.sweeps=0"], ["agents=2"],
        ["merge.method=median"], ["merge.checks.max_norm_ratio=3"],
    ],
)  # fmt: skip
def test_where_sums_cannot_come_up_or_are_not_asked_for_nothing_travels(settings: list[str]) -> None:
    num = 2 if "agents=2" in settings else 5
    some = agents(*settings, num=num)
    ended, waits = together(some)
    assert waits == []
    assert all(not agreed.bytes_received for agreed in ended)


@pytest.mark.parametrize("graph", ["path", "exponential"])
def test_the_last_sums_are_held_until_every_reader_is_past_them(
    tmp_path: Path, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a directed graph an agent hears nothing of its readers before it waits for them, two rounds later."""
    freed: list[tuple[int, int]] = []
    monkeypatch.setattr("dimat.agent.round.forget_sums", lambda agent: freed.append((agent.id, agent.status.round)))
    settings = [*SETTINGS, f"topology.graph={graph}", "rounds=4", "train.epochs=1"]
    folder = prepare(load_config(None, settings), tmp_path / "run")
    simulate(load_config(folder / "config.yaml"), folder)
    assert sorted(freed) == [(number, 3) for number in range(5)]
