"""Cells in order, in time, and none twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.decentralized import __main__ as command
from benchmarks.decentralized import pretrain, table
from benchmarks.decentralized.cells import Cell, Setting
from benchmarks.decentralized.pool import next_cell, run_all
from benchmarks.decentralized.table import NUMBERS, Row
from benchmarks.decentralized.work import Places
from dimat.errors import DimatError

SETTING = Setting("digits", "tiny", "iid", "ring", 3, "different", 2)
CELLS = [Cell(SETTING, method, 0) for method in ("wa", "wm", "dimat")]


def rows(cell: Cell, places: Places | None = None) -> list[Row]:
    del places
    numbers = dict.fromkeys(NUMBERS, 0.5)
    return [Row(cell, number, numbers) for number in range(1, cell.setting.rounds + 1)]


def places(folder: Path) -> Places:
    return Places(folder / "data", folder / "cache", folder)


def nothing_fails(cell: Cell, error: DimatError) -> None:
    raise AssertionError(f"{cell}: {error}")


@pytest.mark.parametrize("num_cores", [1, 2])
def test_every_cell_is_run_once(tmp_path: Path, num_cores: int) -> None:
    made: dict[Cell, list[Row]] = {}
    left = run_all(CELLS, places(tmp_path), num_cores, made.__setitem__, nothing_fails, run=rows)
    assert left == []
    assert made == {cell: rows(cell) for cell in CELLS}


@pytest.mark.parametrize("num_cores", [1, 2])
def test_no_cell_begins_after_the_time(tmp_path: Path, num_cores: int) -> None:
    made: dict[Cell, list[Row]] = {}
    left = run_all(CELLS, places(tmp_path), num_cores, made.__setitem__, nothing_fails, until=0.0, run=rows)
    assert (left, made) == (CELLS, {})


def test_a_cell_that_cannot_be_run_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    def run(cell: Cell, places: Places) -> list[Row]:
        if cell.method == "wm":
            raise DimatError("no")
        return rows(cell)

    made: dict[Cell, list[Row]] = {}
    failed: dict[Cell, DimatError] = {}
    assert run_all(CELLS, places(tmp_path), 1, made.__setitem__, failed.__setitem__, run=run) == []
    assert [cell.method for cell in made] == ["wa", "dimat"]
    assert [cell.method for cell in failed] == ["wm"]


def dies(cell: Cell, places: Places) -> list[Row]:
    os._exit(3)


def test_a_worker_that_dies_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    with pytest.raises(DimatError, match="a worker process died in the middle of a cell"):
        run_all(CELLS, places(tmp_path), 2, lambda *_: None, nothing_fails, run=dies)


def test_a_start_that_is_being_made_is_waited_for_and_others_pass(tmp_path: Path) -> None:
    apart = Setting("digits", "tiny", "iid", "ring", 3, "apart", 2, pretrain=1)
    first, second = Cell(apart, "wa", 0), Cell(apart, "wm", 0)
    other_seed, free = Cell(apart, "wa", 1), Cell(SETTING, "wa", 0)
    where = places(tmp_path)
    assert next_cell([second, free], [first], where) == free
    assert next_cell([second, other_seed], [first], where) == other_seed
    assert next_cell([second], [first], where) is None
    pretrain.folder_of(first, where.cache).mkdir(parents=True)
    assert next_cell([second, free], [first], where) == second


def test_starts_are_shared_by_methods_and_graphs_alone() -> None:
    def key(method: str = "wa", seed: int = 0, **changes: object) -> str:
        given = {"dataset": "digits", "model": "tiny", "partition": "iid", "graph": "ring", "agents": 3, "pretrain": 1}
        return pretrain.key(Cell(Setting(**{**given, "start": "apart", "rounds": 2, **changes}), method, seed))  # type: ignore[arg-type]

    assert key() == key(method="dimat") == key(graph="complete") == key(rounds=9)
    changed = [
        key(seed=1),
        key(pretrain=2),
        key(agents=4),
        key(partition="classes"),
        key(model="cnn"),
        key(dataset="har"),
    ]
    assert len({key(), *changed}) == 7
    assert key(start="same") == ""


class Killed(BaseException):
    """The end of the process, as far as anything here can tell."""


def smoke(folder: Path, *more: str) -> int:
    return command.main(["--suite", "smoke", "--cores", "1", "--docs", str(folder), "--cache", str(folder), *more])


def test_what_is_finished_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of the third cell: two are in the table, the third is begun anew."""
    begun: list[str] = []

    def run(cell: Cell, places: Places) -> list[Row]:
        begun.append(cell.name)
        if len(begun) == 3:
            raise Killed
        return rows(cell)

    monkeypatch.setattr(command, "write_report", lambda docs: None)
    monkeypatch.setattr(run_all, "__defaults__", (float("inf"), run))
    with pytest.raises(Killed):
        smoke(tmp_path)
    path = tmp_path / "results" / "smoke.csv"
    assert [cell.name for cell in dict.fromkeys(row.cell for row in table.read(path))] == begun[:2]
    first = path.read_text()
    interrupted = begun[2]
    assert smoke(tmp_path) == 0
    assert begun.count(interrupted) == 2
    assert all(begun.count(name) == 1 for name in begun if name != interrupted)
    assert path.read_text().startswith(first)
    before = len(begun)
    assert smoke(tmp_path) == 0
    assert len(begun) == before
    assert smoke(tmp_path, "--again", "apart*-dimat-") == 0
    assert begun[before:] == [name for name in dict.fromkeys(begun) if "apart" in name and "-dimat-" in name]


def test_a_dry_run_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke(tmp_path, "--dry-run", "--only", "apart*-wa-") == 0
    told = capsys.readouterr()
    assert "1 of 1 cells to run, about 0.00 h of one core" in told.err
    assert told.out.split()[-1] == "digits-tiny-dirichlet.5-complete-2-apart-r2-e1-p1-wa-s0"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--suite", "paper", "--dry-run", "--data", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert "left out cifar10, data: no file cifar10_20k.npz in the data folder" in told
    assert command.main(["--suite", "small", "--dry-run", "--only", "nowhere"]) == 1
    assert "no cell of suite small matches nowhere" in capsys.readouterr().err


def test_a_method_that_the_config_does_not_know_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "why_not", lambda method: "not yet" if method in ("sgp", "wm") else None)
    assert smoke(tmp_path, "--dry-run") == 0
    told = capsys.readouterr()
    assert "left out sgp, wm, method: not yet" in told.err
    assert "-wa-" in told.out and "-wm-" not in told.out


def test_an_error_of_usage_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "smoke.csv").write_text("a,b\n")
    assert smoke(tmp_path) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "other columns" in told
