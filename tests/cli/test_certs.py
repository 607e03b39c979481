"""`dimat certs` and `--certs` as they are typed: what is written, what is refused and how it is said."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dimat.cli.app import main
from dimat.cli.secured import credentials_for, warn_of_plain_text
from dimat.transport.authority import issue_missing, new_authority
from dimat.transport.security import ADMIN, COORDINATOR, ONLOOKER, agent, held_identities, load_credentials

Dimat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dimat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Dimat:
    """Type a command; returns exit code, stdout and stderr. The current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")  # and what a command makes of it is put back

    def type_it(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dimat", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return type_it


def test_an_authority_and_its_certificates(dimat: Dimat, tmp_path: Path) -> None:
    code, out, _ = dimat("certs", "new", "lab")
    assert (code, "made the authority lab/authority.pem" in out) == (0, True)
    for words in (
        ["--agent", "3", "--host", "10.0.0.3", "--days", "30"],
        ["--coordinator"],
        ["--admin"],
        ["--onlooker"],
    ):
        code, out, _ = dimat("certs", "issue", "lab", *words, "--format", "json")
        assert code == 0
    assert json.loads(out) == {
        "identity": "dimat:onlooker", "certificate": "lab/onlooker.pem", "key": "lab/onlooker.key",
    }  # fmt: skip
    assert held_identities(tmp_path / "lab") == [COORDINATOR, ADMIN, ONLOOKER, agent(3)]
    load_credentials(tmp_path / "lab", agent(3))
    for key in (tmp_path / "lab").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["new", "lab"], "authority.pem is there already, and is not overwritten"),
        (["issue", "lab", "--agent", "0"], "agent-0.pem is there already"),
        (["issue", "lab"], "one of --agent ID, --coordinator, --admin, --onlooker"),
        (["issue", "lab", "--admin", "--agent", "9"], "for one identity, and was asked for agent 9, an admin"),
        (["issue", "lab", "--agent", "9", "--host", "*"], "--host '*'"),
        (["issue", "lab", "--agent", "9", "--days", "4000"], "would outlive its authority"),
        (["issue", "nowhere", "--agent", "9"], "no authority to issue with"),
        (["issue", "lab", "--agent", "-1"], "--agent"),
    ],
)
def test_wrong_usage(dimat: Dimat, tmp_path: Path, words: list[str], expected: str) -> None:
    new_authority(tmp_path / "lab")
    issue_missing(tmp_path / "lab", [agent(0)])
    before = {path: path.read_bytes() for path in (tmp_path / "lab").iterdir()}
    code, out, err = dimat("certs", *words)
    assert (code, out) == (2, "")
    assert expected in err, err
    assert {path: path.read_bytes() for path in (tmp_path / "lab").iterdir()} == before


SMALL = ("-s", "task.model=mlp", "-s", "agents=2", "-s", "topology.graph=path")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["run", *SMALL, "--certs", "nowhere"],
            "holds no certificates of the coordinator, an onlooker, agent 0, agent 1",
        ),
        (["run", *SMALL, "-s", "security.certificates=required"], "security.certificates is 'required'"),
        (["coordinator", *SMALL, "-s", "security.certificates=required"], "security.certificates is 'required'"),
        (["coordinator", *SMALL, "--certs", "lab"], "has no coordinator.pem"),
        (["coordinator", *SMALL, "--host", "0.0.0.0", "--advertise", "h"], "plain text on '0.0.0.0'"),
        (["agent", *SMALL, "--id", "1", "--coordinator", "127.0.0.1:9", "--certs", "lab"], "has no agent-1.pem"),
        (
            ["agent", *SMALL, "--id", "0", "--coordinator", "127.0.0.1:9", "--certs", "lab", "--insecure"],
            "--certs and --insecure exclude each other",
        ),
        (["agent", *SMALL, "--id", "0", "--coordinator", "192.0.2.1:9"], "refusing to dial 192.0.2.1:9 in plain text"),
        (["continual", "submit", "192.0.2.1:9", "m.safetensors"], "refusing to dial 192.0.2.1:9 in plain text"),
        (["continual", "status", "192.0.2.1:9"], "refusing to dial 192.0.2.1:9 in plain text"),
        (["continual", "export", "192.0.2.1:9", "--out", "x"], "refusing to dial 192.0.2.1:9 in plain text"),
        (["continual", "status", "127.0.0.1:9", "--certs", "two"], "it holds certificates for clients: admin, agent-0"),
        (["continual", "status", "127.0.0.1:9", "--certs", "two", "--as", "agent-4"], "has no agent-4"),
        (["continual", "status", "127.0.0.1:9", "--as", "admin"], "--as admin needs --certs DIR"),
        (["continual", "status", "lab", "--certs", "lab"], "lab is not an address"),
    ],
)
def test_it_is_refused_before_anything_starts(dimat: Dimat, tmp_path: Path, words: list[str], expected: str) -> None:
    new_authority(tmp_path / "lab")
    new_authority(tmp_path / "two")
    issue_missing(tmp_path / "lab", [agent(0)])
    issue_missing(tmp_path / "two", [agent(0), ADMIN])
    (tmp_path / "lab" / "authority.key").unlink()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = dimat(*words)
    assert (code, out) == (2, ""), err
    assert expected in err, err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_issues_what_its_authority_can(tmp_path: Path) -> None:
    from dimat.cli.secured import issue_for_run
    from dimat.config import load_config

    new_authority(tmp_path)
    issue_for_run(tmp_path, load_config(None, ["agents=2"]))
    assert held_identities(tmp_path) == [COORDINATOR, ONLOOKER, agent(0), agent(1)]


def test_plain_text_beyond_this_machine_is_said_in_red(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    warn_of_plain_text("10.0.0.1", None)
    said = capsys.readouterr().err
    assert "\x1b[31m" in said
    assert "INSECURE: plain text on 10.0.0.1" in said
    monkeypatch.setenv("NO_COLOR", "1")
    warn_of_plain_text("10.0.0.1", None)
    said = capsys.readouterr().err
    assert "INSECURE" in said
    assert "\x1b" not in said
    warn_of_plain_text("127.0.0.1", None)
    new_authority(tmp_path)
    issue_missing(tmp_path, [agent(0)])
    warn_of_plain_text("10.0.0.1", credentials_for(tmp_path, agent(0)))
    assert capsys.readouterr().err == ""


def test_a_certificate_that_ends_soon_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from dimat.transport.authority import issue

    new_authority(tmp_path)
    issue(tmp_path, agent(0), days=3)
    assert credentials_for(tmp_path, agent(0)) is not None
    assert "the certificate of agent 0 expires on" in caplog.text


def test_servers_with_certificates_let_grpc_log_handshakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dimat.cli.options import set_up_logging

    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")  # inherited
    set_up_logging(0, False)
    assert os.environ["GRPC_VERBOSITY"] == "ERROR"
    set_up_logging(0, False, tmp_path)
    assert os.environ["GRPC_VERBOSITY"] == "INFO"
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    set_up_logging(0, False, tmp_path)
    assert os.environ["GRPC_VERBOSITY"] == "DEBUG"
