"""Agents number their units alike: the function stays, momentum moves along, the tree is walked from the root."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dimat.agent.basis import (
    agree_on_basis,
    align_neighbours,
    has_to_agree,
    match,
    permute_agent,
    shares_moved,
)
from dimat.agent.build import build_agent
from dimat.agent.gather import realised_row
from dimat.agent.live import _readers_have
from dimat.agent.randomness import capture
from dimat.agent.start import ONE_ANCESTOR, adopt_root, choose_basis, label_overlap, likeness
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.train import train_locally
from dimat.config import load_config
from dimat.messages import Change, Directive
from dimat.statedict import copy_of
from dimat.transport.memory import MemoryHub, MemoryTransport

SETTINGS = ["task.model=cnn", "agents=3", "topology.graph=path", "task.partition.scheme=iid", "train.epochs=1"]
SETTINGS += ["merge.basis=agree"]


def agent(number: int, *settings: str, hub: MemoryHub | None = None) -> Agent:
    config = load_config(None, [*SETTINGS, *settings])
    hub = hub or MemoryHub()
    made = build_agent(
        config, number, Path("unused"), f"s{number}", lambda schema: MemoryTransport(number, "s", schema, hub)
    )
    train_locally(made.task, made.model, made.loader, made.optimizer, config.train, 1, config.rounds)
    return made


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_permuting_oneself_keeps_the_function_and_the_next_step(optimizer: str) -> None:
    """Weights and momentum move together: training on, both copies stay the same function."""
    moved, still = (agent(1, f"train.optimizer={optimizer}", "train.lr=0.01") for _ in range(2))
    assert moved.spec is not None
    permute_agent(moved, moved.spec.random(5))
    inputs = moved.probe[0][0]
    for made in (moved, still):
        made.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(moved.model(inputs), still.model(inputs), rtol=1e-4, atol=1e-5)
    assert not torch.equal(moved.model.state_dict()["conv1.weight"], still.model.state_dict()["conv1.weight"])
    batch = (inputs, torch.zeros(len(inputs), dtype=torch.int64))
    for made in (moved, still):
        made.optimizer.zero_grad()
        made.task.loss(made.model, batch).backward()
        made.optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(moved.model(inputs), still.model(inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("align", ["activations", "weights"])
def test_a_permuted_copy_of_the_neighbour_finds_back(align: str) -> None:
    mine = agent(0, f"merge.align={align}")
    assert mine.spec is not None
    original = copy_of(mine.model)
    permute_agent(mine, mine.spec.random(9))
    permute_agent(mine, match(mine, original, moves="self")[0])
    for name, tensor in mine.model.state_dict().items():
        torch.testing.assert_close(tensor, original[name])


def test_a_neighbour_is_brought_into_my_basis_and_i_stay() -> None:
    mine = agent(0)
    assert mine.spec is not None
    before = copy_of(mine.model)
    states, found = align_neighbours(mine, {2: mine.spec.apply(before, mine.spec.random(4))})
    for name, tensor in before.items():
        torch.testing.assert_close(states[2][name], tensor)
        assert torch.equal(mine.model.state_dict()[name], tensor)
    assert all(share > 0.8 for share in found.moved.values())


def test_the_basis_goes_down_the_tree_from_the_root() -> None:
    """A path 0 - 1 - 2 has its centre in 1: it stays, and both ends come to it."""
    hub = MemoryHub()
    agents = [agent(number, hub=hub) for number in range(3)]
    for made in agents:
        made.transport.start()
    before = [copy_of(made.model) for made in agents]
    root = agree_on_basis(agents[1], 1, PhaseClock(agents[1].status))
    with pytest.raises(StopIteration):
        next(root)
    for number in (0, 2):
        steps = agree_on_basis(agents[number], 1, PhaseClock(agents[number].status))
        wait = next(steps)
        assert (wait.what, wait.peers, wait.kind) == ("published", (1,), "basis")
        with pytest.raises(StopIteration) as ended:
            steps.send(frozenset({1}))
        assert max(shares_moved(ended.value.value.perms).values()) > 0.5
    changed = [
        any(not torch.equal(tensor, before[n][name]) for name, tensor in made.model.state_dict().items())
        for n, made in enumerate(agents)
    ]
    assert changed == [True, False, True]
    assert all(made.basis_settled for made in agents)


def test_a_dead_parent_is_replaced_by_the_lowest_live_neighbour() -> None:
    hub = MemoryHub()
    agents = [agent(number, "topology.graph=complete", hub=hub) for number in range(3)]
    agents[1].transport.start()
    agents[1].publish("basis", 1)
    orphan = agree_on_basis(agents[2], 1, PhaseClock(agents[2].status))
    assert next(orphan).peers == (0,)
    assert orphan.send(frozenset()).peers == (1,)
    with pytest.raises(StopIteration) as ended:
        orphan.send(frozenset({1}))
    assert ended.value.value.perms


def test_all_alone_one_keeps_ones_own_basis() -> None:
    lonely = agent(0)
    before = copy_of(lonely.model)
    steps = agree_on_basis(lonely, 1, PhaseClock(lonely.status))
    next(steps)
    steps.send(frozenset())
    with pytest.raises(StopIteration):
        steps.send(frozenset())
    assert all(torch.equal(tensor, before[name]) for name, tensor in lonely.model.state_dict().items())
    assert lonely.basis_settled


def test_shares_and_rows() -> None:
    assert shares_moved({"g": torch.tensor([0, 2, 1, 3])}) == {"g": 0.5}
    row = {0: 0.5, 1: 0.25, 2: 0.25}
    assert realised_row(0, row, frozenset()) == {0: 1.0}
    assert realised_row(0, row, frozenset({1, 2})) == row


def test_on_a_directed_graph_two_rounds_on_waits_for_the_readers() -> None:
    for calibrate, kind in (("batchnorm", "snapshot"), ("neighbourhood", "statistics")):  # what is read last
        directed = agent(0, "topology.graph=exponential", "agents=4", f"merge.calibrate={calibrate}")
        steps = _readers_have(directed, 3)
        wait = next(steps)
        assert (wait.what, wait.peers, wait.kind, wait.round) == ("acknowledged", (1, 2), kind, 3)
    undirected = agent(0)
    assert list(_readers_have(undirected, 3)) == []


def test_who_leaves_waits_until_its_last_statistics_are_read() -> None:
    """Snapshots of an undirected graph were acknowledged in the merge; statistics come after it."""
    leaving = agent(1)
    assert list(_readers_have(leaving, 3, at_the_end=True)) == [], "nobody had a part in that merge"
    leaving.shared_with = {2: (0,), 3: (0, 2)}
    (wait,) = _readers_have(leaving, 3, at_the_end=True)
    assert (wait.what, wait.peers, wait.kind, wait.round) == ("acknowledged", (0, 2), "statistics", 3)
    assert list(_readers_have(agent(1, "merge.calibrate=batchnorm"), 3, at_the_end=True)) == []
    assert list(_readers_have(agent(1, "task.model=mlp"), 3, at_the_end=True)) == [], "no batch norm, no statistics"


def test_the_tree_is_that_of_the_agents_who_are_there() -> None:
    """A path 0 - 1 - 2 without its centre: the ends are joined, the lower one is the root."""
    ends = [agent(number) for number in (0, 2)]
    for made in ends:
        made.hear(Directive(changes=(Change(1, 1, (1,)),)))
    with pytest.raises(StopIteration):
        next(agree_on_basis(ends[0], 1, PhaseClock(ends[0].status)))
    assert next(agree_on_basis(ends[1], 1, PhaseClock(ends[1].status))).peers == (0,)


def test_all_agree_once_more_when_somebody_with_children_is_gone_right_after() -> None:
    made = agent(2)  # of a path: its parent is 1, which hands the basis on to both ends
    assert has_to_agree(made, 1)
    made.basis_settled, made.basis_round = True, 1
    assert not has_to_agree(made, 2)
    made.hear(Directive(changes=(Change(1, 2, (0,)),)))
    assert not has_to_agree(made, 2), "nobody took its basis from an end"
    made.hear(Directive(changes=(Change(1, 2, (0,)), Change(2, 3, (0, 1)))))
    assert not has_to_agree(made, 2), "in round 2 it is still there"
    assert has_to_agree(made, 3)
    made.basis_round = 3
    assert not has_to_agree(made, 4)
    made.basis_round = None
    assert not has_to_agree(made, 4), "settled in an earlier life"


def test_nobody_ends_a_wait_for_one_that_leaves_in_order() -> None:
    made, told = agent(0), []
    made.transport.presume_gone = told.append  # type: ignore[method-assign]
    made.hear(Directive(changes=(Change(1, 5, (1, 2), leaving=(2,)),)))
    assert told == [frozenset({1})]
    made.hear(Directive(changes=made.changes, done=(2, 3)))
    made.hear(Directive(changes=made.changes, done=(2, 3)))
    assert told[1:] == [frozenset({1, 2, 3})], "who has said goodbye does nothing more"
    made.hear(Directive(changes=made.changes, done=(2,)))
    assert told[-1] == {1, 2}, "agent 3 was started again"


def histograms(*labels: str) -> dict[int, dict[str, int]]:
    return {number: dict(Counter(own)) for number, own in enumerate(labels)}


@pytest.mark.parametrize(
    ("settings", "labels", "basis"),
    [
        (["init=different"], ("ab", "ab"), "adopt"),
        (["init=same"], ("ab", "cd"), "adopt"),
        (["init=FOLDER"], ("ab", "ab"), "agree"),
        (["init=FOLDER"], ("ab", "cd"), "restart"),
        (["init=FOLDER"], ("", ""), "agree"),  # a task that does not say
        (["init=FOLDER", "merge.basis=agree"], ("ab", "cd"), "agree"),
        (["init=FOLDER", "merge.align=none"], ("ab", "cd"), "agree"),
        (["init=different", "merge.align=none"], ("ab", "ab"), "agree"),
        (["init=FOLDER", "merge.basis=each_round"], ("ab", "cd"), "each_round"),
    ],
)
def test_how_agents_come_to_one_basis(settings: list[str], labels: tuple[str, ...], basis: str) -> None:
    assert choose_basis(load_config(None, settings), histograms(*labels)) == basis


def test_the_overlap_is_that_of_the_average_pair() -> None:
    """Pairs: a-a 1, aa-ab 1/2, twice."""
    assert label_overlap(histograms("aa", "a", "ab")) == pytest.approx(2 / 3)
    assert label_overlap(histograms("aa", "")) is None


def test_models_of_one_ancestor_are_alike_and_those_trained_apart_are_not() -> None:
    """Both pairs have no class in common; one of them began with one model."""
    apart = [copy_of(agent(number, "task.partition.scheme=classes").model) for number in (0, 1)]
    tuned = [copy_of(agent(number, "task.partition.scheme=classes", "init=same").model) for number in (0, 1)]
    assert abs(likeness(*apart)) < ONE_ANCESTOR / 2
    assert likeness(*tuned) > 1.5 * ONE_ANCESTOR


@pytest.mark.parametrize("tuned", [False, True])
def test_all_begin_anew_unless_the_root_and_a_child_have_one_ancestor(tmp_path: Path, tuned: bool) -> None:
    hub, made = MemoryHub(), []
    for number in range(3):
        state = copy_of(agent(1 if tuned else number).model)
        noise = {n: t + 0.001 * number if t.is_floating_point() else t for n, t in state.items()}
        save_file(noise, tmp_path / f"{number}.safetensors")
    for number in range(3):
        config = load_config(None, [*SETTINGS, f"init={tmp_path}", "merge.basis=auto"])
        made.append(build_agent(config, number, tmp_path, "s", lambda s, n=number: MemoryTransport(n, "s", s, hub)))
        made[-1].transport.start()
        made[-1].basis = "restart"
    own = [copy_of(one.model) for one in made]
    streams = capture(made[1].loader)
    child, root = (adopt_root(made[number], PhaseClock(made[number].status)) for number in (0, 1))
    assert next(child).kind == "basis"  # it has shown its own by then
    wait = next(root)
    assert (wait.peers, wait.kind) == ((0, 2), "own start")
    with pytest.raises(StopIteration) as ended:
        root.send(frozenset({0}))
    assert ended.value.value.bytes_received.keys() == {0}
    with pytest.raises(StopIteration):
        child.send(frozenset({1}))
    assert torch.equal(capture(made[1].loader).torch_stream, streams.torch_stream)
    same = build_agent(
        load_config(None, [*SETTINGS, "init=same"]), 2, tmp_path, "s", lambda s: MemoryTransport(9, "s", s, hub)
    )
    for number in (0, 1):
        kept, expected = copy_of(made[number].model), own[number] if tuned else copy_of(same.model)
        assert all(torch.equal(kept[name], expected[name]) for name in kept)


def test_on_a_directed_graph_the_root_looks_at_those_that_it_reads(tmp_path: Path) -> None:
    """Of five agents on the exponential graph each reads those 1, 2 and 4 before it."""
    for number in range(5):
        save_file(copy_of(agent(1).model), tmp_path / f"{number}.safetensors")
    settings = [*SETTINGS, "agents=5", "topology.graph=exponential", f"init={tmp_path}", "merge.basis=auto"]
    hub, config = MemoryHub(), load_config(None, settings)
    root = build_agent(config, 0, tmp_path, "s", lambda s: MemoryTransport(0, "s", s, hub))
    root.basis = "restart"
    wait = next(adopt_root(root, PhaseClock(root.status)))
    assert (wait.kind, wait.peers) == ("own start", tuple(sorted(root.topology.neighbours(0))))
    assert wait.peers != tuple(child for child, parent in root.topology.tree()[1].items() if parent == 0)


def test_nobody_gives_up_its_model_because_others_are_silent(tmp_path: Path) -> None:
    hub = MemoryHub()
    save_file(copy_of(agent(1).model), tmp_path / "1.safetensors")
    config = load_config(None, [*SETTINGS, f"init={tmp_path}", "merge.basis=auto"])
    root = build_agent(config, 1, tmp_path, "s", lambda s: MemoryTransport(1, "s", s, hub))
    root.basis = "restart"
    own = copy_of(root.model)
    steps = adopt_root(root, PhaseClock(root.status))
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(frozenset())
    assert all(torch.equal(tensor, own[name]) for name, tensor in copy_of(root.model).items())


@pytest.mark.parametrize("tuned", [False, True])
def test_a_trained_model_gives_way_to_its_parents_unless_they_have_one_ancestor(tmp_path: Path, tuned: bool) -> None:
    hub, made = MemoryHub(), []
    for number in range(3):
        state = copy_of(agent(1 if tuned else number).model)
        noise = {n: t + 0.001 * number if t.is_floating_point() else t for n, t in state.items()}
        save_file(noise, tmp_path / f"{number}.safetensors")
    for number in (0, 1):
        config = load_config(None, [*SETTINGS, f"init={tmp_path}", "merge.basis=adopt"])
        made.append(build_agent(config, number, tmp_path, "s", lambda s, n=number: MemoryTransport(n, "s", s, hub)))
        made[-1].transport.start()
    own = copy_of(made[0].model)
    with pytest.raises(StopIteration):
        next(adopt_root(made[1], PhaseClock(made[1].status)))  # the root of the path
    steps = adopt_root(made[0], PhaseClock(made[0].status))
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(frozenset({1}))
    kept = copy_of(made[0].model)
    expected = own if tuned else copy_of(made[1].model)
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
