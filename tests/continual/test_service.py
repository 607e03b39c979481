"""A served ledger, over a real connection: what is sent is in once, whatever breaks; what is wrong leaves nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving_kit import (
    cut_upload,
    ledger,
    left,
    model,
    offer_of,
    send_until_there,
    served,
    server_process,
    state,
    talking,
    until,
)

from dimat.continual import Ledger
from dimat.continual.service import ContinualService
from dimat.continual.submit import fetch, submit
from dimat.continual.uploads import Uploads
from dimat.errors import DimatError, PeerUnavailable, SchemaError, UsageError
from dimat.merge.digest import digest_of
from dimat.merge.source import OnDisk
from dimat.messages import TensorSpec
from dimat.modelfile import open_model
from dimat.proto.v1 import continual_pb2
from dimat.transport.continual import model_digest
from dimat.transport.grpc import convert
from dimat.transport.grpc.continual_client import ContinualClient
from dimat.transport.grpc.continual_gate import Gate, Limits
from dimat.transport.grpc.continual_server import ContinualServer

Code = grpc.StatusCode


def test_a_model_that_was_sent_is_in_and_the_merged_one_comes_back(tmp_path: Path) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    told: list[str] = []
    with served(at) as address:
        done = submit(address, path, weight=2.0, who="anna", tell=lambda what, done, total: told.append(what))
        merged = fetch(address, tmp_path / "fetched.safetensors")
    at.export(tmp_path / "exported.safetensors")
    (entry,) = at.entries()
    assert (done.present, done.entry.digest, done.entry.order) == (False, digest_of(OnDisk(open_model(path))), 1)
    assert (entry.name, entry.weight, entry.who) == ("a", 2.0, "anna (as claimed) from 127.0.0.1")
    assert (done.entry.norm, done.entry.cosine, done.entry.version) == (entry.norm, entry.cosine, entry.version)
    assert {"reading", "sending", "waiting"} <= set(told)
    assert (merged.version, merged.num_models) == (1, 1)
    assert (tmp_path / "fetched.safetensors").read_bytes() == (tmp_path / "exported.safetensors").read_bytes()
    assert left(at) == []


CLIENT = """
import sys
from pathlib import Path
from dimat.continual.submit import submit
for path in sys.argv[2:]:
    done = submit(sys.argv[1], Path(path), who="client")
    print(done.entry.digest, done.entry.order, done.present)
