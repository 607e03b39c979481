"""What every algorithm does that exchanges while it trains, over memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from algorithm_cases import NAMES, OWN, settings
from safetensors.torch import load_file

from dimat.agent.algorithms import builtin_algorithms, make_algorithm
from dimat.agent.algorithms.registry import options_of
from dimat.agent.build import build_agent
from dimat.config import RunConfig, load_config
from dimat.coordinator import Store
from dimat.errors import Interrupted
from dimat.messages import Report, View
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.transport.memory import MemoryHub, MemoryTransport

ROUNDS, AGENTS, STEPS = 3, 4, 4


def run(config: RunConfig, folder: Path, on_view: Callable[[View], None] | None = None) -> Path:
    simulate(config, prepare(config, folder), on_view)
    return folder


def bits(folder: Path, agents: range = range(AGENTS), round: int = ROUNDS) -> list[bytes]:
    """Weights, optimiser and what the algorithm remembers."""
    return [(folder / "checkpoints" / str(a) / f"{round}.safetensors").read_bytes() for a in agents]


def reports(folder: Path) -> dict[tuple[int, int], Report]:
    with Store.open(folder, read_only=True) as store:
        return {(report.agent, report.round): report for report in store.reports()}


def distance(folder: Path, round: int = ROUNDS) -> float:
    """Root mean square distance of the agents' parameters from their mean."""
    rows = []
    for agent in range(AGENTS):
        held = load_file(folder / "checkpoints" / str(agent) / f"{round}.safetensors")
        rows.append(
            np.concatenate([t.numpy().ravel() for name, t in sorted(held.items()) if name.startswith("model.")])
        )
    models = np.stack(rows)
    return float(np.sqrt(((models - models.mean(axis=0)) ** 2).sum(axis=1).mean()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One run of each algorithm, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            torch.set_num_threads(1)
            made[name] = run(load_config(None, settings(name)), tmp_path_factory.mktemp(name) / "run")
        return made[name]

    return of


def test_every_algorithm_is_here() -> None:
    assert set(NAMES) == set(OWN)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_what_its_options_are(name: str) -> None:
    maker = builtin_algorithms()[name]
    text = maker.__doc__ or ""
    assert "arXiv" in text
    assert all(f"{option}:" in text for option in options_of(maker))
    assert make_algorithm(name) == make_algorithm(name), "frozen values"


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_end_with_equal_bits(name: str, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    again = run(load_config(None, settings(name)), tmp_path / "again")
    assert bits(again) == bits(undisturbed(name))
    other = run(load_config(None, settings(name, "seed=1", "rounds=1")), tmp_path / "other")
    assert bits(other, round=1) != bits(again, round=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_stopped_continues_to_the_same_bits(
    name: str, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    def stop(view: View) -> None:
        if view.newest is not None and view.newest.round == 1:
            raise Interrupted("enough")

    config = load_config(None, settings(name))
    with pytest.raises(Interrupted):
        run(config, tmp_path, stop)
    assert not (tmp_path / "checkpoints" / "0" / f"{ROUNDS}.json").exists()
    run(config, tmp_path)
    assert bits(tmp_path) == bits(undisturbed(name))


@pytest.mark.parametrize("name", NAMES)
def test_its_reports_are_whole(name: str, undisturbed: Callable[[str], Path]) -> None:
    told = reports(undisturbed(name))
    assert set(told) == {(agent, round) for agent in range(AGENTS) for round in range(1, ROUNDS + 1)}
    for report in told.values():
        assert {"loss", "lr", "accuracy_before", "accuracy", "loss_before", "loss_after"} <= set(report.metrics)
        assert {"train", "publish", "wait", "gather", "fold", "evaluate", "sketch"} <= set(report.seconds)
        assert report.sketch_before and report.sketch_after and not report.missing
        assert sum(report.weights.values()) == pytest.approx(1)
        assert set(report.bytes_received) == set(report.weights) - {report.agent}


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> float:
    """How far agents are from each other that have trained alone, but for one meeting of pairs."""
    more = ["rounds=1", "algorithm.local_steps=1000"]
    return distance(run(load_config(None, settings("swarm", *more)), tmp_path_factory.mktemp("apart") / "run"), round=1)


@pytest.mark.parametrize("name", NAMES)
def test_agents_on_a_ring_come_together(name: str, undisturbed: Callable[[str], Path], apart: float) -> None:
    """From different initialisations, in twelve exchanges, while they train."""
    assert distance(undisturbed(name)) < 0.5 * apart


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name: str, tmp_path: Path) -> None:
    config = load_config(None, settings(name, "init=same", "algorithm.steps=20", "train.lr=0.1"))
    told = reports(run(config, tmp_path))
    assert np.mean([told[agent, ROUNDS].metrics["accuracy"] for agent in range(AGENTS)]) > 0.6


@pytest.mark.parametrize("name", NAMES)
def test_a_neighbour_that_dies_hangs_nobody(name: str, tmp_path: Path) -> None:
    fault = "faults=[{at: {agent: 1, round: 2, phase: gather}, do: kill}]"
    told = reports(run(load_config(None, settings(name, fault)), tmp_path))
    left = {(agent, round) for agent in (0, 2, 3) for round in range(1, ROUNDS + 1)}
    assert left <= set(told) and (1, ROUNDS) not in told
    assert 1 in told[0, 2].missing or 1 in told[2, 2].missing
    assert "exchanges" in {**told[0, 2].missing, **told[2, 2].missing}[1]
    for agent, round in left:
        assert sum(told[agent, round].weights.values()) == pytest.approx(1)
    assert 1 not in told[0, ROUNDS].weights and 1 not in told[2, ROUNDS].weights


@pytest.mark.parametrize("name", NAMES)
def test_one_that_was_held_up_finds_its_way_back(name: str, tmp_path: Path) -> None:
    """Its neighbours give up on it in two exchanges; in the last round nobody is missing any more."""
    fault = "faults=[{at: {agent: 1, round: 2, phase: gather}, do: stall, seconds: 10}]"
    told = reports(run(load_config(None, settings(name, fault)), tmp_path))
    assert set(told) == {(agent, round) for agent in range(AGENTS) for round in range(1, ROUNDS + 1)}
    assert any(1 in told[agent, 2].missing for agent in (0, 2))
    assert not any(told[agent, ROUNDS].missing for agent in range(AGENTS))


def test_copies_that_went_apart_are_fetched_whole(tmp_path: Path) -> None:
    """After the same disturbance both ends of every edge hold the same copies again, bit for bit."""
    fault = "faults=[{at: {agent: 1, round: 2, phase: gather}, do: stall, seconds: 10}]"
    run(load_config(None, settings("choco", fault)), tmp_path)
    held = [load_file(tmp_path / "checkpoints" / str(agent) / f"{ROUNDS}.safetensors") for agent in range(AGENTS)]
    names = [name.removeprefix("model.") for name in held[0] if name.startswith("model.")]
    for agent in range(AGENTS):
        for peer in ((agent - 1) % AGENTS, (agent + 1) % AGENTS):
            for name in names:
                assert torch.equal(held[agent][f"algorithm.{peer}.{name}"], held[peer][f"algorithm.{peer}.{name}"])
    told = reports(tmp_path)
    whole = sum(tensor.numel() * 4 for name, tensor in held[0].items() if name.startswith("model."))
    disturbed = [told[agent, round].bytes_received.get(1, 0) for agent in (0, 2) for round in (2, ROUNDS)]
    assert max(disturbed) >= whole, "one whole copy travelled"


@pytest.mark.parametrize("name", NAMES)
def test_batch_norms_statistics_are_mixed_and_counters_are_not(name: str, tmp_path: Path) -> None:
    """On the complete graph everybody ends with nearly the same statistics."""
    more = ["task.model=cnn", "topology.graph=complete", "rounds=1", "algorithm.steps=2"]
    run(load_config(None, settings(name, *more)), tmp_path)
    held = [load_file(tmp_path / "checkpoints" / str(agent) / "1.safetensors") for agent in range(AGENTS)]
    means = [name for name in held[0] if name.startswith("model.") and name.endswith("running_mean")]
    assert means
    if name != "swarm":  # pairs only
        for which in means:
            stacked = torch.stack([one[which] for one in held])
            assert float((stacked - stacked.mean(0)).abs().max()) < 1e-6
    counters = [name for name in held[0] if name.startswith("model.") and name.endswith("num_batches_tracked")]
    assert all(int(one[which]) == 2 for one in held for which in counters)


def test_agents_with_unequal_shards_do_the_same_number_of_steps(tmp_path: Path) -> None:
    """As many as the largest shard needs; whoever has less goes through its own again."""
    config = load_config(
        None,
        [
            "algorithm=dsgd", "task.model.name=mlp", "task.model.hidden=[8]", "train.epochs=2", "rounds=1", "agents=3",
            "train.batch_size=16", "task.partition.alpha=0.2", "topology.graph=complete",
        ],
    )  # fmt: skip
    told = reports(run(config, tmp_path))
    sizes = []
    for number in range(3):
        agent = build_agent(
            config, number, tmp_path, "s", lambda schema, n=number: MemoryTransport(n, "s", schema, MemoryHub())
        )
        sizes.append(agent.task.num_samples)
        model_bytes = agent.schema.num_bytes
    assert len({size // 16 for size in sizes}) == 3, "shards that differ"
    steps = 2 * -(-max(sizes) // 16)
    assert told[0, 1].bytes_received == dict.fromkeys((1, 2), steps * model_bytes)
