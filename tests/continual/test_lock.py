"""Writers queue, readers do not wait, and what somebody reads is not cleared away."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dimat.continual import Ledger
from dimat.continual import lock as lock_module
from dimat.continual.journal import Journal
from dimat.continual.lock import clear, held, locked

ADD = """
import sys, torch
from pathlib import Path
from dimat.continual import Ledger
torch.set_num_threads(1)
ledger = Ledger.open(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for path in sys.argv[2:]:
    ledger.add(Path(path))
"""


def test_two_processes_that_add_at_once_are_both_in(make: Any, base: Path, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "opcm", keep=0)
    paths = [[str(make(f"{who}{i}", 10 * who + i)) for i in range(1, 7)] for who in (1, 2)]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, str(ledger.path), *mine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mine in paths
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):  # a reader meanwhile sees whole versions
        if ledger.entries():
            assert ledger.merged().keys() == ledger.base.tensors.keys()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    entries = ledger.entries()
    assert [entry.order for entry in entries] == list(range(1, 13)) == [entry.version for entry in entries]
    for who, mine in zip("12", paths, strict=True):
        assert [entry.name for entry in entries if entry.name[0] == who] == [Path(path).stem for path in mine]
    assert ledger.verify() == []
    again = Ledger.create(tmp_path / "again", base, "opcm")
    for entry in entries:
        again.add(tmp_path / f"{entry.name}.safetensors")
    state = "states/000012.safetensors"
    assert (ledger.path / state).read_bytes() == (again.path / state).read_bytes()


def test_who_waits_is_told_for_whom(
    make: Any, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "PATIENCE_S", 0.05)
    ledger, path = Ledger.create(tmp_path / "ledger", base, "mean"), make("m", 1)
    hold = (
        "import sys\nfrom pathlib import Path\nfrom dimat.continual.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'adds other'):\n    print('held', flush=True)\n    sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", hold, str(ledger.path / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    adding = threading.Thread(target=lambda: ledger.add(path))
    adding.start()
    until = time.monotonic() + 30
    while not caplog.records and time.monotonic() < until:
        time.sleep(0.01)
    assert f"waiting for process {holder.pid} (adds other), which writes to it" in caplog.text
    assert ledger.status().num_models == 0 and ledger.verify() == []  # readers do not wait
    holder.communicate("\n")
    adding.join(30)
    assert [entry.name for entry in ledger.entries()] == ["m"]
    with locked(ledger.path / "lock", "looks"):
        pass  # it is free again


def test_what_is_read_is_not_cleared(make: Any, base: Path, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "mean", keep=0)
    ledger.add(make("a", 1))
    first = ledger.path / "states" / "000001.safetensors"
    with ledger.current() as (page, state):
        ledger.add(make("b", 2))
        assert first.exists() and page.current.version == 1
        assert state.of(ledger.fold, ledger.base, "a.weight").keys() == {"weight", "sum"}
    ledger.add(make("c", 3))
    assert [file.name for file in (ledger.path / "states").iterdir()] == ["000003.safetensors"]


def test_a_reader_whose_version_was_cleared_away_meanwhile_reads_the_newest(
    make: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "mean", keep=0)
    ledger.add(make("a", 1))
    read, old = Journal.page, [ledger.journal.page()]
    ledger.add(make("b", 2))
    monkeypatch.setattr(Journal, "page", lambda journal: old.pop() if old else read(journal))
    with ledger.current() as (page, _):
        assert page.current.version == 2


def test_clear_and_held_know_what_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_text("x")
    with held(file), held(file):
        assert not clear(file)
    assert clear(file) and not file.exists() and clear(file)
    with pytest.raises(FileNotFoundError), held(file):
        pass


def test_a_lock_file_that_was_deleted_lets_no_second_writer_in(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", 0, 0
    mutex = threading.Lock()

    def write() -> None:
        nonlocal inside, most
        with locked(path, "writes"):
            with mutex:
                inside += 1
                most = max(most, inside)
            started.set()
            go_on.wait(60)
            with mutex:
                inside -= 1

    started, go_on = threading.Event(), threading.Event()
    first, waiting = (threading.Thread(target=write) for _ in range(2))
    first.start()
    assert started.wait(60)
    waiting.start()
    time.sleep(0.1)  # it waits for the first one's file
    path.unlink()
    path.touch()  # which is another one now
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    started.clear()
    go_on.set()
    first.join(60)
    assert not started.wait(0.3)  # the deleted file is free, the one that took its place is not
    os.close(holder)
    waiting.join(60)
    assert started.is_set()
    assert most == 1
