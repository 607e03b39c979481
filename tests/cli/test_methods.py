"""`dimat methods`: every method and option on one screen, each explained when asked for."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dimat.agent.algorithms import builtin_algorithms
from dimat.cli import app
from dimat.merge.describe import describe
from dimat.merge.registry import builtin_methods, options_of
from dimat.schedules import BUILTIN

Dimat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dimat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Dimat:
    def call(*words: str, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["dimat", *words])
        monkeypatch.chdir(tmp_path)
        code = 0
        try:
            app.main()
        except SystemExit as done:
            code = int(done.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def listed(dimat: Dimat, *words: str) -> dict[str, dict[str, Any]]:
    code, out, _ = dimat("methods", *words, "--format", "json")
    assert code == 0
    return {method["name"]: method for method in json.loads(out)["methods"]}


def test_the_table_shows_every_method_and_option_whole_at_80_columns(dimat: Dimat) -> None:
    code, out, _ = dimat("methods")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    words = out.split()
    for name, method in builtin_methods().items():
        assert name in words
        for option in options_of(method):
            assert any(word.startswith(f"{option}=") for word in words), (name, option)
    assert {"density=0.2", "trim=global", "normalize=false", "t=null", "alpha=0.5"} <= set(words)
    assert "…" not in out


def test_what_a_method_needs_and_is_comes_as_json(dimat: Dimat) -> None:
    methods = listed(dimat)
    assert sorted(methods) == sorted(builtin_methods())
    assert {name for name, one in methods.items() if one["order_matters"]} == {"opcm", "slerp"}
    assert {name for name, one in methods.items() if not one["needs"]} == {
        "krum",
        "mean",
        "median",
        "slerp",
        "trimmed_mean",
    }
    assert methods["fisher"]["needs"] == ["fisher"]
    assert methods["ties"]["needs"] == ["a base"]
    holds_all = {name for name, one in methods.items() if one["memory"] == "linear"}
    assert holds_all == {"clipping", "krum", "median", "trimmed_mean"}
    assert methods["mean"]["removable"] and not methods["magmax"]["removable"]
    assert methods["ties"]["options"][0] == {
        "name": "density",
        "type": "number",
        "required": False,
        "default": 0.2,
        "what": "share of entries that are kept, above 0 and at most 1.",
    }


@pytest.mark.parametrize("name", sorted(builtin_methods()))
def test_every_option_is_explained_with_type_default_and_source(dimat: Dimat, name: str) -> None:
    (method,) = listed(dimat, name).values()
    assert method["summary"]
    assert method["source"]
    assert ">>>" in describe(name).example
    code, out, _ = dimat("methods", name)
    assert code == 0
    prose = out.partition("\nExample\n")[0]
    assert max(map(len, prose.splitlines())) <= 80
    told = " ".join(prose.split())
    for option in method["options"]:
        default = option["default"] if isinstance(option["default"], str) else json.dumps(option["default"])
        assert option["type"] and option["what"]
        assert f"{option['name']}={default} ({option['type']}) {' '.join(option['what'].split())}" in told
    assert " ".join(method["source"].split()) in told


def test_formulas_keep_their_lines(dimat: Dimat) -> None:
    out = dimat("methods", "model_stock")[1]
    assert "\n    t = N c / (1 + (N - 1) c)\n" in out


def test_a_wrong_name_answers_with_the_closest(dimat: Dimat) -> None:
    code, _, err = dimat("methods", "tise")
    assert code == 2
    assert "unknown merge method 'tise'. Did you mean 'ties'? Available: breadcrumbs, clipping, dare," in err


def test_a_users_method_with_an_option_that_must_be_given(dimat: Dimat, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from dimat.merge import make_fold\n"
        "def mine(*, share: float, deep: 'int | None' = None):\n"
        '    """Mine.\n\n    Args:\n        share: how much\n            of it.\n    """\n'
        "    return make_fold('mean')\n"
    )
    code, out, _ = dimat("methods", "own.py:mine")
    assert code == 0
    assert "share=(must be given) (number)\n      how much of it." in out
    assert "deep=null (whole number or null)" in out
    (method,) = listed(dimat, "own.py:mine").values()
    assert method["order_matters"] is None
    assert [one["required"] for one in method["options"]] == [True, False]


def test_algorithms_and_schedules_stand_below_with_their_options(dimat: Dimat) -> None:
    code, out, _ = dimat("methods")
    assert code == 0
    below = out.partition("-s algorithm=NAME")[2].split()
    for name, maker in {**builtin_algorithms(), **BUILTIN}.items():
        assert name in below
        assert all(any(word.startswith(f"{option}=") for word in below) for option in options_of(maker))
    told = json.loads(dimat("methods", "--format", "json")[1])
    assert [one["name"] for one in told["algorithms"]] == sorted(builtin_algorithms())
    assert [one["name"] for one in told["schedules"]] == list(BUILTIN)


@pytest.mark.parametrize("name", [*sorted(builtin_algorithms()), *BUILTIN])
def test_one_of_them_is_explained_with_its_formulas_and_options(dimat: Dimat, name: str) -> None:
    code, out, _ = dimat("methods", name)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    told = " ".join(out.split())
    (one,) = [one for kind in ("algorithms", "schedules") for one in listed_as(dimat, name)[kind]]
    assert " ".join(one["summary"].split()) in told
    for option in one["options"]:
        assert option["type"] and option["what"]
        assert " ".join(option["what"].split()) in told
    if name in builtin_algorithms():
        assert "arXiv" in one["source"] and "<- " in one["documentation"]


def listed_as(dimat: Dimat, *words: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(dimat("methods", *words, "--format", "json")[1])
    return told
