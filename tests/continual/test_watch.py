"""What appears in a folder is absorbed once it is complete; looks are taken by hand, and nothing is left to time."""

from __future__ import annotations

import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_kit import hugging_face, ledger, model, state, until

from dimat.continual import Ledger
from dimat.continual.watch import LOOKS_TO_HEAL, Seen, Watcher, watch
from dimat.errors import DimatError, UsageError
from dimat.modelfile import write_model


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming"


def outcomes(seen: list[Seen]) -> list[tuple[str, str]]:
    return [(one.path.name, one.outcome) for one in seen]


def test_what_rests_for_one_look_is_taken_in_the_order_of_names(tmp_path: Path, incoming: Path) -> None:
    at = ledger(tmp_path)
    watcher = Watcher(at, incoming, who="anna")
    for name, seed in (("b", 2), ("a", 1)):
        model(incoming, name, seed)
    assert watcher.look() == []
    assert [one.path.name for one in watcher.unfinished()] == ["a.safetensors", "b.safetensors"]
    model(incoming, "0", 3)
    assert outcomes(watcher.look()) == [("a.safetensors", "absorbed"), ("b.safetensors", "absorbed")]
    assert outcomes(watcher.look()) == [("0.safetensors", "absorbed")]
    assert watcher.look() == []
    assert [(entry.name, entry.who) for entry in at.entries()] == [("a", "anna"), ("b", "anna"), ("0", "anna")]


def test_half_a_file_is_not_taken_however_it_grows(tmp_path: Path, incoming: Path) -> None:
    at = ledger(tmp_path)
    whole = model(tmp_path, "a", 1).read_bytes()
    watcher, path = Watcher(at, incoming), incoming / "a.safetensors"
    for num_bytes in (0, 3, 8, 50, len(whole) - 1):
        path.write_bytes(whole[:num_bytes])
        for _ in range(LOOKS_TO_HEAL):  # it rests for a while, and is damaged as it stands
            assert watcher.look() == []
    path.write_bytes(whole)
    assert watcher.look() == []
    assert outcomes(watcher.look()) == [("a.safetensors", "absorbed")]


def test_a_file_of_its_full_size_is_not_taken_while_it_is_written(tmp_path: Path, incoming: Path) -> None:
    at = ledger(tmp_path)
    path = model(incoming, "a", 1)
    whole = path.read_bytes()
    watcher = Watcher(at, incoming)
    with path.open("r+b") as file:
        for filled in range(500, len(whole), 500):  # a copy that has taken its room before
            file.seek(0)
            file.write(whole[:filled] + bytes(len(whole) - filled))
            file.flush()
            os.utime(path, ns=(filled + 1, filled + 1))
            assert watcher.look() == []
        file.seek(0)
        file.write(whole)
    os.utime(path, ns=(1, 1))
    assert watcher.look() == []
    assert outcomes(watcher.look()) == [("a.safetensors", "absorbed")]


def test_damage_that_stays_is_told_once_and_looked_at_again_when_it_changes(tmp_path: Path, incoming: Path) -> None:
    at = ledger(tmp_path)
    watcher, path = Watcher(at, incoming), model(incoming, "a", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    told = [outcomes(watcher.look()) for _ in range(LOOKS_TO_HEAL + 5)]
    assert told == [[]] * LOOKS_TO_HEAL + [[("a.safetensors", "refused")]] + [[]] * 4
    path.write_bytes(whole)
    assert watcher.look() == []
    assert outcomes(watcher.look()) == [("a.safetensors", "absorbed")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fc__bias": torch.zeros(25)}, r"fc\.bias"),
        ({"fc__bias": torch.full((24,), float("nan"))}, "NaN"),
        ({"more": torch.zeros(2)}, "more"),
    ],
)
def test_what_is_refused_is_told_once_and_the_others_are_taken(
    tmp_path: Path, incoming: Path, changes: dict[str, torch.Tensor], words: str
) -> None:
    at = ledger(tmp_path)
    model(incoming, "bad", 1, **changes)
    model(incoming, "good", 2)
    watcher = Watcher(at, incoming)
    assert watcher.look() == []
    seen = watcher.look()
    assert outcomes(seen) == [("bad.safetensors", "refused"), ("good.safetensors", "absorbed")]
    assert re.search(words, seen[0].reason)
    assert watcher.look() == watcher.look() == []
    assert watcher.unfinished() == []


def test_what_is_in_already_is_known_by_its_digest(tmp_path: Path, incoming: Path) -> None:
    at = ledger(tmp_path)
    at.add(model(tmp_path, "a", 1))
    shutil.copy(tmp_path / "a.safetensors", incoming / "copy.safetensors")
    watcher = Watcher(at, incoming)
    watcher.look()
    (seen,) = watcher.look()
    assert (seen.outcome, seen.entry) == ("present", at.entries()[0])
    assert watcher.look() == []
    again = Watcher(at, incoming)  # a watch that is begun anew
    again.look()
    assert outcomes(again.look()) == [("copy.safetensors", "present")]
    assert len(at.entries()) == 1


