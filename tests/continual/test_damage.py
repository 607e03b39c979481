"""A ledger that was damaged stays as it is: nothing is made from a wrong byte, and no way back is thrown away."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dimat.continual import Ledger
from dimat.continual.evaluate import evaluate_ledger
from dimat.continual.journal import Journal
from dimat.continual.tasklist import TaskEntry
from dimat.errors import DimatError, UsageError
from dimat.modelfile import open_model

CURRENT, PREVIOUS = "states/000003.safetensors", "states/000002.safetensors"
Damage = Callable[[Path], object]


def flip(name: str) -> Damage:
    """One bit of a tensor."""

    def damage(ledger: Path) -> None:
        content = bytearray((ledger / name).read_bytes())
        content[-3] ^= 16
        (ledger / name).write_bytes(content)

    return damage


def sql(change: str) -> Damage:
    def damage(ledger: Path) -> None:
        with closing(sqlite3.connect(ledger / "journal.sqlite")) as database:
            database.execute(change)
            database.commit()

    return damage


def swap(ledger: Path) -> None:
    (ledger / CURRENT).rename(ledger / "x")
    (ledger / PREVIOUS).rename(ledger / CURRENT)
    (ledger / "x").rename(ledger / PREVIOUS)


@pytest.fixture
def ledger(make: Any, base: Path, tmp_path: Path) -> Ledger:
    ledger = Ledger.create(tmp_path / "ledger", base, "mean", keep=2)
    for i in range(3):
        ledger.add(make(f"m{i}", i + 1))
    make("late", 9)
    return ledger


def changes(ledger: Ledger, home: Path) -> dict[str, Callable[[], object]]:
    return {
        "add": lambda: ledger.add(home / "late.safetensors"),
        "remove": lambda: ledger.remove("m0", home / "m0.safetensors"),
        "undo": ledger.undo,
        "export": lambda: ledger.export(home / "out.safetensors"),
        "evaluate": lambda: evaluate_ledger(ledger, [TaskEntry("no:task", "t", "m0")]),
    }


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which says for whom others wait."""
    files = (one for one in folder.rglob("*") if one.is_file() and one.name != "lock")
    return {str(one.relative_to(folder)): one.read_bytes() for one in files}


@pytest.mark.parametrize(
    ("damage", "refused", "words"),
    [
        (flip(CURRENT), "add remove export evaluate", "000003.safetensors was changed"),
        (lambda path: (path / CURRENT).unlink(), "add remove export", "000003.safetensors of version 3 is gone"),
        (flip(PREVIOUS), "undo", "000002.safetensors was changed"),
        (lambda path: (path / PREVIOUS).unlink(), "undo", "000002.safetensors of version 2 is gone"),
        (swap, "add remove undo export", "was changed"),
        (flip("base.safetensors"), "add remove export", "base.safetensors was changed"),
        (sql("UPDATE models SET norm = 99 WHERE name = 'm0'"), "add remove undo", "the row of model 'm0'"),
        (sql("UPDATE models SET weight = 'x'"), "add remove undo export", "other kinds of values"),
        (sql("UPDATE models SET stats = '[]'"), "add remove undo export", "other kinds of values"),
        (sql("UPDATE models SET stats = 'x'"), "add remove undo export", "'m0' are not what was written"),
        (sql("DELETE FROM models WHERE name = 'm2'"), "add remove undo", "counts 3 models, and names 2"),
        (sql("DELETE FROM numbers"), "add remove undo export", "names no last number"),
    ],
)
def test_what_is_damaged_is_not_built_upon(
    damage: Damage, refused: str, words: str, ledger: Ledger, tmp_path: Path
) -> None:
    damage(ledger.path)
    before = content(ledger.path)
    for name, change in changes(Ledger.open(ledger.path), tmp_path).items():
        if name in refused.split():
            with pytest.raises(DimatError, match=words) as caught:
                change()
            assert caught.value.hint, name
    assert content(ledger.path) == before and not (tmp_path / "out.safetensors").exists()


