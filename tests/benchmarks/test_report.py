"""What the report says of tables whose numbers can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.decentralized import measures, report, table
from benchmarks.decentralized import tables as markdown
from benchmarks.decentralized.cells import Setting
from benchmarks.decentralized.measures import by_setting, crossover, curve, lead, within
from benchmarks.decentralized.table import Row
from tests.benchmarks.conftest import Tables

DOCS = Path(__file__).parents[2] / "docs"


def compared(tables: Tables, dimat: float = 0.6) -> list[Row]:
    """Four rounds, two seeds; round 1 of wa is .4 and .6, of wm .5 and .5, of dimat_local .2 and .4."""
    first = {"wa": (0.4, 0.6), "wa_own": (0.1, 0.1), "wm": (0.5, 0.5), "dimat_local": (0.2, 0.4)}
    first["dimat"] = (dimat - 0.1, dimat + 0.1)
    return [
        row
        for method, accuracies in first.items()
        for seed, accuracy in enumerate(accuracies)
        for row in tables.rows(method, seed, [accuracy, 0.7, 0.8, 0.9])
    ]


def test_mean_and_deviation_over_the_seeds(tables: Tables) -> None:
    methods = by_setting(compared(tables))[tables.setting]
    at = measures.at_round(methods["wa"], 1)
    assert (at.mean, at.num) == (pytest.approx(0.5), 2)
    assert at.std == pytest.approx(math.sqrt(0.02))  # two values .2 apart: .1 √2
    assert math.isnan(measures.spread([0.5]).std)
    assert math.isnan(measures.spread([math.nan]).mean)


@pytest.mark.parametrize(("dimat", "verdict"), [(0.6, "holds"), (0.485, "holds"), (0.484, "**FAILS**")])
def test_the_default_may_be_fifteen_thousandths_below_the_best_rival(
    tables: Tables, dimat: float, verdict: str
) -> None:
    found = by_setting(compared(tables, dimat))
    assert lead(found[tables.setting], 1) == pytest.approx(dimat - 0.5)
    lines = markdown.leads(found)
    assert lines[2] == f"| digits cnn iid ring 5 different | {dimat - 0.5:+.3f} | +0.000 | +0.000 | 2 | {verdict} |"
    assert f"it holds in {int(verdict == 'holds')} of 1 settings." in lines[-1]
    best = f"{max(dimat - 0.5, 0):+.3f}, after round {1 if dimat > 0.5 else 4} of digits cnn iid ring 5 different."
    assert lines[-1].endswith(f"The largest lead is {best}")


def test_only_seeds_that_all_have_are_compared(tables: Tables) -> None:
    found = by_setting([*compared(tables), *tables.rows("wa", 2, [1.0] * 4)])
    assert lead(found[tables.setting], 1) == pytest.approx(0.1)
    assert math.isnan(lead({"dimat": found[tables.setting]["dimat"]}, 1))


def test_cells_that_lack_a_round_do_not_count(tables: Tables) -> None:
    rows = compared(tables)
    assert set(by_setting(rows[:-1])[tables.setting]["dimat"]) == {0}


def test_the_best_of_each_round_is_marked(tables: Tables) -> None:
    lines = [line for line in markdown.accuracy(by_setting(compared(tables))) if line.startswith("| iid")]
    assert lines[0] == "| iid | ring | wa | 0.500 ± 0.141 | **0.800 ± 0.000** | **0.900 ± 0.000** | 0.900 | – |"
    assert lines[-1].startswith("| iid | ring | dimat | **0.600 ± 0.141** |")


def test_dimat_against_averaging_and_cdsgd_in_the_first_rounds(tables: Tables) -> None:
    rows = [*tables.rows("dimat_shared", 0, [0.5, 0.5, 0.5, 0.5]), *tables.rows("wa", 0, [0.25, 0.5, 0.625, 0.5])]
    lines = markdown.claims(by_setting([*rows, *tables.rows("dsgd", 1, [0.0] * 4)]))
    assert lines[0] == "| setting | method | minus | round 1 | round 2 | round 3 | round 4 |"
    name = "| digits cnn iid ring 5 different | dimat_shared"
    assert lines[2:] == [f"{name} | wa | +0.250 | +0.000 | -0.125 | +0.000 |"]  # of dsgd there is no common seed
    assert markdown.claims(by_setting(tables.rows("wa", 0, [0.5] * 4))) == []


def test_curves_add_up_what_was_spent(tables: Tables) -> None:
    rows = [
        *tables.rows("wa", 0, [0.25, 0.5, 0.75, 1.0], bytes=100.0, s_train=2.0, s_fold=1.0, s_wait=9.0, s_evaluate=9.0),
        *tables.rows("wa", 1, [0.75, 0.5, 0.25, 0.0], bytes=300.0, s_train=4.0, s_other=1.0, s_checkpoint=9.0),
    ]
    runs = by_setting(rows)[tables.setting]["wa"]
    assert curve(runs, "bytes") == [(200.0, 0.5), (400.0, 0.5), (600.0, 0.5), (800.0, 0.5)]
    assert [spent for spent, _ in curve(runs, "seconds")] == [4.0, 8.0, 12.0, 16.0]
    assert [spent for spent, _ in curve(runs, "round")] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([(10.0, 0.4), (20.0, 0.9)], 20.0),  # it passes at its second round
        ([(10.0, 0.6), (20.0, 0.55), (30.0, 0.9)], 30.0),  # ahead, behind, and ahead for good
        ([(0.5, 0.1), (1.0, 0.7)], 0.5),  # ahead while the other has no model yet, and then for good
        ([(10.0, 0.5), (20.0, 0.6)], None),  # equal at the end is not above
        ([(10.0, 0.7), (20.0, 0.1)], None),
    ],
)
def test_the_crossover_is_where_the_other_stays_ahead(other: measures.Curve, expected: float | None) -> None:
    mine = [(1.0, 0.5), (2.0, 0.6)]
    assert crossover(mine, other) == expected


def test_within_a_budget() -> None:
    assert within([(1.0, 0.5), (2.0, 0.6)], 2.0) == 0.6
    assert within([(1.0, 0.5), (2.0, 0.6)], 99.0) == 0.6
    assert math.isnan(within([(1.0, 0.5)], 0.9))


def test_gradient_methods_at_equal_bytes(tables: Tables) -> None:
    rows = [
        *tables.rows("dimat", 0, [0.5, 0.6, 0.7, 0.8], bytes=1e6),
        *tables.rows("dsgd", 0, [0.4, 0.7, 0.85, 0.9], bytes=2e6),
        *tables.rows("choco", 0, [0.9, 0.9, 0.9, 0.9], bytes=1e5),
        *tables.rows("sgp", 0, [0.1, 0.1, 0.1, 0.1], bytes=4e6),
    ]
    lines = markdown.budgets(by_setting(rows), "bytes")
    name = "| digits cnn iid ring 5 different "
    # dimat has spent 1, 3 MB after rounds 1 and 3; dsgd has spent 2, 4, 6, 8 MB.
    assert f"{name}| dimat | 0.500 | 0.700 |  |  | 4 MB |  |" in lines
    assert f"{name}| dsgd | – | 0.400 |  |  | 8 MB | 6 MB |" in lines
    assert f"{name}| choco | 0.900 | 0.900 |  |  | 0.4 MB | the start |" in lines
    assert f"{name}| sgp | – | – |  |  | 16 MB | never |" in lines


def test_overhead_counts_the_rounds_after_the_third(tables: Tables) -> None:
    setting = Setting("digits", "cnn", "iid", "ring", 5, "different", 5)
    plain = tables.rows("wa", 0, [0.5] * 5, setting=setting, s_train=9.0, s_fold=1.0, s_wait=50.0)
    mine = tables.rows("dimat", 0, [0.5] * 5, setting=setting, s_train=9.0, s_fold=1.0, s_align=0.5, s_evaluate=7.0)
    spike = [Row(row.cell, row.round, {**row.numbers, "s_align": 99.0}) if row.round < 4 else row for row in mine]
    methods = by_setting([*plain, *spike])[setting]
    one, other = measures.cost(methods["dimat"]), measures.cost(methods["wa"])
    assert one is not None and other is not None
    assert (one.seconds, other.seconds) == (10.5, 10.0)
    assert one.align == pytest.approx(0.5 / 10.5)
    assert measures.overhead(one, other) == pytest.approx(0.05)
    assert measures.cost({0: plain[:3]}) is None
    lines = markdown.costs({setting: methods})
    assert (
        lines[-1]
        == "| digits cnn iid ring 5 different | 10 s | 10.0% | 4.8% | 9.5% | 0.0% | 14.3% | +5.0% | – | – | – |"
    )


@pytest.mark.parametrize(("align", "verdict"), [(0.499, "+5.0%: holds"), (0.6, "+6.0%: **FAILS**")])
def test_on_resnet20_the_overhead_has_a_limit(tables: Tables, align: float, verdict: str) -> None:
    setting = Setting("cifar10", "resnet20", "iid", "ring", 5, "apart", 5)
    plain = tables.rows("wa", 0, [0.5] * 5, setting=setting, s_train=10.0)
    mine = tables.rows("dimat", 0, [0.5] * 5, setting=setting, s_train=10.0, s_align=align)
    assert markdown.costs(by_setting([*plain, *mine]))[-1].endswith(f"on resnet20, the highest is {verdict}.")


def test_a_report_is_made_of_the_tables_alone(tmp_path: Path, tables: Tables) -> None:
    table.add(tmp_path / "results" / "small.csv", compared(tables))
    written = report.write(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert text == report.text_of(tmp_path)
    assert "Not run at all: cdmsgd, cga, choco, dsgd, sgp, swarm." in text
    for path in written[:-1]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 60_000
        assert f"](results/{path.name})" in text
    assert len(written) == 3 + 1


def test_the_committed_results_are_what_the_tables_give() -> None:
    """`python -m benchmarks.decentralized --report` writes it."""
    assert (DOCS / "results.md").read_text(encoding="utf-8") == report.text_of(DOCS)
