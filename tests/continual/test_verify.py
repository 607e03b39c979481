"""Every byte of a ledger is vouched for."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dimat.continual import Ledger
from dimat.continual.verify import verify
from dimat.errors import UsageError


@pytest.fixture
def ledger(make: Any, base: Path, tmp_path: Path) -> Ledger:
    ledger = Ledger.create(tmp_path / "ledger", base, "mean", keep=1)
    for i in range(3):
        ledger.add(make(f"m{i}", i + 1), who="ada")
    assert ledger.verify() == []
    return ledger


def flip(path: Path, place: int) -> bytes:
    before = path.read_bytes()
    changed = bytearray(before)
    changed[place] ^= 1
    path.write_bytes(changed)
    return before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base.safetensors", "base.safetensors was changed since init"),
        ("states/000003.safetensors", "000003.safetensors (version 3) was changed"),
        ("states/000002.safetensors", "000002.safetensors (version 2) was changed"),
    ],
)
def test_one_flipped_bit_is_found_wherever_it_is(name: str, words: str, ledger: Ledger) -> None:
    path = ledger.path / name
    size = path.stat().st_size
    for place in [0, 9, *range(50, size, size // 20), size - 1]:
        before = flip(path, place)
        (problem,) = verify(ledger.path)
        assert words in problem, place
        path.write_bytes(before)
    assert ledger.verify() == []


def test_a_flipped_bit_of_the_manifest_is_found_or_refused(ledger: Ledger) -> None:
    path = ledger.path / "ledger.json"
    for place in range(path.stat().st_size):
        before = flip(path, place)
        try:
            assert len(verify(ledger.path)) == 1, place
        except UsageError as error:
            assert "format" in str(error)  # the one number that tells whether the rest can be read
        path.write_bytes(before)
    assert ledger.verify() == []


def test_a_missing_file_is_found(ledger: Ledger) -> None:
    for name in ("states/000002.safetensors", "base.safetensors", "journal.sqlite"):
        path = ledger.path / name
        content = path.read_bytes()
        path.unlink()
        (problem,) = verify(ledger.path)
        assert name.rpartition("/")[2] in problem
        path.write_bytes(content)
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE models SET weight = 2 WHERE name = 'm1'", "the row of model 'm1' (order 2) was changed"),
        ("UPDATE models SET who = 'eve' WHERE name = 'm0'", "the row of model 'm0' (order 1) was changed"),
        ("UPDATE models SET sketch = zeroblob(16384) WHERE name = 'm0'", "the row of model 'm0' (order 1) was changed"),
        ("UPDATE models SET removed = 3 WHERE name = 'm0'", "the row of model 'm0' (order 1) was changed"),
        ("UPDATE versions SET kept = 0 WHERE version = 2", "the row of version 2 was changed"),
        ("UPDATE versions SET norm = 0 WHERE version = 2", "the row of version 2 was changed"),
        ("DELETE FROM models WHERE name = 'm1'", "version 3 counts 3 models, and names 2"),
        ("DELETE FROM versions WHERE version = 2", "model 'm1' says it made version 2, which did not add it"),
        ("DELETE FROM versions", "names no version"),
        ("DROP TABLE models", "cannot be used: no such table: models"),
        ("UPDATE numbers SET value = 1", "is newer than the newest number"),
        ("UPDATE files SET digest = 'x'", "was changed since init"),
    ],
)
def test_a_journal_that_does_not_add_up_is_found(change: str, words: str, ledger: Ledger) -> None:
    with closing(sqlite3.connect(ledger.path / "journal.sqlite")) as database:
        database.execute(change)
        database.commit()
    problems = verify(ledger.path)
    assert any(words in problem for problem in problems), problems


def test_a_journal_of_garbage_is_told(ledger: Ledger) -> None:
    (ledger.path / "journal.sqlite").write_bytes(b"no database" * 500)
    (problem,) = verify(ledger.path)
    assert "journal.sqlite is damaged" in problem


def test_flipped_bits_of_the_journal_never_pass_for_other_facts(ledger: Ledger) -> None:
    """What SQLite does not use may change; what the journal says may not, without a word."""
    path = ledger.path / "journal.sqlite"
    told, size = ledger.status(), path.stat().st_size
    found = 0
    for place in range(100, size, size // 150):
        before = flip(path, place)
        problems = verify(ledger.path)
        found += bool(problems)
        if not problems:
            assert ledger.status() == told, place
        path.write_bytes(before)
    assert found > 75
    assert ledger.verify() == []


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        verify(tmp_path / "nothing")


def test_another_base_is_noticed_when_the_journal_has_forgotten_its_file(ledger: Ledger) -> None:
    with ledger.journal.writing() as database:
        database.execute("DELETE FROM files WHERE path LIKE 'base%'")
    base = ledger.path / "base.safetensors"
    content = bytearray(base.read_bytes())
    content[-3] ^= 1  # of the last tensor's last entry: finite still
    base.write_bytes(content)
    assert [problem for problem in verify(ledger.path) if "the ledger was made of" in problem]
