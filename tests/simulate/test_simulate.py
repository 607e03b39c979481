"""The round function over memory: bits, policies, graphs, interruptions."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dimat.agent.build import build_agent
from dimat.agent.checkpoint import rounds_held
from dimat.agent.preflight import check_run
from dimat.agent.randomness import restore
from dimat.agent.train import train_locally
from dimat.align import PermutationSpec
from dimat.config import RunConfig, load_config
from dimat.coordinator import Store
from dimat.errors import AlignmentError, Interrupted
from dimat.messages import Report, View
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.topology import load_topology
from dimat.transport.memory import MemoryHub, MemoryTransport

SMALL = [
    "task.model.name=mlp",
    "task.model.hidden=[16]",
    "train.epochs=1",
    "train.batch_size=64",
    "rounds=4",
    "agents=4",
]


def small(*settings: str) -> RunConfig:
    return load_config(None, [*SMALL, *settings])


def run(config: RunConfig, folder: Path, on_view: Callable[[View], None] | None = None) -> Path:
    simulate(config, prepare(config, folder), on_view)
    return folder


def bits(folder: Path, round: int = 4) -> list[bytes]:
    """Every agent's checkpoint: weights and optimiser."""
    return [(folder / "checkpoints" / str(a) / f"{round}.safetensors").read_bytes() for a in range(4)]


def reports(folder: Path) -> dict[tuple[int, int], Report]:
    with Store.open(folder, read_only=True) as store:
        return {(report.agent, report.round): report for report in store.reports()}


def test_equal_seeds_end_with_equal_bits_and_other_seeds_do_not(tmp_path: Path) -> None:
    one, two, other = (run(small(f"seed={s}"), tmp_path / name) for s, name in ((1, "a"), (1, "b"), (2, "c")))
    assert bits(one) == bits(two)
    assert bits(one) != bits(other)


@pytest.mark.parametrize("settings", [[], ["topology.graph=one_peer_exponential", "train.optimizer=adam"]])
def test_a_run_that_was_stopped_continues_to_the_same_bits(tmp_path: Path, settings: list[str]) -> None:
    whole = run(small(*settings), tmp_path / "whole")

    def stop(view: View) -> None:
        if view.newest is not None and view.newest.round == 2:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        run(small(*settings), tmp_path / "halves", stop)
    assert not (tmp_path / "halves" / "checkpoints" / "0" / "4.json").exists()
    run(small(*settings), tmp_path / "halves")
    assert bits(tmp_path / "halves") == bits(whole)
    assert sorted(reports(tmp_path / "halves")) == sorted(reports(whole))
    lines = (tmp_path / "halves" / "metrics" / "0.jsonl").read_text().splitlines()
    assert len(lines) == 4, "rounds that were done again are told once"


def test_a_checkpoint_that_one_agent_lost_sends_all_back(tmp_path: Path) -> None:
    whole = run(small(), tmp_path / "whole")
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    (copy / "checkpoints" / "2" / "4.json").unlink()
    run(small(), copy)
    assert bits(copy) == bits(whole)


def test_with_one_initialisation_agreeing_changes_nothing(tmp_path: Path) -> None:
    agree = run(small("init=same"), tmp_path / "agree")
    plain = run(small("init=same", "merge.align=none"), tmp_path / "plain")
    assert bits(agree) == bits(plain)


def test_agreeing_moves_units_once_and_then_keeps_the_basis(tmp_path: Path) -> None:
    told = reports(run(small("merge.basis=agree"), tmp_path / "run"))
    root, parents = load_topology("ring", 4).tree()
    for agent in range(4):
        shares = told[agent, 1].moved
        assert (max(shares.values()) > 0.5) if agent in parents else not shares, (agent, root)
        assert not any(told[agent, round].moved for round in (2, 3, 4))


def test_each_round_moves_units_each_round(tmp_path: Path) -> None:
    told = reports(run(small("merge.basis=each_round", "rounds=2"), tmp_path / "run"))
    assert all(max(told[agent, round].moved.values()) > 0.2 for agent in range(4) for round in (1, 2))


