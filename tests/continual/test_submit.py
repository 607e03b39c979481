"""A model as it is sent: its bytes from anywhere, its digest, and a client that has the right patience."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_kit import hugging_face, ledger, model, served, state

from dimat.continual.offered import claimed, most_bytes, schema_of
from dimat.continual.outgoing import OutgoingModel
from dimat.continual.submit import fetch, submit
from dimat.errors import DimatError, PeerUnavailable, UsageError
from dimat.merge.digest import digest_of
from dimat.merge.source import OnDisk
from dimat.messages import Schema, TensorSpec
from dimat.modelfile import open_model, write_model
from dimat.transport.continual import model_digest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------------------------------------------- bytes and digests


@given(position=st.integers(0, 2000), num_bytes=st.integers(1, 2000))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_sequence_can_be_read_from_anywhere(position: int, num_bytes: int, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    outgoing = OutgoingModel.open(open_model(folder if folder.exists() else hugging_face(folder, 1)))
    tensors = open_model(folder).read_all()
    raw = (tensors[spec.name].reshape(-1).view(torch.uint8).numpy().tobytes() for spec in outgoing.tensors)
    whole = b"".join(raw)
    try:
        assert outgoing.num_bytes == len(whole)
        assert outgoing.read(position, num_bytes) == whole[position : position + num_bytes]
        assert b"".join(outgoing.pieces(min(position, len(whole)), num_bytes)) == whole[position:]
    finally:
        outgoing.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_of_checksums_is_that_of_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    path = model(tmp_path, "a", 1, dtype)
    outgoing = OutgoingModel.open(open_model(path))
    told: list[int] = []
    checksums = outgoing.checksums(told.append)
    outgoing.close()
    outgoing.close()
    assert model_digest(outgoing.tensors, checksums) == digest_of(OnDisk(open_model(path)))
    assert told == sorted(told)
    assert told[-1] == outgoing.num_bytes


def test_a_model_that_is_deleted_is_read_to_its_end_and_one_that_is_changed_is_not(tmp_path: Path) -> None:
    gone, changed = (OutgoingModel.open(open_model(model(tmp_path, name, 1))) for name in ("gone", "changed"))
    before = gone.read(0, gone.num_bytes)
    (tmp_path / "gone.safetensors").unlink()
    assert gone.read(0, gone.num_bytes) == before
    with (tmp_path / "changed.safetensors").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(DimatError, match="was changed while it was read"):
        changed.read(0, changed.num_bytes)
    for one in (gone, changed):
        one.close()


def test_room_is_that_of_the_widest_floats() -> None:
    base = Schema((TensorSpec("w", "bfloat16", (3, 4)), TensorSpec("n", "int32", (5,)), TensorSpec("m", "bool", ())))
    assert most_bytes(base) == 12 * 8 + 5 * 4 + 1


def test_senders_are_told_apart_from_what_is_known_of_them() -> None:
    assert claimed("anna", "ipv4:10.0.0.7:1") == "anna (as claimed) from 10.0.0.7"
    assert claimed("", "unix:") == "unnamed from unix:"


def test_what_does_not_travel_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    write_model(path, {"w": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(UsageError, match=r"'w' of .*complex64, which does not travel"):
        schema_of(OnDisk(open_model(path)))
    with pytest.raises(UsageError, match="'w'"):
        submit("127.0.0.1:1", path)


# ----------------------------------------------------------------------------------------------------------- the client


def test_folders_are_sent_as_files_are(tmp_path: Path) -> None:
    at, local = ledger(tmp_path), ledger(tmp_path, name="local")
    folder = hugging_face(tmp_path / "hf", 1)
    with served(at) as address:
        assert submit(address, folder).entry.name == "hf"
        same = model(tmp_path, "same", 1)
        assert submit(address, same).present, "a model is known by its digest, however it is cut into files"
    local.add(folder)
    assert at.digests().keys() == local.digests().keys()
    assert all(torch.equal(one, local.merged()[name]) for name, one in at.merged().items())


def test_a_folder_as_base_is_fetched_as_one_file(tmp_path: Path) -> None:
    from dimat.continual import Ledger

    at = Ledger.create(tmp_path / "ledger", hugging_face(tmp_path / "base", 0), "mean")
    with served(at) as address:
        submit(address, model(tmp_path, "a", 1))
        fetch(address, tmp_path / "out.safetensors")
        with pytest.raises(UsageError, match="not named"):
            fetch(address, tmp_path / "out")
    merged, found = at.merged(), open_model(tmp_path / "out.safetensors").read_all()
    assert merged.keys() == found.keys()
    assert all(torch.equal(one, found[name]) for name, one in merged.items())


def test_nobody_there_is_told_in_time_with_the_address_and_the_cure(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(PeerUnavailable, match=f"given up after 0 s: the ledger at {address}") as given_up:
        submit(address, model(tmp_path, "a", 1), timeout_s=0.3)
    assert "dimat continual serve" in str(given_up.value.hint)
    with pytest.raises(PeerUnavailable):
        fetch(address, tmp_path / "out.safetensors", timeout_s=0.3)
    assert list(tmp_path.glob("*out*")) == list(tmp_path.glob(".out*")) == []


def test_a_server_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    at, port = ledger(tmp_path), free_port()
    path = model(tmp_path, "a", 1)
    with ThreadPoolExecutor(1) as pool:
        ready = threading.Event()
        done = pool.submit(submit, f"127.0.0.1:{port}", path, tell=lambda what, done, total: ready.set())
        assert ready.wait(30)  # it has begun, and will find nobody for as long as the server takes
        with served(at, port):
            assert not done.result(timeout=30).present


def test_a_file_that_is_changed_meanwhile_is_told_and_not_sent_for_another(tmp_path: Path) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)

    def change(what: str, done: int, total: int) -> None:
        if what == "reading" and done == total:
            write_model(path, state(2))
            with path.open("r+b") as file:
                file.truncate(100)

    with served(at) as address:
        outgoing = path.stat().st_ino
        with path.open("rb") as kept:  # the inode lives on: what is sent is what was read
            assert not submit(address, path, tell=change).present
            assert kept.fileno() >= 0
        assert path.stat().st_ino != outgoing
    assert len(at.entries()) == 1

    def cut(what: str, done: int, total: int) -> None:
        if what == "reading" and done == total:
            with again.open("r+b") as file:
                file.truncate(100)

    again = model(tmp_path, "b", 2)
    with served(at) as address, pytest.raises(DimatError, match="was changed while it was read"):
        submit(address, again, tell=cut, timeout_s=30.0)
    assert len(at.entries()) == 1


def test_an_answer_tells_what_the_journal_tells(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    with served(at) as address:
        entry = submit(address, model(tmp_path, "a", 1), name="another", weight=-0.5, who="anna").entry
    (line,) = at.status().as_json()["models"]
    assert line["name"] == "another"
    assert {key: line[key] for key in ("name", "digest", "order", "weight", "norm", "time", "who", "cosine")} == {
        key: getattr(entry, key) for key in ("name", "digest", "order", "weight", "norm", "time", "who", "cosine")
    }
    json.dumps(line)