"""


def test_two_clients_send_twenty_models_and_each_is_in_once(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    models = [model(tmp_path, f"m{i}", i + 1) for i in range(20)]
    shares = (models[:12], models[:7:-1])  # m8 to m11 are sent by both
    with served(at) as address:
        clients = [
            subprocess.Popen(
                [sys.executable, "-c", CLIENT, address, *map(str, share)], stdout=subprocess.PIPE, text=True
            )
            for share in shares
        ]
        answers = [client.communicate(timeout=250)[0].splitlines() for client in clients]
    assert [client.returncode for client in clients] == [0, 0]
    entries = at.entries()
    by_digest = {digest_of(OnDisk(open_model(path))): path for path in models}
    assert [entry.order for entry in entries] == list(range(1, 21))
    assert {entry.digest for entry in entries} == set(by_digest)
    told = [line.split() for lines in answers for line in lines]
    orders = {digest: int(order) for digest, order, _ in told}
    assert orders == {entry.digest: entry.order for entry in entries}
    assert len(told) == 24
    assert sum(present == "True" for _, _, present in told) == 4
    again = ledger(tmp_path, name="again")
    for entry in entries:
        again.add(by_digest[entry.digest], name=entry.name)
    at.export(tmp_path / "served.safetensors")
    again.export(tmp_path / "local.safetensors")
    assert (tmp_path / "served.safetensors").read_bytes() == (tmp_path / "local.safetensors").read_bytes()


def test_the_same_model_by_two_at_once_is_in_once(tmp_path: Path) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    offer, data = offer_of(path)
    with served(at) as address, ThreadPoolExecutor(1) as pool:
        with talking(address, offer) as talk:
            talk.send(talk.hear().position, data[:100])
            other = pool.submit(submit, address, path)  # waits: somebody is sending it
            talk.send(100, data[100:])
            while not (answer := talk.hear()).HasField("entry"):
                pass
        assert answer.state == continual_pb2.SUBMIT_STATE_ABSORBED
        assert other.result(timeout=30).present
        assert submit(address, path).present
    assert [entry.digest for entry in at.entries()] == [offer.digest]


def test_who_waits_for_another_goes_on_where_that_one_stopped(tmp_path: Path) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    offer, data = offer_of(path)
    with served(at) as address, ThreadPoolExecutor(1) as pool:
        positions: list[int] = []
        with talking(address, offer) as talk:
            send_until_there(talk, at, offer, data, 100)
            other = pool.submit(
                submit, address, path, tell=lambda what, done, total: what == "sending" and positions.append(done)
            )
        assert not other.result(timeout=30).present
    assert positions[0] == 100
    assert len(at.entries()) == 1


@pytest.mark.parametrize("restarted", [False, True], ids=["same server", "another server"])
@pytest.mark.parametrize("num_bytes", [1, 97, 1535, 1536, 1600])
def test_a_broken_upload_goes_on_where_it_stopped(tmp_path: Path, num_bytes: int, restarted: bool) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    offer, data = offer_of(path, session="another")
    with served(at) as address:
        cut_upload(address, path, at, num_bytes)
        if not restarted:
            _finish(address, offer, data, num_bytes)
    assert restarted == bool(left(at))
    if restarted:
        with served(at) as address:
            _finish(address, offer, data, num_bytes)
    assert at.digests().keys() == {offer.digest}
    assert left(at) == []


def _finish(address: str, offer: Any, data: bytes, position: int) -> None:
    """Go on with an upload of which the server holds `position` bytes, and send not one byte more than needed."""
    with talking(address, offer) as talk:
        assert talk.hear().position == position
        talk.send(position, data[position:])
        while not talk.hear().HasField("entry"):
            pass


def test_the_same_sender_takes_its_upload_over_and_its_old_connection_is_dead(tmp_path: Path) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    offer, data = offer_of(path)
    with served(at) as address, talking(address, offer) as old:
        send_until_there(old, at, offer, data, 100)
        with talking(address, offer) as new:
            assert new.hear().position == 100
            old.send(100, b"x" * 10)
            assert old.refused().code() is Code.UNAVAILABLE
            new.send(100, data[100:])
            while not new.hear().HasField("entry"):
                pass
    assert at.digests().keys() == {offer.digest}


# ------------------------------------------------------------------------------------------------------ what is refused


def test_another_digest_than_the_tensors_is_refused_before_a_byte(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    for digest in ("0" * 64, "../../../etc/passwd", ""):
        offer, _ = offer_of(model(tmp_path, "a", 1), digest=digest)
        with served(at) as address, talking(address, offer) as talk:
            refused = talk.refused()
        assert (refused.code(), left(at)) == (Code.INVALID_ARGUMENT, [])
        assert "digest" in str(refused.details())


def test_bytes_that_are_not_what_was_announced_are_dropped(tmp_path: Path) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    offer, data = offer_of(path)
    changed = bytearray(data)
    changed[1001] ^= 1
    with served(at) as address:
        with talking(address, offer) as talk:
            talk.send(talk.hear().position, bytes(changed))
            refused = talk.refused()
        assert refused.code() is Code.DATA_LOSS
        assert "fc.weight" in str(refused.details())
        until(lambda: left(at) == [])
        assert at.entries() == ()
        assert not submit(address, path).present


def _lies() -> dict[str, tuple[Any, Code, str]]:
    """By name: the tensors that are announced instead, the status, and words of the reason."""
    right = [TensorSpec(key, str(one.dtype).removeprefix("torch."), tuple(one.shape)) for key, one in state(1).items()]
    weight, bias, *rest = right
    schema, usage = Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT
    return {
        "huge": ([replace(weight, shape=(1 << 40, 1 << 20)), bias, *rest], schema, "[1099511627776, 1048576]"),
        "transposed": ([replace(weight, shape=(16, 24)), bias, *rest], schema, "'fc.weight' is [16, 24]"),
        "another name": ([replace(weight, name="fc.wieght"), bias, *rest], schema, "has tensor 'fc.weight' [24, 16]"),
        "one more": ([*right, TensorSpec("more", "float32", (2,))], schema, "has tensor 'more' [2]"),
        "one less": ([weight, *rest], schema, "'fc.bias' [24]"),
        "twice": ([*right, weight], usage, "6 tensors under 5 names"),
        "many": ([weight] * 1000, usage, "1000 tensors"),
        "integers": ([replace(weight, dtype="int32"), bias, *rest], schema, "'fc.weight' is int32"),
        "wide counter": ([weight, bias, *rest[:-1], replace(rest[-1], dtype="int32")], schema, "'steps' is int32"),
        "a path": ([replace(weight, name="x" * 100_000), bias, *rest], schema, "fc.weight"),
    }


@pytest.mark.parametrize("lie", list(_lies()))
def test_announcements_that_are_not_the_bases_are_refused_before_a_byte(tmp_path: Path, lie: str) -> None:
    at = ledger(tmp_path)
    tensors, code, words = _lies()[lie]
    checksums = (bytes(32),) * len(tensors)
    offer, _ = offer_of(
        model(tmp_path, "a", 1), tensors=tuple(tensors), checksums=checksums, digest=model_digest(tensors, checksums)
    )
    with served(at) as address:
        with talking(address, offer) as talk:
            refused = talk.refused()
        assert (refused.code(), left(at)) == (code, [])
        assert words in str(refused.details())
        assert not submit(address, tmp_path / "a.safetensors").present


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": float("nan")}, "finite"),
        ({"weight": 1e39}, "1e+39, expected a finite number"),
        ({"weight": -1e300}, "-1e+300, expected a finite number"),
        ({"name": ""}, "name"),
        ({"name": "a\x1b[31m"}, "name"),
        ({"who": "x" * 1000}, "sender"),
        ({"checksums": (b"",) * 5}, "SHA-256"),
        ({"protocol": 99}, "version 99"),
    ],
)
def test_an_offer_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    at = ledger(tmp_path)
    offer, _ = offer_of(model(tmp_path, "a", 1), **change)
    with served(at) as address, talking(address, offer) as talk:
        refused = talk.refused()
    assert (refused.code(), left(at)) == (Code.INVALID_ARGUMENT, [])
    assert words in str(refused.details())


@pytest.mark.parametrize("first", [b"", b"\xff\xff\xff", b"\x11" + bytes(20)])
def test_a_first_frame_that_is_no_offer_is_refused(tmp_path: Path, first: bytes) -> None:
    with served(ledger(tmp_path)) as address, talking(address, first) as talk:
        assert talk.refused().code() is Code.DATA_LOSS


def test_bytes_beyond_the_model_and_bytes_out_of_place_are_refused(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    offer, data = offer_of(model(tmp_path, "a", 1))
    with served(at) as address:
        for position, sent in ((0, data + bytes(1)), (0, data + bytes(100_000)), (8, data)):
            with talking(address, offer) as talk:
                assert talk.hear().position == 0
                talk.send(position, sent)
                assert talk.refused().code() is Code.DATA_LOSS
            until(lambda: left(at) == [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_is_refused_by_the_tensors_name_and_leaves_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    at = ledger(tmp_path)
    weight = state(1, dtype)["fc.weight"]
    weight[20, 3] = float("nan")
    path = model(tmp_path, "a", 1, dtype, fc__weight=weight)
    with served(at) as address:
        with pytest.raises(UsageError, match=r"'fc\.weight'.*NaN"):
            submit(address, path)
        until(lambda: left(at) == [])
    assert at.entries() == ()


def test_inf_is_found_also_where_an_entry_is_cut_in_two(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    offer, data = offer_of(model(tmp_path, "a", 1, scale=torch.tensor(float("inf"))))
    where = data.index(b"\x00\x00\x80\x7f")
    with served(at) as address, talking(address, offer) as talk:
        assert talk.hear().position == 0
        for start, stop in ((0, where + 1), (where + 1, where + 3), (where + 3, len(data))):
            talk.send(start, data[start:stop])
        refused = talk.refused()
    assert refused.code() is Code.INVALID_ARGUMENT
    assert "'scale'" in str(refused.details())


def test_models_of_other_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    at, local = ledger(tmp_path), ledger(tmp_path, name="local")
    with served(at) as address:
        for i, dtype in enumerate((torch.bfloat16, torch.float16, torch.float64)):
            path = model(tmp_path, f"m{i}", i + 1, dtype)
            assert not submit(address, path).present
            local.add(path)
    assert at.digests().keys() == local.digests().keys()
    assert all(torch.equal(one, local.merged()[name]) for name, one in at.merged().items())


def test_a_taken_name_is_refused_before_a_byte(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    offer, _ = offer_of(model(tmp_path, "b", 2), name="a")
    with served(at) as address:
        submit(address, model(tmp_path, "a", 1))
        with talking(address, offer) as talk:
            refused = talk.refused()
    assert (refused.code(), left(at)) == (Code.INVALID_ARGUMENT, [])
    assert "--name" in str(refused.details())


def test_a_method_that_needs_statistics_and_a_base_that_cannot_travel_are_not_served(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fisher statistics"), served(ledger(tmp_path, "fisher")):
        pass
    narrow = model(tmp_path, "narrow", 1, scale=torch.zeros(2, dtype=torch.float8_e4m3fn))
    with (
        pytest.raises(UsageError, match=r"'scale'.*does not travel"),
        served(Ledger.create(tmp_path / "other", narrow, "mean")),
    ):
        pass


def test_a_ledger_has_one_server(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    with served(at), pytest.raises(UsageError, match="served by another process"), served(at):
        pass


# ------------------------------------------------------------------------------------------------------ what is limited


def test_a_stream_too_many_is_told_to_come_again_and_comes(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    offer, data = offer_of(model(tmp_path, "a", 1))
    other = model(tmp_path, "b", 2)
    with served(at, limits=Limits(num_streams=1)) as address, ThreadPoolExecutor(1) as pool:
        with talking(address, offer) as talk:
            assert talk.hear().position == 0
            with talking(address, offer_of(other)[0]) as second:
                assert "busy" in str(second.refused().details())
            waits = pool.submit(submit, address, other)
            talk.send(0, data)
            while not talk.hear().HasField("entry"):
                pass
        assert not waits.result(timeout=30).present
    assert len(at.entries()) == 2


def test_a_stream_that_stalls_is_ended_and_what_it_sent_is_kept(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    offer, data = offer_of(model(tmp_path, "a", 1))
    with served(at, limits=Limits(stall_s=1.0)) as address:
        with talking(address, offer) as talk:
            talk.send(talk.hear().position, data[:100])
            refused = talk.refused()
        assert refused.code() is Code.UNAVAILABLE
        assert "stalled" in str(refused.details())
        _finish(address, replace(offer, session="another"), data, 100)


def test_patience_is_that_of_the_slowest_allowed() -> None:
    limits = Limits(stall_s=30.0, min_bytes_per_s=1000.0)
    assert limits.patience_s(0.0, 0) == 30.0
    assert limits.patience_s(100.0, 1_000_000) == 30.0
    assert limits.patience_s(100.0, 80_000) == 10.0
    assert limits.patience_s(100.0, 5) == 0.0


def test_a_host_that_calls_too_often_is_told_so_and_others_are_not() -> None:
    gate = Gate(Limits(calls_per_minute=2, num_calls=2))
    for _ in range(2):
        with gate.call("ipv4:10.0.0.1:1000"):
            pass
    with pytest.raises(PeerUnavailable, match="2 calls a minute"), gate.call("ipv4:10.0.0.1:1001"):
        pass
    with (
        gate.call("ipv4:10.0.0.2:1000"),
        gate.call("ipv4:10.0.0.3:1000"),
        pytest.raises(PeerUnavailable, match="2 calls are under way"),
        gate.call("ipv4:10.0.0.4:1"),
    ):
        pass
    with gate.call("ipv4:10.0.0.5:1000"):
        pass


# ----------------------------------------------------------------------------------------------------- what may be lost


def test_killed_after_absorbing_and_before_the_answer_the_retry_hears_that_it_is_there(tmp_path: Path) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    code = (
        "import os\nfrom dimat.continual.ledger import Ledger\nadd = Ledger.add\n"
        "def killed(*words, **named):\n    add(*words, **named)\n    os.kill(os.getpid(), 9)\n"
        "Ledger.add = killed"
    )
    with ThreadPoolExecutor(1) as pool:
        with server_process(at, code) as (process, address):
            done = pool.submit(submit, address, path)
            assert process.wait(timeout=60) == -signal.SIGKILL
        assert [entry.name for entry in at.entries()] == ["a"]
        assert len(left(at)) == 2, "the model and what its entry says wait for a server to clear them away"
        with served(at, int(address.rpartition(":")[2])):
            assert done.result(timeout=60).present
            until(lambda: left(at) == [])
    assert [entry.order for entry in at.entries()] == [1]


def test_killed_in_the_middle_of_an_upload_the_next_server_goes_on(tmp_path: Path) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    offer, data = offer_of(path, session="another")
    with server_process(at) as (process, address):
        cut_upload(address, path, at, 1001)
        process.kill()
        process.wait(timeout=30)
    with served(at) as address:
        _finish(address, offer, data, 1001)
    assert at.digests().keys() == {offer.digest}


def test_what_had_arrived_whole_is_absorbed_by_the_next_server_without_its_sender(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    models = [model(tmp_path, f"m{i}", i + 1) for i in range(3)]
    code = (
        "import os\nfrom dimat.continual.ledger import Ledger\n"
        "def never(*words, **named):\n    import time\n    time.sleep(1000)\n"
        "Ledger.add = never"
    )
    with server_process(at, code) as (process, address):
        for i, path in enumerate(models[::-1]):
            offer, data = offer_of(path, weight=float(i + 1), who="anna")
            with talking(address, offer) as talk:
                talk.send(talk.hear().position, data)
                while talk.hear().state != continual_pb2.SUBMIT_STATE_QUEUED:
                    pass
        process.kill()
        process.wait(timeout=30)
    assert at.entries() == ()
    with served(at):
        until(lambda: len(at.entries()) == 3)
        until(lambda: left(at) == [])
    found = [(entry.name, entry.weight, entry.who) for entry in at.entries()]
    who = "anna (as claimed) from 127.0.0.1"
    assert found == [("m2", 1.0, who), ("m1", 2.0, who), ("m0", 3.0, who)]


def test_a_model_that_was_damaged_on_the_servers_disk_is_not_absorbed(tmp_path: Path) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    offer, _ = offer_of(path)
    uploads = at.path / "uploads"
    uploads.mkdir()
    whole = uploads / f"00000001-{offer.digest}.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    whole.write_bytes(damaged)
    whole.with_suffix(".json").write_text('{"name": "a", "weight": 1.0, "who": ""}')
    with served(at) as address:
        until(lambda: left(at) == [])
        assert at.entries() == ()
        assert not submit(address, path).present


def test_what_could_not_be_absorbed_is_tried_again_without_being_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, path = ledger(tmp_path), model(tmp_path, "a", 1)
    add, num_tries = Ledger.add, 0
    states: list[str] = []

    def full_at_first(*words: Any, **named: Any) -> Any:
        nonlocal num_tries
        num_tries += 1
        if num_tries < 3:
            raise DimatError("the disk is full")
        return add(*words, **named)

    monkeypatch.setattr(Ledger, "add", full_at_first)
    with served(at) as address:
        assert not submit(address, path, tell=lambda what, done, total: states.append(what)).present
        assert num_tries == 3
    first = states.index("waiting")
    assert "sending" not in states[first:]


def test_an_answer_is_awaited_while_the_model_waits_and_a_server_that_leaves_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ledger(tmp_path)
    add, begun, go = Ledger.add, threading.Event(), threading.Event()

    def held(*words: Any, **named: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return add(*words, **named)

    monkeypatch.setattr(Ledger, "add", held)
    with ThreadPoolExecutor(2) as pool:
        with served(at) as address:
            first = pool.submit(submit, address, model(tmp_path, "a", 1))
            assert begun.wait(30)
            second = pool.submit(submit, address, model(tmp_path, "b", 2), timeout_s=2.0)
            until(lambda: sum(name.endswith(".safetensors") for name in left(at)) == 2)
            threading.Timer(0.2, go.set).start()
        assert not first.result(timeout=30).present, "the one that was being absorbed was finished, and answered"
        with pytest.raises(PeerUnavailable):
            second.result(timeout=30)
    assert [entry.name for entry in at.entries()] == ["a"]
    with served(at):
        until(lambda: len(at.entries()) == 2)


def test_a_model_that_no_absorbing_helps_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, add = ledger(tmp_path), Ledger.add
    models = [model(tmp_path, f"m{i}", i + 1) for i in range(3)]
    at.path.joinpath("uploads").mkdir()

    def defect(*words: Any, **named: Any) -> Any:
        if named["name"] != "m2":
            raise RuntimeError("a defect")
        return add(*words, **named)

    monkeypatch.setattr(Ledger, "add", defect)
    room = ContinualService(at)._least_bytes  # of one model
    with served(at, max_upload_bytes=room) as address:
        for path in models[:2]:
            with pytest.raises(DimatError, match="a defect"):
                submit(address, path, timeout_s=1.0)
        assert not submit(address, models[2], timeout_s=30.0).present
    assert [entry.name for entry in at.entries()] == ["m2"]


def test_a_model_that_cannot_be_cleared_away_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = ledger(tmp_path)

    def broken(self: Uploads, whole: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Uploads, "remove", broken)
    with served(at) as address:
        for i in range(2):
            assert not submit(address, model(tmp_path, f"m{i}", i + 1), timeout_s=30.0).present
    assert len(at.entries()) == 2


@pytest.mark.parametrize("what", ["submit", "export"])
def test_who_does_not_read_what_they_are_sent_holds_no_place(tmp_path: Path, what: str) -> None:
    at = ledger(tmp_path)
    path = model(tmp_path, "a", 1)
    at.add(path, name="there")
    frame = continual_pb2.SubmitFrame(offer=convert.to_proto(offer_of(path)[0])).SerializeToString()

    class Deaf:
        def peer(self) -> str:
            return "ipv4:10.0.0.1:1"

        async def read(self) -> bytes:
            return frame

        async def write(self, message: Any) -> None:
            await asyncio.sleep(60)

    service = ContinualService(at)
    server = ContinualServer(service, limits=Limits(stall_s=0.5))
    service.start()
    server.start()
    try:
        request = frame if what == "submit" else continual_pb2.ExportRequest()
        call = getattr(server, f"_{what}")(request, Deaf())
        with pytest.raises(PeerUnavailable, match="the client's reading did not come"):
            asyncio.run(asyncio.wait_for(call, 20))
        assert set(server._gate._counts.values()) == {0}
    finally:
        service.stop()
        server.close()


# -------------------------------------------------------------------------------------------------- status and export


@pytest.mark.parametrize("options", ["", "[1]", "{", "1e999"])
def test_options_that_are_none_are_told(options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dimat.cli.continual_remote import remote_status

    status = ContinualService.status
    monkeypatch.setattr(ContinualService, "status", lambda self: replace(status(self), options=options))
    with served(ledger(tmp_path)) as address, pytest.raises(DimatError, match="options that are no JSON object"):
        remote_status(address)


def test_status_tells_what_the_ledger_tells(tmp_path: Path) -> None:
    from dimat.cli.continual_remote import remote_status

    at = ledger(tmp_path)
    with served(at) as address:
        for i in range(3):
            submit(address, model(tmp_path, f"m{i}", i + 1), weight=1.0 + i)
        assert remote_status(address).as_json() == at.status().as_json()
        with grpc.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert check.status == health_pb2.HealthCheckResponse.SERVING


def test_the_merged_model_is_the_newest_and_goes_on_where_it_broke(tmp_path: Path) -> None:
    at = ledger(tmp_path)

    class Breaking:
        """Breaks off the first time that bytes beyond 1000 are asked for."""

        def __init__(self, service: Any) -> None:
            self._service = service
            self.asked: list[int] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(self._service, name)

        def merged(self, digest: str) -> Any:
            reader = self._service.merged(digest)
            outer = self

            class Reader:
                merged = reader.merged
                close = staticmethod(reader.close)

                @staticmethod
                def read(position: int, num_bytes: int) -> bytes:
                    outer.asked.append(position)
                    if position > 1000 and outer.asked.count(position) == 1:
                        raise OSError("the disk went away")
                    return bytes(reader.read(position, num_bytes))

            return Reader()

    breaking: list[Breaking] = []

    def around(service: Any) -> Any:
        breaking.append(Breaking(service))
        return breaking[0]

    out = tmp_path / "out.safetensors"
    with served(at, around=around) as address:
        with pytest.raises(UsageError, match="no model yet"):
            fetch(address, out)
        assert list(tmp_path.glob("*out*")) == []
        submit(address, model(tmp_path, "a", 1))
        fetch(address, out)
        with pytest.raises(UsageError, match="exists already"):
            fetch(address, out)
        first = out.read_bytes()
        submit(address, model(tmp_path, "b", 2))
        assert fetch(address, out, overwrite=True).num_models == 2
    assert breaking[0].asked[:4] == [0, 1024, 1024, 1644]
    at.export(tmp_path / "local.safetensors")
    assert first != out.read_bytes() == (tmp_path / "local.safetensors").read_bytes()
    assert list(tmp_path.glob(".out*")) == []


def test_an_export_that_is_no_longer_the_newest_begins_again(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    stub_name = "/dimat.v1.Continual/Export"
    with served(at) as address, grpc.insecure_channel(address) as channel:
        stub = channel.unary_stream(stub_name, request_serializer=continual_pb2.ExportRequest.SerializeToString)
        submit(address, model(tmp_path, "a", 1))
        announced = continual_pb2.ExportFrame.FromString(next(stub(continual_pb2.ExportRequest(), timeout=30))).merged
        tail = list(stub(continual_pb2.ExportRequest(digest=announced.digest, position=1500), timeout=30))[1:]
        at.export(tmp_path / "local.safetensors")
        assert (
            b"".join(continual_pb2.ExportFrame.FromString(frame).data for frame in tail)
            == ((tmp_path / "local.safetensors").read_bytes()[-sum(one.nbytes for one in state(0).values()) :][1500:])
        )
        submit(address, model(tmp_path, "b", 2))
        with pytest.raises(grpc.RpcError) as gone:
            list(stub(continual_pb2.ExportRequest(digest=announced.digest, position=1500), timeout=30))
    assert gone.value.code() is Code.OUT_OF_RANGE


def test_a_refusal_comes_back_as_what_it_was(tmp_path: Path) -> None:
    at = ledger(tmp_path)
    with served(at) as address:
        bad = model(tmp_path, "bad", 1, fc__bias=torch.zeros(25))
        with pytest.raises(SchemaError, match=r"'fc\.bias' is \[25\] in model bad and \[24\] in the ledger's base"):
            submit(address, bad)
        with pytest.raises(UsageError, match="finite"):
            submit(address, model(tmp_path, "a", 1), weight=float("inf"))
        assert ContinualClient(address).status().num_models == 0
    assert list((at.path / "states").iterdir()) == []