def test_matching_by_weights_moves_units_too(tmp_path: Path) -> None:
    told = reports(run(small("merge.align=weights", "merge.basis=agree", "rounds=1"), tmp_path / "run"))
    assert any(max(told[agent, 1].moved.values(), default=0.0) > 0.5 for agent in range(4))


def test_adopting_equals_starting_alike(tmp_path: Path) -> None:
    """After round one each agent has trained the root's weights, so merged models are closer than apart-grown ones."""
    adopted = reports(run(small("merge.basis=adopt", "rounds=1"), tmp_path / "adopted"))
    plain = reports(run(small("merge.align=none", "rounds=1"), tmp_path / "plain"))
    spread = {}
    for name, told in (("adopted", adopted), ("plain", plain)):
        before = np.stack([np.frombuffer(told[a, 1].sketch_before, "<f4") for a in range(4)])
        spread[name] = np.linalg.norm(before - before.mean(0))
    assert spread["adopted"] < 0.5 * spread["plain"]


def test_a_merge_is_the_row_of_the_matrix_times_the_models(tmp_path: Path) -> None:
    """The oracle: sketches are linear, so the ones after are W times the ones before."""
    told = reports(run(small("topology.graph=star", "merge.calibrate=none"), tmp_path / "run"))
    matrix = load_topology("star", 4).matrix()
    for round in (1, 4):
        before = np.stack([np.frombuffer(told[a, round].sketch_before, "<f4") for a in range(4)]).astype(float)
        after = np.stack([np.frombuffer(told[a, round].sketch_after, "<f4") for a in range(4)])
        np.testing.assert_allclose(after, matrix @ before, atol=1e-4)
        rows = [[told[a, round].weights.get(peer, 0.0) for peer in range(4)] for a in range(4)]
        np.testing.assert_allclose(rows, matrix, atol=1e-12)


def test_merging_every_second_round(tmp_path: Path) -> None:
    told = reports(run(small("merge.every=2"), tmp_path / "run"))
    assert [bool(told[0, round].weights) for round in (1, 2, 3, 4)] == [False, True, False, True]


def test_one_complete_merge_at_the_end_brings_all_to_one_point(tmp_path: Path) -> None:
    told = reports(run(small("merge.final=complete", "merge.calibrate=none"), tmp_path / "run"))
    assert len({told[agent, 4].sketch_after for agent in range(4)}) == 1
    assert told[0, 4].weights == dict.fromkeys(range(4), 0.25)
    assert len({told[agent, 3].sketch_after for agent in range(4)}) == 4


@pytest.mark.parametrize("graph", ["exponential", "one_peer_exponential", "random_matching", "complete", "path"])
def test_every_kind_of_graph_carries_a_run(tmp_path: Path, graph: str) -> None:
    told = reports(run(small(f"topology.graph={graph}", "init=same"), tmp_path / "run"))  # no start has to travel
    assert len(told) == 16
    assert not any(report.missing for report in told.values())
    topology = load_topology(graph, 4)
    for (agent, round), report in told.items():
        assert set(report.bytes_received) == set(topology.neighbours(agent, round - 1))
        assert sum(report.weights.values()) == pytest.approx(1.0)


def test_resetting_the_optimiser_makes_a_difference(tmp_path: Path) -> None:
    keep = run(small("merge.optimizer_state=keep"), tmp_path / "keep")
    reset = run(small("merge.optimizer_state=reset"), tmp_path / "reset")
    assert bits(keep) != bits(reset)


def test_starting_from_a_folder_of_checkpoints(tmp_path: Path) -> None:
    first = run(small(), tmp_path / "first")
    second = run(small(f"init={first / 'checkpoints'}", "rounds=1", "train.lr=1e-9"), tmp_path / "second")
    told, before = reports(second), reports(first)
    # A learning rate of nearly zero: what round 1 merges is what the first run ended with, in one basis.
    assert told[0, 1].metrics["accuracy_before"] == pytest.approx(before[0, 4].metrics["accuracy"], abs=0.02)