def test_names_that_say_so_are_left_alone(tmp_path: Path, incoming: Path) -> None:
    at = ledger(tmp_path)
    whole = model(tmp_path, "a", 1).read_bytes()
    for name in (
        ".a.safetensors",
        "a.safetensors.partial",
        "a.safetensors.tmp",
        "a.bin",
        "a.pt",
        "other-1.safetensors",
    ):
        (incoming / name).write_bytes(whole)
    model(incoming, "one-2", 2)
    watcher = Watcher(at, incoming, pattern="one-*")
    watcher.look()
    assert outcomes(watcher.look()) == [("one-2.safetensors", "absorbed")]
    assert watcher.unfinished() == []


def test_a_folder_is_taken_when_all_of_it_is_there(tmp_path: Path, incoming: Path) -> None:
    at, whole = ledger(tmp_path), hugging_face(tmp_path / "hf", 1)
    folder = incoming / "hf"
    folder.mkdir()
    (incoming / "notes").mkdir()
    watcher = Watcher(at, incoming)
    for file in sorted(whole.iterdir()):
        for _ in range(LOOKS_TO_HEAL - 1):
            assert watcher.look() == []
        shutil.copy(file, folder)
    assert watcher.look() == []
    assert outcomes(watcher.look()) == [("hf", "absorbed")]


def test_a_disk_that_is_full_is_tried_again_and_told_when_the_reason_changes(
    tmp_path: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at, add, reasons = ledger(tmp_path), Ledger.add, ["the disk is full", "the disk is full", "the disk is gone"]

    def failing(*words: Any, **named: Any) -> Any:
        if reasons:
            raise DimatError(reasons.pop(0))
        return add(*words, **named)

    monkeypatch.setattr(Ledger, "add", failing)
    model(incoming, "a", 1)
    watcher = Watcher(at, incoming)
    assert [watcher.look() for _ in range(4)] == [[]] * 4
    assert [record.message.split(": ")[1] for record in caplog.records] == ["the disk is full", "the disk is gone"]
    assert outcomes(watcher.look()) == [("a.safetensors", "absorbed")]


def test_a_signal_lets_the_model_that_is_being_absorbed_be_finished(
    tmp_path: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, add, over = ledger(tmp_path), Ledger.add, threading.Event()

    def signalled(*words: Any, **named: Any) -> Any:
        over.set()
        return add(*words, **named)

    monkeypatch.setattr(Ledger, "add", signalled)
    for i in range(3):
        model(incoming, f"m{i}", i + 1)
    seen = watch(at, incoming, interval_s=0.01, over=over)
    assert outcomes(seen) == [("m0.safetensors", "absorbed")]
    assert [entry.name for entry in at.entries()] == ["m0"]


def test_once_takes_what_is_there_and_tells_what_is_left(tmp_path: Path, incoming: Path) -> None:
    at = ledger(tmp_path)
    assert watch(at, incoming, interval_s=100.0, once=True) == []
    for i in range(2):
        model(incoming, f"m{i}", i + 1)
    model(incoming, "bad", 1, fc__bias=torch.zeros(25))
    told: list[Seen] = []
    seen = watch(at, incoming, interval_s=0.01, once=True, tell=told.append)
    assert outcomes(seen) == [
        ("bad.safetensors", "refused"),
        ("m0.safetensors", "absorbed"),
        ("m1.safetensors", "absorbed"),
    ]
    assert told == seen


def test_a_watch_goes_on_until_it_is_told(tmp_path: Path, incoming: Path) -> None:
    at, over = ledger(tmp_path), threading.Event()
    watching = threading.Thread(target=watch, args=(at, incoming), kwargs={"interval_s": 0.01, "over": over})
    watching.start()
    try:
        for i in range(3):
            write_model(incoming / f"m{i}.safetensors", state(i + 1))
            until(lambda: len(at.entries()) == i + 1)  # noqa: B023
    finally:
        over.set()
        watching.join()
    assert [entry.order for entry in at.entries()] == [1, 2, 3]


def test_what_cannot_be_watched_is_told(tmp_path: Path, incoming: Path) -> None:
    at = ledger(tmp_path)
    for folder, interval_s, words in [
        (tmp_path / "nowhere", 1.0, "does not exist"),
        (at.path / "ledger.json", 1.0, "is no folder"),
        (incoming, 0.0, "expected more than 0"),
        (incoming, float("nan"), "expected more than 0"),
    ]:
        with pytest.raises(UsageError, match=words):
            watch(at, folder, interval_s=interval_s, once=True)


def test_what_is_rewritten_while_another_is_absorbed_waits(
    tmp_path: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ledger(tmp_path)
    watcher = Watcher(at, incoming)
    model(incoming, "a", 1), model(incoming, "b", 2)
    assert watcher.look() == []
    add = Ledger.add

    def add_slowly(self: Ledger, path: Path, **given: Any) -> Any:
        if path.name == "a.safetensors":
            model(incoming, "b", 3)  # its writer has come back
        return add(self, path, **given)

    monkeypatch.setattr(Ledger, "add", add_slowly)
    assert outcomes(watcher.look()) == [("a.safetensors", "absorbed")]
    assert [(one.path.name, one.reason) for one in watcher.unfinished()] == [
        ("b.safetensors", "it is still being written")
    ]
    watcher.look()
    assert [entry.name for entry in at.entries()] == ["a", "b"]
