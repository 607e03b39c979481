"""Plug-ins are found by name, module or file; a wrong name answers with the closest right one."""

from pathlib import Path

import pytest

from dimat.errors import PluginError
from dimat.plugins import closest, resolve, unknown

BUILTIN = {"ring": 1, "star": 2}


def test_a_builtin_name_is_found() -> None:
    assert resolve("topology", "star", BUILTIN) == 2


def test_a_wrong_name_answers_with_the_closest_and_the_list() -> None:
    with pytest.raises(PluginError, match=r"unknown topology 'rign'\. Did you mean 'ring'\? Available: ring, star"):
        resolve("topology", "rign", BUILTIN)


def test_nothing_near_means_no_guess() -> None:
    assert closest("zzz", BUILTIN) is None
    assert "Did you mean" not in unknown("topology", "zzz", BUILTIN)


def test_a_file_and_a_module_are_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def build():\n    return 7\n")
    assert resolve("topology", f"{path}:build", BUILTIN)() == 7
    assert resolve("topology", "math:pi", BUILTIN) == pytest.approx(3.14159, abs=1e-4)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nowhere.py:build", "does not exist"),
        ("no_such_module:build", "does not import"),
        ("math:pj", "Did you mean 'pi'"),
        ("math:", "not of the form"),
    ],
)
def test_what_cannot_be_found_is_said(reference: str, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        resolve("topology", reference, BUILTIN)


def test_a_file_that_fails_to_import_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("1 / 0\n")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        resolve("task", f"{path}:Task", {})


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"value = {value}\n")
    found = [resolve("task", f"{tmp_path / folder / 'same.py'}:value", {}) for folder in ("a", "b")]
    assert found == [1, 2]