def test_a_target_names_a_last_round(tmp_path: Path) -> None:
    folder = run(small("stop.target_accuracy=0.2", "rounds=9"), tmp_path / "run")
    with Store.open(folder, read_only=True) as store:
        outcome = store.outcome()
        rounds = [summary.round for summary in store.summaries()]
    assert outcome is not None
    assert outcome.kind == "target"
    assert rounds[-1] < 9


def test_dropout_draws_from_each_agents_own_stream(tmp_path: Path) -> None:
    """Agents share a process: without streams of their own they would change one another's bits."""
    task = tmp_path / "noisy.py"
    task.write_text(
        "import torch\nfrom dimat.tasks.digits import DigitsTask\n"
        "class Noisy(DigitsTask):\n"
        "    def model(self):\n"
        "        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(),"
        " torch.nn.Dropout(0.5), torch.nn.Linear(16, 10))\n"
    )
    settings = [f"task.name={task}:Noisy", "task.model=mlp", "merge.align=none", "rounds=2", "agents=4"]
    path = load_config(None, [*settings, "topology.graph=path", "train.epochs=1"])
    run(path, tmp_path / "path")
    complete = load_config(None, [*settings, "topology.graph=complete", "train.epochs=1"])
    run(complete, tmp_path / "complete")
    # Before the first merge the graph plays no part, whatever order the agents ran in.
    one, two = reports(tmp_path / "path"), reports(tmp_path / "complete")
    assert [one[a, 1].sketch_before for a in range(4)] == [two[a, 1].sketch_before for a in range(4)]


def test_an_interrupt_ends_all_agents_after_the_same_round(tmp_path: Path) -> None:
    whole = run(small("rounds=6"), tmp_path / "whole")

    def interrupt(view: View) -> None:
        if view.newest is not None and view.newest.round == 1 and view.state == "running":
            os.kill(os.getpid(), signal.SIGINT)

    folder = run(small("rounds=6"), tmp_path / "stopped", interrupt)
    with Store.open(folder, read_only=True) as store:
        outcome = store.outcome()
    assert outcome is not None
    assert (outcome.kind, outcome.exit_code) == ("interrupted", 130)
    assert outcome.round in (2, 3)
    assert {round for _, round in reports(folder)} == set(range(1, outcome.round + 1))
    assert len(reports(folder)) == 4 * outcome.round
    assert bits(run(small("rounds=6"), folder), 6) == bits(whole, 6)


def test_going_back_forgets_the_rounds_of_the_life_before(tmp_path: Path) -> None:
    """Else a later start could mix weights of two histories."""
    whole = run(small("rounds=8"), tmp_path / "whole")
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints" / "2")

    def stop(view: View) -> None:
        if view.newest is not None and view.newest.round == 3:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        run(small("rounds=8"), copy, stop)
    held = {a: rounds_held(copy / "checkpoints" / str(a)) for a in range(4)}
    assert all(max(rounds) <= 4 for rounds in held.values()), held
    run(small("rounds=8"), copy)
    assert bits(copy, 8) == bits(whole, 8)


def test_as_many_checkpoints_are_kept_as_agents_can_be_apart(tmp_path: Path) -> None:
    folder = run(small("rounds=9"), tmp_path / "run")
    assert rounds_held(folder / "checkpoints" / "0") == [6, 7, 8, 9], "diameter 2, and two more"
    folder = run(small("rounds=9", "merge.every=2"), tmp_path / "every")
    assert rounds_held(folder / "checkpoints" / "0") == [4, 5, 6, 7, 8, 9]


