"""`dimat continual serve, submit, watch` as they are typed, and status and export by an address."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dimat.cli.app import main
from dimat.cli.continual_remote import is_address
from dimat.continual import Ledger
from dimat.modelfile import write_model

Dimat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dimat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Dimat:
    """Type a command; returns exit code, stdout and stderr. The current folder has a ledger and some models."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b", "c")):
        write_model(Path(f"{name}.safetensors"), tensors(seed))
    write_model(Path("short.safetensors"), tensors(1) | {"w": torch.zeros(4, 3)})
    Ledger.create(Path("merged"), Path("base.safetensors"), "opcm")

    def type_it(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dimat", "continual", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return type_it


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(4, 6, generator=generator), "b": torch.randn(4, generator=generator)}


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command as a process; what its first line says."""
    command = [sys.executable, "-W", "error", "-m", "dimat", "continual", "serve", "merged", "--listen", "127.0.0.1:0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*command, "--format", "json", *words], cwd=folder, **pipes) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_ledger_is_served_sent_to_asked_and_ended(dimat: Dimat, tmp_path: Path, number: int, code: int) -> None:
    with serving(tmp_path) as (process, ready):
        address = ready["address"]
        assert ready == {"address": address, "ledger": "merged"}
        assert address.startswith("127.0.0.1:")
        ended, out, _ = dimat("submit", address, "a.safetensors", "--who", "anna", "--format", "json")
        first = json.loads(out)
        assert (ended, first["name"], first["order"], first["added"]) == (0, "a", 1, True)
        ended, out, _ = dimat("submit", address, "a.safetensors", "--name", "other", "--format", "json")
        assert (ended, json.loads(out)) == (0, first | {"added": False})
        ended, out, _ = dimat("submit", address, "b.safetensors", "--name", "bee", "--weight", "2")
        assert ended == 0
        assert out.startswith("bee is in: number 2, norm ")
        ended, out, _ = dimat("submit", address, "b.safetensors")
        assert (ended, out.split(":")[0]) == (0, "bee is in already")

        ended, out, err = dimat("submit", address, "short.safetensors")
        assert (ended, out) == (2, "")
        assert "'w' is [4, 3] in model short and [4, 6] in the ledger's base" in err
        ended, _, err = dimat("submit", address, "c.safetensors", "--name", "a")
        assert ended == 2
        assert "--name" in err

        assert dimat("status", address, "--format", "json")[1] == dimat("status", "merged", "--format", "json")[1]
        assert "2 models" in dimat("status", address)[1]
        ended, out, _ = dimat("export", address, "--out", "out.safetensors", "--format", "json")
        _, local, _ = dimat("export", "merged", "--out", "local.safetensors", "--format", "json")
        fetched, written = json.loads(out), json.loads(local)
        for key in ("digest", "version", "num_models"):
            assert fetched[key] == written[key]
        assert Path("out.safetensors").read_bytes() == Path("local.safetensors").read_bytes()
        assert dimat("export", address, "--out", "out.safetensors")[0] == 2
        assert dimat("export", address, "--out", "out.safetensors", "--force")[0] == 0
        assert dimat("export", address, "--out", "wide.safetensors", "--dtype", "bfloat16")[0] == 2
        process.send_signal(number)
        assert process.wait(timeout=200) == code
    assert [entry.name for entry in Ledger.open(tmp_path / "merged").entries()] == ["a", "bee"]


def test_plain_text_stays_on_this_machine_unless_said(dimat: Dimat) -> None:
    code, out, err = dimat("serve", "merged", "--listen", "0.0.0.0:0")
    assert (code, out) == (2, "")
    assert "--insecure" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("serve", "nowhere"), 2, "does not exist"),
        (("serve", "merged", "--listen", "7100"), 2, "HOST:PORT"),
        (("serve", "merged", "--listen", "127.0.0.1:99999"), 2, "HOST:PORT"),
        (("serve", "merged", "--listen", "127.0.0.1:0", "--max-upload-bytes", "10"), 2, "too few"),
        (("submit", "here", "a.safetensors"), 2, "HOST:PORT"),
        (("submit", "127.0.0.1:0", "a.safetensors"), 2, "HOST:PORT"),
        (("submit", "127.0.0.1:7100", "d.safetensors"), 2, "does not exist"),
        (("watch", "merged", "nowhere"), 2, "does not exist"),
        (("watch", "merged", ".", "--once", "--interval-s", "0"), 2, "more than 0"),
    ],
)
def test_what_cannot_be_done_is_told(dimat: Dimat, words: tuple[str, ...], code: int, said: str) -> None:
    ended, out, err = dimat(*words)
    assert (ended, out) == (code, "")
    assert said in err


def test_a_port_in_use_and_nobody_at_an_address(dimat: Dimat) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = dimat("serve", "merged", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 2
    assert "cannot listen on" in err
    address = f"127.0.0.1:{free_port()}"
    code, out, err = dimat("submit", address, "a.safetensors", "--timeout-s", "0.3")
    assert (code, out) == (1, "")
    assert address in err
    assert "dimat continual serve" in err


def test_a_folder_is_absorbed_once(dimat: Dimat, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for name in ("b", "a", "short"):
        (incoming / f"{name}.safetensors").write_bytes((tmp_path / f"{name}.safetensors").read_bytes())
    words = ("watch", "merged", "incoming", "--once", "--interval-s", "0.01")
    code, out, err = dimat(*words, "--who", "anna", "--format", "json")
    *lines, last = map(json.loads, out.splitlines())
    assert code == 1, "one was refused"
    assert [(Path(line["path"]).stem, line["outcome"]) for line in lines] == [
        ("a", "absorbed"),
        ("b", "absorbed"),
        ("short", "refused"),
    ]
    assert "'w'" in lines[2]["reason"]
    assert lines[0]["entry"]["who"] == "anna"
    assert last == {"ledger": "merged", "absorbed": 2, "present": 0, "refused": 1, "unfinished": 0}
    (incoming / "short.safetensors").unlink()
    code, out, err = dimat(*words)
    assert (code, out, err) == (0, "0 absorbed, 2 present, 0 refused, 0 unfinished\n", "")


def test_a_name_does_not_steer_the_terminal(dimat: Dimat, tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "a\n\x1b[2J.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    code, _, err = dimat("watch", "merged", "incoming", "--once", "--interval-s", "0.01")
    assert code == 1
    assert "\x1b" not in err
    assert len(err.splitlines()) == 1 and "cannot name a model" in err


def test_a_watch_ends_at_a_signal(dimat: Dimat, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    command = [sys.executable, "-W", "error", "-m", "dimat", "continual", "watch", "merged", "incoming"]
    with subprocess.Popen(
        [*command, "--interval-s", "0.05"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        (tmp_path / "a.safetensors").rename(incoming / "a.safetensors")
        assert process.stdout.readline().startswith("incoming/a.safetensors is in: number 1")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=200) == 0


def test_an_address_is_one_and_a_folder_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_address("localhost:7100")
    assert is_address(Path("10.0.0.1:7100"))
    assert is_address("[::1]:7100")
    assert not is_address("merged")
    assert not is_address("folder/merged:1")
    (tmp_path / "localhost:7100").mkdir()
    assert not is_address("localhost:7100")
