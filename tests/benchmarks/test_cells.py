"""Settings, cells and suites: names, the config they stand for, and their order."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import benchmarks.decentralized
from benchmarks.decentralized.cells import GRAPHS, MODELS, PARTITIONS, STARTS, Cell, Setting, matches
from benchmarks.decentralized.methods import METHODS, RIVALS
from benchmarks.decentralized.suites import SUITES, cells_of
from dimat.config import load_config
from dimat.topology import load_topology

ALL = [cell for suite in SUITES for cell in cells_of(suite)]


@pytest.mark.parametrize("module", [each.name for each in pkgutil.iter_modules(benchmarks.decentralized.__path__)])
def test_the_examples_in_docstrings_hold(module: str) -> None:
    if module != "__main__":
        tested = doctest.testmod(importlib.import_module(f"benchmarks.decentralized.{module}"))
        assert tested.failed == 0


def test_a_name_says_everything_that_makes_a_cell_another_one() -> None:
    names = {cell.name for suite in SUITES for cell in cells_of(suite)}
    assert len(names) == len(set(ALL))
    assert all(name == name.strip().replace(" ", "") for name in names)
    one = Setting("har", "cnn", "natural", "ring", 21, "apart", 20, 2, 10)
    assert Cell(one, "dimat", 2).name == "har-cnn-natural-ring-21-apart-r20-e2-p10-dimat-s2"


def test_only_takes_shell_patterns_anywhere_in_the_name() -> None:
    cells = cells_of("small")
    some = [cell for cell in cells if matches(cell, ["digits*classes-ring*-wa-", "fashion*-s2"])]
    assert {cell.method for cell in some if cell.setting.dataset == "digits"} == {"wa"}
    assert {cell.seed for cell in some if cell.setting.dataset != "digits"} == {2}
    assert [cell for cell in cells if matches(cell, [])] == cells


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_begins_with_seed_0_of_everything(suite: str) -> None:
    cells = cells_of(suite)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert {cell.setting for cell in cells if cell.seed == 0} == {cell.setting for cell in cells}


def test_the_methods_of_a_setting_stand_next_to_each_other() -> None:
    first = [cell for cell in cells_of("small") if cell.seed == 0 and not METHODS[cell.method].gradient]
    assert [cell.method for cell in first[:5]] == ["wa", "wa_own", "wm", "dimat_local", "dimat"]
    assert all(len({cell.setting for cell in first[place : place + 5]}) == 1 for place in range(0, len(first), 5))


def test_every_cell_names_what_there_is() -> None:
    for cell in ALL:
        setting = cell.setting
        assert setting.start in STARTS
        assert (setting.start == "apart") == (setting.pretrain > 0)
        assert setting.model in MODELS and setting.partition in PARTITIONS and setting.graph in GRAPHS
        assert cell.method in METHODS
        load_topology(GRAPHS[setting.graph], setting.agents)


def test_small_has_all_cells_of_digits_and_six_of_fashion_mnist() -> None:
    held = [cell for cell in cells_of("small") if cell.method in {"dimat", *RIVALS}]
    digits = {c.setting for c in held if c.setting.dataset == "digits" and c.setting.agents == 5}
    grid = {(s.graph, s.partition, s.start) for s in digits if s.graph in ("ring", "complete")}
    assert len(grid) == 2 * 4 * 3
    assert len({c.setting for c in held if c.setting.dataset == "fashion_mnist"}) == 6
    for setting in {c.setting for c in held}:
        assert len([c for c in held if c.setting == setting]) == 5 * 3


def test_a_cell_is_a_config_and_the_default_sets_nothing_of_how_to_merge() -> None:
    setting = Setting("digits", "tiny", "dirichlet.1", "bipartite", 5, "different", 3, epochs=1)
    configs = {
        name: load_config(None, Cell(setting, name, 7).settings(("task.name=digits",), "different"))
        for name, method in METHODS.items()
        if not method.gradient
    }
    default = load_config(None)
    assert configs["dimat"].merge == default.merge
    assert configs["wa"].merge.align == "none"
    assert (configs["dimat_shared"].merge.probe, configs["dimat_shared"].merge.basis) == ("shared", "each_round")
    published = [configs[name].merge for name in ("wm", "dimat_local", "dimat_shared")]
    assert {(merge.basis, merge.skip) for merge in published} == {("each_round", "never")}
    for config in configs.values():
        assert (config.seed, config.agents, config.rounds, config.threads) == (7, 5, 3, 1)
        assert (config.train.epochs, config.task.partition.alpha, config.init) == (1, 0.1, "different")
        assert config.task.model == {"name": "cnn", "width": 0.125}
        assert Path(config.topology.graph.rpartition(":")[0]).is_file()
