"""From a cell to its rows: data, pre-trained agents, the averaged model, the numbers of a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.decentralized import averaged, data, pretrain
from benchmarks.decentralized.cells import Cell, Setting
from benchmarks.decentralized.measures import diverged, seconds_of
from benchmarks.decentralized.report import section
from benchmarks.decentralized.table import from_csv, to_csv
from benchmarks.decentralized.work import Places, rows_of, run_cell
from dimat.agent.build import build_task
from dimat.config import load_config
from dimat.coordinator import Store
from dimat.errors import UsageError
from dimat.messages import Report, RoundSummary, View
from dimat.runfolder import prepare
from dimat.simulate import simulate

APART = Setting("digits", "tiny", "classes", "complete", 3, "apart", 2, epochs=1, pretrain=1)


def archive(folder: Path, name: str = "mnist.npz") -> Path:
    """Sixty samples of three classes, each sample its own number."""
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    numbers = np.arange(60, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None], (60, 4, 4))
    path = folder / name
    np.savez(path, x_train=images, y_train=labels, x_test=images[::2], y_test=labels[::2], subject_train=numbers)
    return path


def test_a_subset_has_its_classes_equally_often_and_goes_by_the_seed(tmp_path: Path) -> None:
    source = archive(tmp_path)
    spec = data.DataFile("mnist.npz", 24, 9)
    held = []
    for seed in (0, 0, 1):
        target = tmp_path / "cache" / f"{len(held)}.npz"
        data.write_subset(source, target, spec, seed)
        with np.load(target, allow_pickle=False) as subset:
            held.append({name: subset[name] for name in subset.files})
    first, again, other = held
    assert np.bincount(first["y_train"]).tolist() == [8, 8, 8]
    assert np.bincount(first["y_test"]).tolist() == [3, 3, 3]
    assert first["x_train"][:, 0, 0].tolist() == first["subject_train"].tolist()  # rows stay together
    assert len(set(first["subject_train"].tolist())) == 24
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert first["subject_train"].tolist() != other["subject_train"].tolist()
    with pytest.raises(UsageError, match="class 2 has 10 samples, and a balanced 33 take 11 of it"):
        data.write_subset(source, tmp_path / "x.npz", data.DataFile("mnist.npz", 33, 9), 0)


def test_a_subset_is_made_once_and_read_by_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = archive(tmp_path)
    monkeypatch.setattr(data, "FILES", {"mnist": data.DataFile("mnist.npz", 24, 9)})
    settings = data.task_settings("mnist", 0, tmp_path, tmp_path / "cache")
    source.unlink()
    with pytest.raises(UsageError, match=r"no file mnist\.npz in the data folder"):
        data.task_settings("mnist", 0, tmp_path, tmp_path / "cache")
    dataset = build_task(load_config(None, settings)).dataset()
    assert (len(dataset.y_train), len(dataset.y_test), dataset.input_shape) == (24, 9, (1, 4, 4))
    assert float(dataset.scaling.apply(torch.tensor([255.0]))) == 1.0  # the task itself brings bytes to [-1, 1]


def test_agents_that_were_trained_apart_are_made_once_and_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, cell = ("task.name=digits",), Cell(APART, "wa", 0)
    made = pretrain.checkpoints(cell, task, tmp_path / "one", tmp_path)
    again = pretrain.checkpoints(cell, task, tmp_path / "two", tmp_path)
    names = [f"{agent}.safetensors" for agent in range(3)]
    assert sorted(path.name for path in made.iterdir()) == names
    assert [(made / n).read_bytes() for n in names] == [(again / n).read_bytes() for n in names]
    assert [path.name for path in made.parent.iterdir()] == [made.name]  # nothing half-made beside it
    # Nobody heard of anybody: agent 0 has two classes and calls nothing by another one.
    own = build_task(load_config(None, [*task, "task.model.name=cnn", "task.model.width=0.125"]))
    model = own.model()
    heads = []
    for name in names:
        model.load_state_dict(load_file(made / name))
        heads.append(model.head.bias.detach().topk(4).indices.tolist())
    assert all({bias % 3 for bias in best[:3]} == {agent} for agent, best in enumerate(heads))
    monkeypatch.setattr("dimat.simulate.simulate", None)  # a second call may not train
    assert pretrain.checkpoints(Cell(APART, "dimat", 0), task, tmp_path / "one", tmp_path) == made


def test_a_cell_becomes_a_row_a_round(tmp_path: Path) -> None:
    rows = run_cell(Cell(APART, "wa", 0), Places(tmp_path, tmp_path, tmp_path))
    assert [(row.cell, row.round) for row in rows] == [(Cell(APART, "wa", 0), 1), (Cell(APART, "wa", 0), 2)]
    start = load_file(pretrain.folder_of(Cell(APART, "wa", 0), tmp_path) / "0.safetensors")
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in start.values())
    assert all(row.numbers["bytes"] == 6 * num_bytes for row in rows)  # three agents read two each
    assert [path.name for path in tmp_path.iterdir()] == ["apart"]  # runs are deleted


def test_the_mean_of_models() -> None:
    one = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    two = {"w": torch.tensor([2.0, 6.0]), "n": torch.tensor(9)}
    mean = averaged.mean([one, two])
    assert mean["w"].tolist() == [1.5, 4.0]
    assert (mean["w"].dtype, int(mean["n"])) == (torch.float32, 3)


def test_the_averaged_model_of_agents_that_are_one_is_each_of_them(tmp_path: Path) -> None:
    """After a merge on the complete graph all agents are equal; without batch norms nothing else tells them apart."""
    settings = ["agents=3", "rounds=4", "topology.graph=complete", "merge.align=none", "task.model=mlp"]
    config = load_config(None, [*settings, "train.epochs=1", "task.partition.scheme=iid"])
    folder = prepare(config, tmp_path / "run")
    measured = averaged.Averaged(build_task(config), folder, 3, 4)

    def on_view(view: View) -> None:
        measured.up_to(view.newest.round if view.newest else 0)

    simulate(config, folder, on_view)
    assert set(measured.accuracy) == {1, 3, 4}
    with Store.open(folder, read_only=True) as store:
        for summary in store.summaries():
            if summary.round in measured.accuracy:
                assert measured.accuracy[summary.round] == pytest.approx(summary.mean_accuracy, abs=0.003)


def test_a_run_that_diverged_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounds that it did not come to are there as it was left, and the report says so."""
    setting = Setting("digits", "tiny", "iid", "complete", 2, "same", 6, epochs=1)
    monkeypatch.setattr(
        "dimat.coordinator.convergence.divergence",
        lambda summaries, reports, options: "agent 0 diverged" if len(summaries) == 2 else "",
    )
    rows = run_cell(Cell(setting, "wa", 0), Places(tmp_path, tmp_path, tmp_path))
    assert [row.round for row in rows] == [1, 2, 3, 4, 5, 6]
    last = diverged(rows)[rows[0].cell]
    assert 1 <= last < 6
    assert all(row.numbers["bytes"] > 0 for row in rows[:last])
    assert all(row.numbers["bytes"] == 0 and seconds_of(row) == 0 for row in rows[last:])
    assert {row.numbers["accuracy"] for row in rows[last:]} == {rows[last - 1].numbers["accuracy"]}
    assert f"wa diverged in round {last} on digits tiny iid complete 2 same, seed 0" in section("small", rows, [])
    assert diverged(from_csv(to_csv(rows))) == diverged(rows)