def test_fewer_checkpoints_are_kept_where_the_graph_asks_for_very_many(tmp_path: Path) -> None:
    """A ring of twenty has a diameter of ten; in one process nobody is ten rounds ahead."""
    settings = ["agents=20", "topology.graph=ring", "rounds=11", "merge.align=none", "task.model.hidden=[2]"]
    folder = run(small(*settings), tmp_path / "run")
    for agent in (0, 11, 19):
        held = rounds_held(folder / "checkpoints" / str(agent))
        assert len(held) in (8, 9)
        assert held[-1] == 11


def test_checkpoints_of_every_third_round_are_enough_to_go_on_from(tmp_path: Path) -> None:
    settings = ["rounds=8", "simulation.checkpoint_every=3"]
    whole = run(small(*settings), tmp_path / "whole")
    assert rounds_held(whole / "checkpoints" / "0") == [3, 6, 8]
    assert bits(whole, 8) == bits(run(small("rounds=8"), tmp_path / "every"), 8)

    def stop(view: View) -> None:
        if view.newest is not None and view.newest.round == 5:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        run(small(*settings), tmp_path / "halves", stop)
    assert rounds_held(tmp_path / "halves" / "checkpoints" / "0") == [3]
    assert bits(run(small(*settings), tmp_path / "halves"), 8) == bits(whole, 8)


def test_a_run_that_ends_early_leaves_a_checkpoint_of_its_last_round(tmp_path: Path) -> None:
    folder = run(small("rounds=40", "stop.target_accuracy=0.2", "simulation.checkpoint_every=30"), tmp_path / "run")
    last = max(round for _, round in reports(folder))
    assert last < 30
    assert {tuple(rounds_held(folder / "checkpoints" / str(agent))) for agent in range(4)} == {(last,)}


def test_the_final_merge_comes_whatever_the_period(tmp_path: Path) -> None:
    told = reports(run(small("merge.final=complete", "merge.every=3", "merge.calibrate=none"), tmp_path / "run"))
    assert [bool(told[0, round].weights) for round in (1, 2, 3, 4)] == [False, False, True, True]
    assert len({told[agent, 4].sketch_after for agent in range(4)}) == 1


def test_the_final_merge_over_a_directed_graph(tmp_path: Path) -> None:
    told = reports(run(small("merge.final=complete", "topology.graph=exponential"), tmp_path / "run"))
    assert not any(report.missing for report in told.values())
    assert told[0, 4].weights == dict.fromkeys(range(4), 0.25)


def test_adopting_needs_no_alignment(tmp_path: Path) -> None:
    adopted = run(small("merge.basis=adopt", "merge.align=none"), tmp_path / "a")
    plain = run(small("merge.align=none"), tmp_path / "b")
    assert bits(adopted) != bits(plain)
    assert bits(adopted) == bits(run(small("merge.basis=adopt"), tmp_path / "c"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["merge.calibrate=none"], ["merge.calibrate=batchnorm"]),
        (["task.model=mlp", "merge.calibrate=batchnorm"], ["task.model=mlp", "merge.calibrate=repair"]),
        (["merge.calibrate=batchnorm"], ["merge.calibrate=neighbourhood"]),
        (["merge.basis=agree", "merge.probe=local"], ["merge.basis=agree", "merge.probe=shared"]),
    ],
)
def test_what_an_option_says_is_done(tmp_path: Path, one: list[str], other: list[str]) -> None:
    net = ["task.model=cnn", "rounds=1", "agents=4", "train.epochs=1", "task.partition.alpha=0.2"]
    first, second = (run(load_config(None, [*net, *more]), tmp_path / more[-1]) for more in (one, other))
    assert bits(first, 1) != bits(second, 1)


