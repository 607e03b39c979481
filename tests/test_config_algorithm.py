"""The config's `algorithm`: a name or a mapping, options checked, nothing ignored in silence."""

import re
from pathlib import Path

import pytest

from dimat.agent.build import build_algorithm
from dimat.config import AlgorithmConfig, load_config, parse_config
from dimat.errors import ConfigError, DimatError, PluginError


@pytest.mark.parametrize(
    "settings",
    [
        ["algorithm={name: choco, ratio: 0.2}"],
        ["algorithm={name: choco, options: {ratio: 0.2}}"],
        ["algorithm=choco", "algorithm.ratio=0.2"],
        ["algorithm.ratio=0.2", "algorithm=choco"],
        ["algorithm.name=choco", "algorithm.options.ratio=0.2"],
    ],
)
def test_a_name_and_options_in_every_way_to_write_them(settings: list[str]) -> None:
    assert load_config(None, settings).algorithm == AlgorithmConfig(name="choco", options={"ratio": 0.2})


def test_the_default_is_dimats_own_round() -> None:
    config = load_config(None)
    assert config.algorithm.name == "merge"
    assert build_algorithm(config) is None


def test_what_was_resolved_is_read_again_as_it_is(tmp_path: Path) -> None:
    config = load_config(None, ["algorithm=dsgd", "algorithm.steps=7"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config


def test_dsgd_resolves_to_no_momentum_and_the_others_to_the_default() -> None:
    assert load_config(None, ["algorithm=dsgd"]).train.momentum == 0
    assert load_config(None, ["algorithm=cdmsgd"]).train.momentum == load_config(None).train.momentum > 0
    assert parse_config({"algorithm": {"name": "dsgd"}, "train": {"lr": 0.1}}, source="x").train.momentum == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm=dsgd", "merge.every=2"], "merge.every belongs to algorithm 'merge'"),
        (["algorithm=sgp", "merge.gate.margin=0.1"], "merge.gate belongs to algorithm 'merge'"),
        (["algorithm=dsgd", "exchange.mode=async"], "exchange.mode is 'async'"),
        (["algorithm=dsgd", "membership.elastic=true"], "membership.elastic is True"),
        (["algorithm=dsgd", "launch.ranks_per_agent=2"], "launch.ranks_per_agent is 2"),
        (["algorithm=dsgd", "faults=[{at: {agent: 1, round: 2}, do: corrupt}]"], "faults: corrupt is of one exchange"),
        (["algorithm=dsgd", "faults=[{do: drop_link, between: [0, 1], rounds: [1, 2]}]"], "faults: drop_link"),
        (["algorithm.ratio=0.1"], "algorithm 'merge' takes no ratio"),
        (["algorithm.steps=3"], "algorithm 'merge' takes no steps"),
        (["algorithm={name: choco, ratio: 0.1, options: {ratio: 0.2}}"], "stands twice"),
        (["algorithm={name: dsgd, steps: 0}"], "algorithm.steps"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["algorithm=dsdg"],
            "unknown algorithm 'dsdg'. Did you mean 'dsgd'? Available: cdmsgd, cga, choco, dsgd",
        ),
        (["algorithm=dsgd", "algorithm.momentum=0.9"], "algorithm 'dsgd' has no option 'momentum'. it has no options"),
        (["algorithm=nowhere:thing"], "algorithm module 'nowhere' does not import"),
    ],
)
def test_wrong_names_answer_with_what_there_is(settings: list[str], message: str) -> None:
    with pytest.raises(DimatError, match=re.escape(message)):
        build_algorithm(load_config(None, settings))


OWN = """
from dataclasses import dataclass
from dimat.agent.algorithms import Algorithm
from dimat.agent.algorithms.mixing import local_step

@dataclass(frozen=True)
class Alone(Algorithm):
    def step(self, exchange, batch, state):
        exchange.tally.used({exchange.agent.id: 1.0})
        yield from ()
        return state, local_step(exchange.agent, batch)

def alone(*, patience: int = 1):
    return Alone()

def nothing():
    return "nothing"
"""


def test_an_algorithm_of_ones_own_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["algorithm=own.py:alone", "algorithm.patience=3"])
    assert config.algorithm.name == f"{tmp_path / 'own.py'}:alone"
    assert type(build_algorithm(config)).__name__ == "Alone"
    with pytest.raises(PluginError, match="returned a str, expected"):
        build_algorithm(load_config(None, ["algorithm=own.py:nothing"]))