def test_the_numbers_of_a_row_are_those_of_the_reports() -> None:
    cell = Cell(APART, "wa", 0)
    reports = [
        Report(
            agent, "s", 1, {"accuracy_before": 0.25 * agent, "accuracy": 0.5},
            seconds={"train": 1.0 + agent, "wait": 7.0, "dream": 0.5}, bytes_received={2: 10, 3: agent},
        )
        for agent in (1, 2)
    ]  # fmt: skip
    summary = RoundSummary(1, 0.5, 0.4, 0.375, consensus_distance=1.5, consensus_distance_before=3.0)
    (row,) = rows_of(cell, [summary], [*reports, Report(1, "s", 2, {"accuracy_before": 0.0})], {})
    numbers = row.numbers
    assert (numbers["accuracy"], numbers["accuracy_min"], numbers["accuracy_before"]) == (0.5, 0.4, 0.375)
    assert numbers["accuracy_before_min"] == 0.25
    assert (numbers["consensus_before"], numbers["consensus"], numbers["bytes"]) == (3.0, 1.5, 23.0)
    assert (numbers["s_train"], numbers["s_wait"], numbers["s_other"], numbers["s_fold"]) == (2.5, 7.0, 0.5, 0.0)
    assert math.isnan(numbers["accuracy_averaged"])
