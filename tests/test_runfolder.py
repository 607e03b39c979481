"""A run folder belongs to one config and one command at a time."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from dimat.config import load_config
from dimat.errors import UsageError
from dimat.runfolder import held, prepare, processes, register_process

CONFIG = load_config(None)


def test_it_tells_what_somebody_needs_to_repeat_the_run(tmp_path: Path) -> None:
    folder = prepare(CONFIG, tmp_path / "run")
    assert load_config(folder / "config.yaml") == CONFIG
    environment = json.loads((folder / "environment.json").read_text())
    assert {"python", "torch", "numpy", "dimat"} <= environment["versions"].keys()
    assert environment["digest"] == CONFIG.digest


def test_its_name_comes_from_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare(CONFIG, None) == Path("runs") / f"digits-ring-{CONFIG.digest}"


def test_fresh_forgets_what_was_there(tmp_path: Path) -> None:
    folder = prepare(CONFIG, tmp_path / "run")
    (folder / "metrics").mkdir()
    prepare(CONFIG, folder)
    assert (folder / "metrics").exists()
    prepare(load_config(None, ["seed=1"]), folder, fresh=True)
    assert not (folder / "metrics").exists()


def test_a_second_command_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    folder = prepare(CONFIG, tmp_path / "run")
    with held(folder), pytest.raises(UsageError, match="another run is going on"), held(folder):
        pass
    with held(folder), pytest.raises(UsageError, match="another run is going on"):
        prepare(CONFIG, folder, fresh=True)
    with held(folder):
        pass


def register(folder: Path, number: int) -> None:
    register_process(folder, "agent", number, f"host:{number}")


def test_processes_that_register_at_once_are_all_there(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=register, args=(tmp_path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted((entry["id"], entry["address"]) for entry in processes(tmp_path)) == [
        (n, f"host:{n}") for n in range(4)
    ]
    assert {entry["pid"] for entry in processes(tmp_path)} == {worker.pid for worker in workers}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        prepare(CONFIG, tmp_path / "run")


def test_agents_that_make_the_folder_at_the_same_moment_do_not_disturb_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.yaml.123.partial").write_text("half a")  # somebody else is just writing it
    assert prepare(CONFIG, folder) == folder


def test_a_child_that_has_the_lock_keeps_the_folder(tmp_path: Path) -> None:
    folder = prepare(CONFIG, tmp_path / "run")
    with held(folder) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    try:
        with pytest.raises(UsageError, match="another run is going on"), held(folder):
            pass
    finally:
        child.communicate(b"\n")
    with held(folder):
        pass
