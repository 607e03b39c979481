"""`merge.skip`: a neighbour that shares this agent's basis is merged as it is, and nothing is run to find that out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dimat.agent import basis
from dimat.agent.basis import agree_on_basis, align_neighbours, match
from dimat.agent.build import build_agent
from dimat.agent.round import fold_neighbourhood
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.config import load_config
from dimat.coordinator import Store
from dimat.messages import Report
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.statedict import copy_of
from dimat.transport.memory import MemoryHub, MemoryTransport

SETTINGS = ["task.model=cnn", "agents=3", "topology.graph=path", "merge.basis=each_round"]


def agent(number: int, *settings: str, hub: MemoryHub | None = None) -> Agent:
    config, hub = load_config(None, [*SETTINGS, *settings]), hub or MemoryHub()
    return build_agent(config, number, Path("unused"), "s", lambda schema: MemoryTransport(number, "s", schema, hub))


def near(made: Agent, seed: int) -> dict[str, torch.Tensor]:
    """The agent's model, each tensor moved by a tenth of its size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.1 * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in copy_of(made.model).items()
    }


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The searches that were made, in order."""
    made: list[str] = []

    def counted(name: str) -> None:
        search: Callable[..., object] = getattr(basis, name)

        def wrapper(*args: object, **options: object) -> object:
            made.append(name)
            return search(*args, **options)

        monkeypatch.setattr(basis, name, wrapper)

    counted("activation_matching")
    counted("weight_matching")
    return made


@pytest.mark.parametrize("align", ["activations", "weights"])
def test_a_neighbour_that_shares_the_basis_is_merged_without_a_search(searches: list[str], align: str) -> None:
    mine = agent(1, "merge.skip=settled", f"merge.align={align}")
    assert mine.spec is not None
    states = {0: near(mine, 1), 2: mine.spec.apply(near(mine, 2), mine.spec.random(3))}
    aligned, found = align_neighbours(mine, states)
    assert searches == ["activation_matching" if align == "activations" else "weight_matching"], "for agent 2 alone"
    assert found.skipped == 0.5
    assert all(torch.equal(tensor, states[0][name]) for name, tensor in aligned[0].items())
    assert not torch.equal(aligned[2]["conv2.weight"], states[2]["conv2.weight"])
    assert all(0.4 < share <= 0.5 for share in found.moved.values()), "the mean of one that stays and one that moves"


def test_it_is_merged_with_the_bits_of_a_matching_that_finds_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    merged = []
    for skip in ("settled", "never"):
        mine = agent(1, f"merge.skip={skip}")
        assert mine.spec is not None
        identity = mine.spec.identity()
        monkeypatch.setattr(basis, "activation_matching", lambda *_, found=identity: found)
        aligned, found = align_neighbours(mine, {0: near(mine, 1), 2: near(mine, 2)})
        assert found.skipped == (1.0 if skip == "settled" else 0.0)
        assert set(found.moved.values()) == {0.0}
        merged.append(fold_neighbourhood(mine, copy_of(mine.model), aligned, {0: 0.2, 1: 0.5, 2: 0.3}))
    assert all(torch.equal(tensor, merged[1][name]) for name, tensor in merged[0].items())


def test_never_matches_all_the_same(searches: list[str]) -> None:
    mine = agent(1, "merge.skip=never")
    _, found = align_neighbours(mine, {0: copy_of(mine.model), 2: copy_of(mine.model)})
    assert searches == ["activation_matching"] * 2
    assert found.skipped == 0.0


def test_without_neighbours_nothing_was_skipped() -> None:
    assert align_neighbours(agent(1), {})[1].skipped is None


def test_a_model_that_is_no_number_is_matched_as_before(searches: list[str]) -> None:
    mine = agent(1)
    spoiled = copy_of(mine.model)
    spoiled["conv1.weight"][0] = torch.nan
    assert not match(mine, spoiled, moves="neighbour")[1]
    assert searches == ["activation_matching"]


def test_who_was_tuned_from_its_parents_model_keeps_its_basis(tmp_path: Path, searches: list[str]) -> None:
    """A path 0 - 1 - 2: agent 0 comes from the root's model, agent 2 from another one."""
    hub = MemoryHub()
    root = agent(1)
    save_file(copy_of(root.model), tmp_path / "1.safetensors")
    save_file(near(root, 1), tmp_path / "0.safetensors")
    save_file(copy_of(agent(2).model), tmp_path / "2.safetensors")
    agents = [agent(number, "merge.basis=agree", f"init={tmp_path}", hub=hub) for number in range(3)]
    for made in agents:
        made.transport.start()
    before = [copy_of(made.model) for made in agents]
    agents[1].publish("basis", 1)
    skipped = []
    for number in (0, 2):
        steps = agree_on_basis(agents[number], 1, PhaseClock(agents[number].status))
        next(steps)
        with pytest.raises(StopIteration) as ended:
            steps.send(frozenset({1}))
        skipped.append(ended.value.value.skipped)
    assert skipped == [1.0, 0.0]
    assert searches == ["activation_matching"]
    stayed = [all(torch.equal(t, before[n][name]) for name, t in copy_of(agents[n].model).items()) for n in (0, 2)]
    assert stayed == [True, False]


def run(folder: Path, *settings: str) -> dict[tuple[int, int], Report]:
    small = ["task.model.name=mlp", "task.model.hidden=[16]", "train.epochs=1", "train.batch_size=64", "rounds=2"]
    config = load_config(None, [*small, "agents=3", "init=same", *settings])
    simulate(config, prepare(config, folder))
    with Store.open(folder, read_only=True) as store:
        return {(report.agent, report.round): report for report in store.reports()}


def test_agents_of_one_start_never_match_and_say_so(tmp_path: Path) -> None:
    """The oracle is averaging without any alignment: the same bits after each merge."""
    told = run(tmp_path / "settled", "merge.basis=each_round", "merge.skip=settled")
    plain = run(tmp_path / "plain", "merge.align=none")
    matched = run(tmp_path / "never", "merge.basis=each_round", "merge.skip=never")
    assert {report.metrics["matchings_skipped"] for report in told.values()} == {1.0}
    assert {report.metrics["matchings_skipped"] for report in matched.values()} == {0.0}
    assert not any("matchings_skipped" in report.metrics for report in plain.values())
    for key, report in told.items():
        assert report.sketch_after == plain[key].sketch_after
    assert any(report.sketch_after != matched[key].sketch_after for key, report in told.items())
