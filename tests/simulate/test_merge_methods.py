"""Agents merge by any fold: their own model is the base, ids are the order, and what cannot work is told before."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import dimat.agent.round as round_module
from dimat.agent.build import build_agent
from dimat.agent.preflight import check_run
from dimat.agent.round import fold_neighbourhood
from dimat.agent.state import Agent
from dimat.cli.app import app
from dimat.config import RunConfig, load_config
from dimat.errors import ConfigError, DimatError, Interrupted, PluginError
from dimat.merge import Fold, builtin_methods, fold, fold_models, make_fold
from dimat.messages import View
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.statedict import StateDict
from dimat.topology import load_topology
from dimat.transport.memory import MemoryHub, MemoryTransport

SMALL = ["task.model.name=mlp", "task.model.hidden=[16]", "train.epochs=1", "train.batch_size=64", "agents=3"]
WITH_STATISTICS = {"fisher"}


def small(method: str, *settings: str) -> RunConfig:
    return load_config(None, [*SMALL, "topology.graph=path", "rounds=2", f"merge.method={method}", *settings])


def run(config: RunConfig, folder: Path) -> Path:
    simulate(config, prepare(config, folder))
    return folder


def bits(folder: Path, round: int) -> list[bytes]:
    return [(folder / "checkpoints" / str(a) / f"{round}.safetensors").read_bytes() for a in range(3)]


def agent(config: RunConfig, number: int = 0) -> Agent:
    return build_agent(config, number, Path(), "s", lambda schema: MemoryTransport(number, "s", schema, MemoryHub()))


class Recorder:
    """Every call of `fold_models` that a simulation makes, with what came out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        monkeypatch.setattr(round_module, "fold_models", self.fold)

    def fold(
        self, method: Fold, models: Sequence[StateDict], weights: Sequence[float], base: StateDict | None
    ) -> Mapping[str, torch.Tensor]:
        kept = [{name: tensor.clone() for name, tensor in model.items()} for model in models]
        merged = fold_models(method, models, weights, base)
        self.calls.append({"models": kept, "weights": list(weights), "base": base, "merged": merged})
        return merged