def test_undo_goes_back_behind_a_damaged_state(ledger: Ledger) -> None:
    flip(CURRENT)(ledger.path)
    assert ledger.undo().name == "m2" and ledger.verify() == []


def test_what_this_process_has_read_is_read_again_when_it_was_changed(ledger: Ledger, tmp_path: Path) -> None:
    expected = ledger.merged()
    times = (ledger.path / CURRENT).stat()
    flip(CURRENT)(ledger.path)
    os.utime(ledger.path / CURRENT, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DimatError, match="was changed"):
        ledger.merged()
    flip(CURRENT)(ledger.path)
    assert all(bool((one == expected[name]).all()) for name, one in ledger.merged().items())


def test_a_sketch_of_another_length_is_told(ledger: Ledger) -> None:
    sql("UPDATE models SET sketch = x'00' WHERE name = 'm1'")(ledger.path)
    with pytest.raises(DimatError, match="sketch of model 'm1' is damaged"):
        ledger.status()


def test_a_folder_among_the_states_is_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    (ledger.path / "states" / "@eaDir").mkdir()
    ledger.add(tmp_path / "late.safetensors")
    assert (ledger.path / "states" / "@eaDir").is_dir() and ledger.verify() == []


def test_a_ledger_goes_on_where_it_was_moved_or_copied(ledger: Ledger, tmp_path: Path) -> None:
    shutil.copytree(ledger.path, tmp_path / "a copy é")
    ledger.path.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to("moved")
    for place in ("a copy é", "link"):
        there = Ledger.open(tmp_path / place)
        assert there.add(tmp_path / "late.safetensors").order == 4 and there.verify() == []
    one, other = (Ledger.open(tmp_path / place) for place in ("a copy é", "moved"))
    assert content(one.path)["states/000004.safetensors"] == content(other.path)["states/000004.safetensors"]


def test_links_and_pipes(ledger: Ledger, base: Path, make: Any, tmp_path: Path) -> None:
    (tmp_path / "ward 7.safetensors").symlink_to("late.safetensors")
    assert ledger.add(tmp_path / "ward 7.safetensors").name == "ward 7"  # not what the link leads to
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UsageError, match="is a pipe or a device"):
        ledger.add(tmp_path / "pipe.safetensors")
    with pytest.raises(UsageError, match="is a pipe or a device"):
        open_model(tmp_path / "pipe.safetensors")
    (tmp_path / "room").mkdir()
    (tmp_path / "door").symlink_to("room")
    Ledger.create(tmp_path / "door", base, "mean")
    assert (tmp_path / "door").is_symlink() and Ledger.open(tmp_path / "room").verify() == []


def test_a_journal_on_a_full_disk_is_as_it_was_and_says_what_to_do(ledger: Ledger) -> None:
    before = content(ledger.path)["journal.sqlite"]
    with pytest.raises(DimatError, match="disk is full") as caught, ledger.journal.writing() as database:
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages}")
        database.execute("UPDATE versions SET who = ?", ("x" * 1_000_000,))
    assert "make room" in str(caught.value.hint)
    assert content(ledger.path)["journal.sqlite"] == before


def test_the_new_state_is_on_the_disk_before_the_journal_names_it(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may take whatever was not synced: file, then its name in the folder, then the transaction."""
    states = ledger.path / "states"
    happened: list[object] = []
    fsync, replace, add = os.fsync, Path.replace, Journal.add
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append(os.fstat(handle).st_ino), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (happened.append("name"), replace(path, to))[1])
    monkeypatch.setattr(Journal, "add", lambda *words: (happened.append("journal"), add(*words))[1])
    ledger.add(tmp_path / "late.safetensors")
    inodes = [(states / "000004.safetensors").stat().st_ino, states.stat().st_ino]
    assert happened == [inodes[0], "name", inodes[1], "journal"]
    with ledger.journal.writing() as database:
        assert database.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA: the folder's entry, too