@pytest.mark.parametrize("most", [50, 128, 512])
def test_calibration_leaves_the_statistics_of_the_agents_own_samples(tmp_path: Path, most: int) -> None:
    """The oracle: torch's own cumulative average over the same samples, all 350 or no more than are asked for."""
    net = ["task.model=cnn", "rounds=1", "agents=4", "train.epochs=1", "merge.calibrate=batchnorm"]
    config = load_config(None, [*net, *([] if most == 128 else [f"merge.calibrate_samples={most}"])])
    folder = run(config, tmp_path / "run")
    agent = build_agent(config, 2, folder, "s", lambda schema: MemoryTransport(2, "s", schema, MemoryHub()))
    agent.resume(1)
    found = {name: value.clone() for name, value in agent.model.state_dict().items() if "running_mean" in name}
    norms = [module for module in agent.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.train()
    inputs = torch.cat([batch[0] for batch in agent.own_samples])
    assert len(inputs) > 128
    with torch.no_grad():
        agent.model(inputs[:most])
    first = next(iter(found))
    torch.testing.assert_close(found[first], agent.model.state_dict()[first], rtol=1e-3, atol=1e-4)


def test_repair_restores_the_statistics_of_those_who_merged(tmp_path: Path) -> None:
    """The oracle: the neighbours' models of the same run without calibration, and a hook on the hidden layer."""
    settings = ["rounds=1", "merge.align=none", "init=same", "merge.calibrate=repair"]
    folder = run(small(*settings), tmp_path / "run")
    before = {
        peer: decoded_before_the_merge(small(*settings), peer, tmp_path) for peer in load_topology("ring", 4).weights(2)
    }
    agent = build_agent(small(*settings), 2, folder, "s", lambda schema: MemoryTransport(2, "s", schema, MemoryHub()))

    def statistics(state: dict[str, torch.Tensor]) -> torch.Tensor:
        seen = []
        agent.model.load_state_dict(state)
        hook = agent.model.get_submodule("fc1").register_forward_hook(lambda *call: seen.append(call[2].double()))
        with torch.no_grad():
            inputs = torch.cat([batch[0] for batch in agent.own_samples])
            agent.model.eval()(inputs[: agent.config.merge.calibrate_samples])
        hook.remove()
        return torch.stack([seen[0].mean(0), seen[0].std(0, correction=0)])

    agent.resume(1)
    found = statistics({name: tensor.clone() for name, tensor in agent.model.state_dict().items()})
    told = {peer: statistics(state) for peer, state in before.items()}
    expected = sum(weight * told[peer] for peer, weight in load_topology("ring", 4).weights(2).items())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def decoded_before_the_merge(config: RunConfig, number: int, folder: Path) -> dict[str, torch.Tensor]:
    """An agent's model after its first local training."""
    hub = MemoryHub()
    agent = build_agent(config, number, folder, "s", lambda schema: MemoryTransport(number, "s", schema, hub))
    restore(agent.start, agent.loader)
    train_locally(agent.task, agent.model, agent.loader, agent.optimizer, config.train, 1, config.rounds)
    return agent.model.state_dict()


def test_groups_that_do_not_verify_stop_the_run_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PermutationSpec, *args: object, **kwargs: object) -> float:
        raise AlignmentError("group fc1 changes the outputs")

    monkeypatch.setattr(PermutationSpec, "verify", refuse)
    with pytest.raises(AlignmentError, match="group fc1"):
        check_run(small("merge.basis=agree"))
    check_run(small("merge.align=none"))


def test_a_run_that_goes_on_without_one_who_was_out_for_long_loses_no_round(tmp_path: Path) -> None:
    """Agent 2 is killed in round 2 of 12; its checkpoints are older than all that the others still hold."""
    settings = ["task.model.name=mlp", "task.model.hidden=[8]", "agents=3", "topology.graph=path", "merge.align=none"]
    settings += ["rounds=12", "train.epochs=1"]
    kill = ["faults=[{at: {agent: 2, round: 2, phase: train}, do: kill}]"]
    config = load_config(None, [*settings, *kill])
    folder = prepare(config, tmp_path / "run")
    simulate(config, folder)
    held = [rounds_held(folder / "checkpoints" / str(agent)) for agent in range(3)]
    assert not set(held[2]) & set(held[0])
    simulate(config, folder)  # nothing is left to do, and nothing is thrown away
    assert rounds_held(folder / "checkpoints" / "0") == held[0]
    assert 12 in rounds_held(folder / "checkpoints" / "2")
