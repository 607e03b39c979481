"""The table: its schema, what is finished, and adding to it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.decentralized import table
from benchmarks.decentralized.cells import Setting
from dimat.errors import UsageError
from tests.benchmarks.conftest import Tables

COLUMNS = (
    "dataset,model,partition,graph,agents,start,rounds,epochs,pretrain,method,seed,round,"
    "accuracy_before,accuracy_before_min,accuracy,accuracy_min,accuracy_averaged,consensus_before,consensus,bytes,"
    "s_train,s_wait,s_publish,s_gather,s_align,s_check,s_fold,s_calibrate,s_gate,s_evaluate,s_sketch,s_checkpoint,"
    "s_other"
)


def test_the_columns_are_those_that_committed_tables_have(tables: Tables) -> None:
    text = table.to_csv(tables.rows("wa", 1, [0.25, 0.5, 0.75, 1], bytes=1e9, s_train=0.123456789))
    lines = text.splitlines()
    assert lines[0] == COLUMNS
    assert lines[1] == "digits,cnn,iid,ring,5,different,4,2,0,wa,1,1,0,0,0.25,0.25,,0,0,1000000000,0.12346" + ",0" * 12
    assert len(lines) == 1 + 4


def test_rows_come_back_as_they_went(tables: Tables) -> None:
    rows = tables.rows("dimat", 2, [0.5, 0.25, 0.125, 1.0], bytes=12345.0)
    back = table.from_csv(table.to_csv(rows))
    assert [(row.cell, row.round) for row in back] == [(row.cell, row.round) for row in rows]
    for old, new in zip(rows, back, strict=True):
        assert all(math.isnan(new.numbers[k]) if math.isnan(v) else new.numbers[k] == v for k, v in old.numbers.items())


def test_another_table_is_refused_with_what_differs() -> None:
    with pytest.raises(UsageError, match="other columns than this version writes: speed"):
        table.from_csv(COLUMNS + ",speed\n", "small.csv")
    with pytest.raises(UsageError, match=r"small\.csv, line 2"):
        table.from_csv(COLUMNS + "\ndigits,cnn\n", "small.csv")


def test_a_cell_is_finished_when_all_its_rounds_are_there(tables: Tables) -> None:
    whole, part = tables.rows("wa", 0, [0.1] * 4), tables.rows("wm", 0, [0.1] * 3)
    assert table.finished([*whole, *part]) == {whole[0].cell}


def test_adding_keeps_the_others_and_replaces_the_same_cell(tmp_path: Path, tables: Tables) -> None:
    path = tmp_path / "results" / "small.csv"
    table.add(path, tables.rows("wa", 0, [0.1] * 4))
    table.add(path, tables.rows("wm", 0, [0.2] * 4))
    table.add(path, tables.rows("wa", 0, [0.3] * 4))
    rows = table.read(path)
    assert [(row.cell.method, row.numbers["accuracy"]) for row in rows] == [("wm", 0.2)] * 4 + [("wa", 0.3)] * 4
    other = Setting("digits", "cnn", "iid", "ring", 5, "different", 5)
    table.add(path, tables.rows("wa", 0, [0.4] * 5, setting=other))
    assert len(table.finished(table.read(path))) == 3
    assert [path.name for path in path.parent.iterdir()] == ["small.csv"]
