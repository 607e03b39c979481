"""`dimat doctor`: what is wrong is found, said with its cure, and told by the exit code."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dimat.agent.preflight import check_run
from dimat.cli.app import main
from dimat.config import load_config
from dimat.launch.doctor import check_certificates, check_clock, check_disk, check_validity
from dimat.messages import Header, Schema, TensorSpec
from dimat.snapshot.encode import encode
from dimat.transport.authority import issue, new_authority
from dimat.transport.grpc import GrpcTransport, ping
from dimat.transport.security import ONLOOKER, agent, load_credentials

SETTINGS = ["agents=3", "topology.graph=path", "task.model.name=mlp", "task.model.hidden=[16]"]
FLAGS = [part for setting in SETTINGS for part in ("-s", setting)]
Doctor = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Doctor:
    """Ask the doctor; returns the exit code and the JSON."""
    monkeypatch.chdir(tmp_path)

    def ask(*words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["dimat", "doctor", *FLAGS, *words, "--format", "json"])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out) if out else {"stderr": err}

    return ask


def states(result: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["state"] for finding in result["checks"]}


@pytest.fixture
def serve() -> Iterator[Callable[..., GrpcTransport]]:
    """An agent that is up; ended with the test."""
    running = []

    def begin(agent: int, schema: Schema) -> tuple[GrpcTransport, str]:
        transport = GrpcTransport(agent, "test", schema)
        running.append(transport)
        address = transport.start()
        transport.connect({})
        return transport, address

    yield begin
    for transport in running:
        transport.close()


def test_where_nothing_runs_stand_ins_are_dialled_over_every_edge(doctor: Doctor, tmp_path: Path) -> None:
    code, result = doctor()
    assert code == 0 and result["healthy"]
    assert states(result) == dict.fromkeys(("config", "folder", "port", "disk"), "ok")
    assert [(edge["reader"], edge["peer"]) for edge in result["edges"]] == [(0, 1), (1, 0), (1, 2), (2, 1)]
    for edge in result["edges"]:
        assert edge["error"] == "" and edge["bytes_per_s"] > 0 and edge["num_bytes"] == 16 << 20
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_each_agent_that_is_not_as_it_should_be_is_named(
    doctor: Doctor, serve: Callable[..., Any], tmp_path: Path
) -> None:
    made = check_run(load_config(None, SETTINGS))
    fine, at_fine = serve(0, made.schema)
    fine.publish(encode(made.model.state_dict(), Header("snapshot", 1, agent=0)))
    _, at_other = serve(1, Schema((TensorSpec("w", "float32", (2,)),)))
    (tmp_path / "peers.yaml").write_text(yaml.safe_dump({0: at_fine, 1: at_other}))
    code, result = doctor("--peers", "peers.yaml", "--timeout", "2")
    assert code == 1 and not result["healthy"]
    edges = {(edge["reader"], edge["peer"]): edge for edge in result["edges"]}
    assert edges[1, 0]["error"] == "" and edges[1, 0]["num_bytes"] == made.schema.num_bytes
    assert edges[0, 1]["error"] == edges[2, 1]["error"] and "trains another model" in edges[0, 1]["error"]
    assert "same config" in edges[0, 1]["cure"]
    assert edges[1, 2]["error"] == "is not up" and edges[1, 2]["cure"] == "start agent 2"
    assert states(result)["clock"] == "ok"
    assert fine.readers("snapshot", 1) == frozenset(), "its neighbours are still waited for"

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{nobody.getsockname()[1]}"
        (tmp_path / "peers.yaml").write_text(yaml.safe_dump([gone, at_fine, at_fine]))
        code, result = doctor("--peers", "peers.yaml", "--timeout", "1")
    edges = {(edge["reader"], edge["peer"]): edge for edge in result["edges"]}
    assert code == 1
    assert "nobody answers" in edges[1, 0]["error"] and "firewall" in edges[1, 0]["cure"]
    assert "agent 0 answers there" in edges[0, 1]["error"]


def test_with_certificates_each_agent_has_to_prove_who_it_is(doctor: Doctor, tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    new_authority(certs)
    for identity in (ONLOOKER, *(agent(number) for number in range(3))):
        issue(certs, identity)
    schema = Schema((TensorSpec("w", "float32", (2,)),))
    with ExitStack() as stack:
        addresses = []
        for number, shown in enumerate((0, 1, 1)):  # the last one shows another's certificate
            credentials = load_credentials(certs, agent(shown))
            transport = stack.enter_context(closing(GrpcTransport(number, "test", schema, credentials=credentials)))
            addresses.append(transport.start())
        (tmp_path / "peers.yaml").write_text(yaml.safe_dump(addresses))
        code, result = doctor("--peers", "peers.yaml", "--certs", "certs", "--timeout", "3")
        plain = doctor("--peers", "peers.yaml", "--timeout", "1")[1]
        for key in certs.glob("*.key"):
            key.unlink()
        without = doctor("--peers", "peers.yaml", "--certs", "certs")
    errors = {edge["peer"]: edge["error"] for edge in result["edges"]}
    assert code == 1 and errors[0] == errors[1] == "" and errors[2]
    assert all(edge["round_trip_s"] > 0 for edge in result["edges"] if not edge["error"])
    assert all(edge["error"] for edge in plain["edges"])
    assert without[0] == 1 and without[1]["edges"] == [], "nothing is dialled in plain text instead"


def test_an_agent_that_has_published_nothing_is_no_fault(
    doctor: Doctor, serve: Callable[..., Any], tmp_path: Path
) -> None:
    schema = check_run(load_config(None, SETTINGS)).schema
    (tmp_path / "peers.yaml").write_text(yaml.safe_dump([serve(number, schema)[1] for number in range(3)]))
    code, result = doctor("--peers", "peers.yaml")
    assert code == 0
    assert all(edge["bytes_per_s"] is None and edge["round_trip_s"] > 0 for edge in result["edges"])


def test_a_clock_that_is_wrong_is_measured(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, address = serve(0, Schema((TensorSpec("w", "float32", (2,)),)))

    asked = 0

    def clock() -> float:  # asked by the client first, then by the server, which lives a minute and a half in the past
        nonlocal asked
        asked += 1
        return time.time() - 90.0 * (asked % 2 == 0)

    monkeypatch.setattr("dimat.transport.grpc.ping.time", SimpleNamespace(time=clock, perf_counter=time.perf_counter))
    pong = ping.ping(address, 10.0, agent(0))
    assert pong.skew_s == pytest.approx(-90.0, abs=1.0)
    found = check_clock("agent 0", pong.skew_s, pong.round_trip_s)
    assert found.state == "wrong" and "behind this clock" in found.told and "NTP" in found.cure


@pytest.mark.parametrize(
    ("skew_s", "round_trip_s", "state"),
    [(1.9, 0.0, "ok"), (-2.1, 0.0, "wrong"), (2.1, 0.4, "ok"), (None, 0.1, "not checked")],
)
def test_a_skew_counts_beyond_what_the_way_hides(skew_s: float | None, round_trip_s: float, state: str) -> None:
    assert check_clock("x", skew_s, round_trip_s).state == state


def test_a_full_disk_and_a_folder_that_is_none(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (tmp_path / "file").write_text("")
    code, result = doctor("--out", "file/run")
    assert code == 1
    assert states(result)["disk"] == states(result)["folder"] == "wrong"
    assert all(finding["cure"] for finding in result["checks"] if finding["state"] == "wrong")
    assert check_disk(Path("x"), 150, 100).state == "warning"


def test_a_port_in_use_and_plain_text_beyond_this_machine(doctor: Doctor) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        code, result = doctor("--port", str(taken.getsockname()[1]))
        assert code == 1 and states(result)["port"] == "wrong" and result["edges"] == []
    code, result = doctor("--bind", "0.0.0.0")
    assert code == 1 and states(result)["port"] == "wrong"
    code, result = doctor("--bind", "0.0.0.0", "--insecure")
    assert code == 0 and result["edges"]


def test_a_config_that_cannot_be_run_and_a_coordinator_that_is_not_there(doctor: Doctor) -> None:
    code, result = doctor("-s", "merge.method=avarage")
    assert code == 1
    [config] = [finding for finding in result["checks"] if finding["check"] == "config"]
    assert config["state"] == "wrong" and "avarage" in config["told"]
    code, result = doctor("--coordinator", "127.0.0.1:1", "--timeout", "0.5")
    assert code == 1 and states(result)["coordinator"] == "wrong"
    assert {edge["error"] for edge in result["edges"]} == {"is not up"}


@pytest.mark.parametrize("text", ["{0: 7}", "{9: 'a:1'}", "just words", "{"])
def test_a_file_of_peers_that_is_none_is_refused(doctor: Doctor, tmp_path: Path, text: str) -> None:
    (tmp_path / "peers.yaml").write_text(text)
    code, result = doctor("--peers", "peers.yaml")
    assert code == 2 and "--peers" in result["stderr"]


@pytest.mark.parametrize(
    ("begins", "ends", "state"),
    [(-1, 30, "ok"), (-1, 3, "warning"), (-9, -1, "wrong"), (1, 30, "wrong"), (-1, 0, "wrong")],
)
def test_when_a_certificate_is_valid(begins: int, ends: int, state: str) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert check_validity("a.pem", now + timedelta(begins), now + timedelta(ends), now).state == state


def test_keys_that_others_may_read_are_found(tmp_path: Path) -> None:
    for name, mode in (("open.key", 0o644), ("shut.key", 0o600)):
        (tmp_path / name).write_text("secret")
        (tmp_path / name).chmod(mode)
    wrong = {finding.subject: finding for finding in check_certificates(tmp_path) if finding.subject.endswith(".key")}
    assert set(wrong) == {"open.key"} and wrong["open.key"].cure == "chmod 600"
    assert check_certificates(tmp_path / "nowhere")[0].state == "wrong"


def test_an_expired_certificate_is_read(tmp_path: Path) -> None:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "agent 0")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(9)).not_valid_after(now - timedelta(1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    (tmp_path / "agent-0.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "broken.pem").write_text("no certificate")
    found = {finding.subject: finding for finding in check_certificates(tmp_path)}
    assert found["agent-0.pem"].state == "wrong" and "expired" in found["agent-0.pem"].told
    assert found["broken.pem"].state == "wrong" and "cannot be read" in found["broken.pem"].told


def test_without_the_package_expiry_is_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    [found] = check_certificates(tmp_path)
    assert found.state == "not checked" and found.cure == "pip install cryptography"


def test_the_table_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["dimat", "doctor", *FLAGS, "--bind", "0.0.0.0", "--out", os.devnull + "/x"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "WRONG" in out and "name a folder that you may write to" in out