@pytest.fixture(scope="module")
def mean_bits(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    torch.set_num_threads(1)
    return bits(run(small("mean"), tmp_path_factory.mktemp("mean")), 2)


@pytest.mark.parametrize("method", sorted(set(builtin_methods()) - WITH_STATISTICS))
def test_every_method_carries_a_run_with_the_same_bits_each_time(
    tmp_path: Path, method: str, mean_bits: list[bytes]
) -> None:
    check_run(small(method))
    found = bits(run(small(method), tmp_path), 2)
    if method in ("mean", "dare", "opcm"):
        assert found == (mean_bits if method == "mean" else bits(run(small(method), tmp_path / "again"), 2))
    else:
        assert found != mean_bits


def test_options_reach_the_method(tmp_path: Path) -> None:
    one, other = (
        run(small("ties", f"merge.options.density={density}"), tmp_path / density) for density in ("0.2", "0.9")
    )
    assert bits(one, 2) != bits(other, 2)


def test_the_mean_is_the_sum_in_order_of_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle, bit for bit: float32 sums, own model not first but in its place."""
    recorder = Recorder(monkeypatch)
    run(small("mean", "topology.graph=complete"), tmp_path / "run")
    for call in recorder.calls:
        assert call["base"] is None
        for name, merged in call["merged"].items():
            total = call["models"][0][name] * call["weights"][0]
            for model, weight in zip(call["models"][1:], call["weights"][1:], strict=True):
                total = torch.add(total, model[name], alpha=weight)
            assert torch.equal(merged, total / torch.tensor(sum(call["weights"]), dtype=torch.float32))


def test_the_base_is_the_own_model_after_the_last_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    config = small("task_arithmetic", "merge.calibrate=none", "merge.every=2", "rounds=5", "merge.options.scale=0.7")
    run(config, tmp_path / "run")
    firsts, seconds = recorder.calls[:3], recorder.calls[3:]
    assert len(seconds) == 3
    for call in recorder.calls:  # theta_0 + scale * sum w tau
        base, models = call["base"], call["models"]
        for name, merged in call["merged"].items():
            moved = sum(w * (m[name] - base[name]) for w, m in zip(call["weights"], models, strict=True))
            torch.testing.assert_close(merged, base[name] + 0.7 * moved, rtol=1e-5, atol=1e-6)
    for second in seconds:  # agents merge in an order of their own; each finds its first merge again
        assert sum(all(torch.equal(second["base"][n], t) for n, t in one["merged"].items()) for one in firsts) == 1


def test_the_first_base_is_the_start_in_the_agreed_basis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    config = small("opcm", "rounds=1", "merge.basis=agree")
    run(config, tmp_path / "run")
    num_renumbered = 0
    for number in range(3):
        start = agent(config, number)
        inputs = start.own_samples[0][0]
        start.model.eval()
        with torch.no_grad():
            expected = start.model(inputs)
            weight = start.model.state_dict()["fc1.weight"].clone()
            found = []
            for call in recorder.calls:
                start.model.load_state_dict(call["base"])
                if torch.allclose(start.model(inputs), expected, rtol=1e-4, atol=1e-5):
                    found.append(call["base"])
        assert len(found) == 1, "the same function as at the start, of one agent"
        num_renumbered += not torch.equal(found[0]["fc1.weight"], weight)
        assert torch.equal(found[0]["fc1.weight"].sort(0).values, weight.sort(0).values)
    assert num_renumbered == 2, "all but the root"


def test_adopted_weights_are_the_first_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    config = small("opcm", "rounds=1", "merge.basis=adopt")
    run(config, tmp_path / "run")
    root = agent(config, load_topology("path", 3).tree()[0]).model.state_dict()
    assert len(recorder.calls) == 3
    assert all(torch.equal(call["base"][name], tensor) for call in recorder.calls for name, tensor in root.items())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_models_are_absorbed_in_the_order_of_ids(number: int) -> None:
    config = small("slerp", "topology.graph=complete")
    agents = [agent(config, other) for other in range(3)]
    states = {one.id: one.model.state_dict() for one in agents}
    weights = {0: 0.2, 1: 0.5, 2: 0.3}
    others = {peer: state for peer, state in reversed(states.items()) if peer != number}
    merged = fold_neighbourhood(agents[number], states[number], others, weights)
    expected = fold("slerp", [states[peer] for peer in range(3)], weights=[0.2, 0.5, 0.3])
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    other = fold("slerp", [states[peer] for peer in (2, 1, 0)], weights=[0.3, 0.5, 0.2])
    assert not torch.equal(merged["fc1.weight"], other["fc1.weight"])


@pytest.mark.parametrize("method", ["mean", "opcm", "magmax", "dare"])
def test_counters_stay_the_agents_own(method: str) -> None:
    mine = agent(small(method, "task.model=cnn"))
    state = {name: tensor.clone() for name, tensor in mine.model.state_dict().items()}
    counters = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    theirs = {name: tensor + 9 for name, tensor in state.items()}
    merged = fold_neighbourhood(mine, state, {1: theirs}, {0: 0.5, 1: 0.5})
    assert counters
    assert all(torch.equal(merged[name], state[name]) for name in counters)
    assert any(not torch.equal(merged[name], state[name]) for name in state)


@pytest.mark.parametrize("round", [1, 3])
def test_a_stopped_run_with_a_base_continues_to_the_same_bits(tmp_path: Path, round: int) -> None:
    """Between two merges the base is a model of its own: before the first one, and after it."""
    config = small("opcm", "merge.every=2", "rounds=4")
    whole = run(config, tmp_path / "whole")

    def stop(view: View) -> None:
        if view.newest is not None and view.newest.round == round:
            raise Interrupted("enough")

    folder = tmp_path / "halves"
    with pytest.raises(Interrupted):
        simulate(config, prepare(config, folder), stop)
    held = load_file(folder / "checkpoints" / "0" / f"{round}.safetensors")
    assert not torch.equal(held["base.fc1.weight"], held["model.fc1.weight"])
    lost = Path(shutil.copytree(folder, tmp_path / "lost"))
    assert bits(run(config, folder), 4) == bits(whole, 4)
    # The bits hang on it: with another base the run ends elsewhere.
    for path in (lost / "checkpoints").glob(f"*/{round}.safetensors"):
        save_file({name: t for name, t in load_file(path).items() if not name.startswith("base.")}, path)
    assert bits(run(config, lost), 4) != bits(whole, 4)


def test_a_base_takes_room_only_where_it_is_another_model(tmp_path: Path) -> None:
    for method, kept in (("opcm", [False, True, False]), ("mean", [False, False, False])):
        folder = run(small(method, "merge.every=2", "rounds=4"), tmp_path / method)
        files = [load_file(folder / "checkpoints" / "0" / f"{round}.safetensors") for round in (2, 3, 4)]
        assert [any(name.startswith("base.") for name in file) for file in files] == kept


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        (["merge.method=teis"], PluginError, "Did you mean 'ties'"),
        (
            ["merge.method=ties", "merge.options.desnity=0.3"],
            ConfigError,
            "no option 'desnity'. Did you mean 'density'",
        ),
        (["merge.method=ties", "merge.options.density=3"], ConfigError, "density is 3, expected a number"),
        (["merge.method=fisher"], ConfigError, "'fisher' needs fisher statistics"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(
    tmp_path: Path, settings: list[str], kind: type[DimatError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("data was read before the method was looked at")

    monkeypatch.setattr("dimat.agent.build.build_task", read)
    with pytest.raises(kind, match=words):
        check_run(load_config(None, [*SMALL, *settings]))
    path = tmp_path / "run.yaml"
    path.write_text("agents: 3\n")
    told = CliRunner().invoke(app, ["check", "config", str(path), *[x for one in settings for x in ("-s", one)]])
    assert told.exit_code != 0
    assert isinstance(told.exception, kind) or told.exit_code == 2


def test_an_option_beside_the_method_reaches_it() -> None:
    assert small("ties", "merge.density=0.3") == small("ties", "merge.options.density=0.3")


def test_a_method_of_ones_own_is_found_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "own.py").write_text(
        "import dataclasses\nfrom dimat.merge import make_fold\n\n"
        'def half(*, of: str = "mean"):\n    """The mean."""\n    return dataclasses.replace(make_fold(of))\n'
    )
    path = tmp_path / "beside" / "run.yaml"
    path.write_text("merge: {method: 'own.py:half', options: {of: mean}}\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(path, [*SMALL, "topology.graph=path", "rounds=1"])
    assert config.merge.method == f"{tmp_path / 'beside' / 'own.py'}:half"
    assert bits(run(config, tmp_path / "own"), 1) == bits(run(small("mean", "rounds=1"), tmp_path / "mean"), 1)


def test_a_fold_that_keeps_all_models_serves_agents(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "import torch\nfrom dimat.merge import Fold\n\n"
        'def median():\n    """Entry by entry."""\n'
        "    def absorb(state, x, base, w, stats=None, survey=None):\n"
        "        return {**state, str(len(state)): x}\n"
        "    return Fold(init=lambda base: {}, absorb=absorb, combine=lambda a, b: a, memory='linear',\n"
        "        finish=lambda state, base, scalars: torch.stack(list(state.values())).median(0).values)\n"
    )
    assert make_fold(f"{path}:median").memory == "linear"
    assert len(bits(run(small(f"{path}:median", "topology.graph=complete"), tmp_path / "run"), 2)) == 3
