"""Models on their way: what is on the disk is the beginning of what was announced, or it is not gone on with."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from serving_kit import model, offer_of

from dimat.continual.incoming import IncomingModel, header_bytes
from dimat.continual.lease import UploadLease
from dimat.continual.uploads import Uploads
from dimat.errors import DimatError, PayloadError, PeerUnavailable, UsageError
from dimat.messages import TensorSpec
from dimat.modelfile import open_model
from dimat.transport.continual import Held, Offer

LARGE = 1 << 30
WAYS = st.sampled_from(["go on", "suspend", "kill", "lose the tail"])


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Offer, bytes]:
    return offer_of(model(tmp_path_factory.mktemp("models"), "a", 1))


def uploads(folder: Path, max_bytes: int = LARGE, expire_s: float = 3600.0, now: list[float] | None = None) -> Uploads:
    clock = (lambda: now[0]) if now else (lambda: 0.0)
    return Uploads(folder / "uploads", max_bytes=max_bytes, expire_s=expire_s, clock=clock)


def names_in(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def begin(at: Uploads, offer: Offer) -> UploadLease:
    lease = at.begin(offer, "who")
    assert isinstance(lease, UploadLease)
    lease.open()
    return lease


# ----------------------------------------------------------------------------------------------------- one model's file


@given(steps=st.lists(st.tuples(st.integers(1, 700), WAYS, st.integers(0, 900)), max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_of_any_size_with_breaks_of_any_kind_make_the_same_file(
    steps: list[tuple[int, str, int]], sent: tuple[Offer, bytes], tmp_path: Path
) -> None:
    offer, content = sent
    path = tmp_path / "incoming"
    path.unlink(missing_ok=True)
    incoming = IncomingModel(path, offer.tensors, offer.checksums)
    incoming.open()
    for size, way, lost in steps:
        incoming.take(incoming.position, memoryview(content)[incoming.position :][:size])
        match way:
            case "suspend":
                incoming.suspend()
                incoming.open()
            case "kill":  # another process knows what is on the disk, and nothing else
                before = incoming.position
                incoming.suspend()
                incoming = IncomingModel(path, offer.tensors, offer.checksums)
                incoming.open()
                assert incoming.position == before
            case "lose the tail":
                incoming.suspend()
                os.truncate(path, max(0, path.stat().st_size - lost))
                incoming = IncomingModel(path, offer.tensors, offer.checksums)
                incoming.open()
    incoming.take(incoming.position, memoryview(content)[incoming.position :])
    assert incoming.whole
    incoming.finish()
    assert path.read_bytes() == header_bytes(offer.tensors, {}) + content


def test_the_file_is_one_that_others_read(sent: tuple[Offer, bytes], tmp_path: Path) -> None:
    offer, content = sent
    path = tmp_path / "a.safetensors"
    incoming = IncomingModel(path, offer.tensors, offer.checksums, {"format": "pt"})
    incoming.open()
    incoming.take(0, memoryview(content))
    incoming.finish()
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == sorted(spec.name for spec in offer.tensors)
        assert file.get_tensor("steps").item() == 7
    assert open_model(path).num_bytes == offer.num_bytes


@pytest.mark.parametrize("where", [3, 40, -30, -1])
def test_what_was_changed_on_the_disk_is_not_gone_on_with(
    where: int, sent: tuple[Offer, bytes], tmp_path: Path
) -> None:
    offer, content = sent
    path = tmp_path / "incoming"
    incoming = IncomingModel(path, offer.tensors, offer.checksums)
    incoming.open()
    incoming.take(0, memoryview(content)[:-4])
    incoming.suspend()
    changed = bytearray(path.read_bytes())
    changed[where - 100 if where < 0 else where] ^= 1
    path.write_bytes(changed)
    again = IncomingModel(path, offer.tensors, offer.checksums)
    again.open()
    assert again.position == 0
    again.take(0, memoryview(content))
    again.finish()
    assert path.read_bytes() == header_bytes(offer.tensors, {}) + content


def test_a_file_of_another_model_or_too_long_a_one_is_begun_again(sent: tuple[Offer, bytes], tmp_path: Path) -> None:
    offer, content = sent
    path = tmp_path / "incoming"
    whole = header_bytes(offer.tensors, {}) + content
    for there in (
        b"",
        b"x",
        whole[:9],
        whole + b"surplus",
        b"y" * 5000,
        header_bytes(offer.tensors[::-1], {}) + content,
    ):
        path.write_bytes(there)
        incoming = IncomingModel(path, offer.tensors, offer.checksums)
        incoming.open()
        assert incoming.position == 0
        incoming.take(0, memoryview(content))
        incoming.finish()
        assert path.read_bytes() == whole


def test_bytes_out_of_place_or_beyond_the_end_are_not_written(sent: tuple[Offer, bytes], tmp_path: Path) -> None:
    offer, content = sent
    incoming = IncomingModel(tmp_path / "incoming", offer.tensors, offer.checksums)
    incoming.open()
    incoming.take(0, memoryview(content)[:10])
    size = incoming.path.stat().st_size
    for position, data in ((0, content[:10]), (11, content[11:20]), (10, content[10:] + b"x"), (10, bytes(10_000_000))):
        with pytest.raises(PayloadError):
            incoming.take(position, memoryview(data))
        assert (incoming.path.stat().st_size, incoming.position) == (size, 10)
    incoming.suspend()


def test_nothing_but_a_header_comes_of_a_model_without_entries(tmp_path: Path) -> None:
    empty = (TensorSpec("a", "float32", (0,)), TensorSpec("b", "bfloat16", (3, 0)))
    right, wrong = hashlib.sha256().digest(), bytes(32)
    incoming = IncomingModel(tmp_path / "incoming", empty, (right, right))
    incoming.open()
    assert incoming.whole
    incoming.finish()
    with pytest.raises(PayloadError, match="'b'"):
        IncomingModel(tmp_path / "other", empty, (right, wrong)).open()


# ------------------------------------------------------------------------------------------------------- the folder


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    first, second = uploads(tmp_path), uploads(tmp_path)
    assert first.open() == []
    with pytest.raises(UsageError, match="another process"):
        second.open()
    first.close()
    assert second.open() == []
    second.close()


def test_another_session_waits_and_the_same_takes_over(sent: tuple[Offer, bytes], tmp_path: Path) -> None:
    offer, content = sent
    at = uploads(tmp_path)
    at.open()
    first = begin(at, offer)
    first.take(0, memoryview(content)[:50])
    waits = at.begin(replace(offer, session="other"), "who")
    assert isinstance(waits, Held)
    assert not waits.until.done()
    second = begin(at, offer)
    assert second.position == 50
    with pytest.raises(PeerUnavailable, match="taken over"):
        first.take(50, memoryview(content)[50:60])
    first.release()
    assert waits.until.done()
    second.take(50, memoryview(content)[50:])  # the release of the old lease has left the file open
    assert isinstance(at.begin(replace(offer, session="other"), "who"), Held)
    second.sync()
    whole = at.finish(second)
    second.release()
    assert (whole.number, whole.name, whole.who, whole.digest) == (1, "a", "who", offer.digest)
    assert isinstance(at.begin(replace(offer, session="other"), "who"), UploadLease)
    at.close()


def test_what_was_refused_is_dropped_and_what_broke_off_is_kept(sent: tuple[Offer, bytes], tmp_path: Path) -> None:
    offer, content = sent
    at = uploads(tmp_path)
    at.open()
    partial = tmp_path / "uploads" / f"{offer.digest}.partial"
    lease = begin(at, offer)
    lease.take(0, memoryview(content)[:50])
    lease.release()
    lease.release()
    assert partial.exists()
    lease = begin(at, offer)
    assert lease.position == 50
    with pytest.raises(PayloadError):
        lease.take(49, memoryview(content)[49:])
    lease.release()
    assert not partial.exists()
    lease = begin(at, offer)
    assert lease.position == 0
    with pytest.raises(PayloadError, match="ended after 0"):
        lease.sync()
    at.close()
    with pytest.raises(PeerUnavailable):
        lease.take(0, memoryview(content))
    with pytest.raises(PeerUnavailable, match="leaving"):
        at.begin(offer, "who")


def test_whole_models_come_back_in_the_order_of_completion(tmp_path: Path) -> None:
    at = uploads(tmp_path)
    at.open()
    for seed in (3, 1, 2):
        offer, content = offer_of(model(tmp_path, f"m{seed}", seed), weight=float(seed))
        lease = begin(at, offer)
        lease.take(0, memoryview(content))
        lease.sync()
        at.finish(lease)
        lease.release()
    at.close()
    folder = tmp_path / "uploads"
    (folder / "00000007-feed.json").write_text("{}")
    again = uploads(tmp_path)
    found = again.open()
    assert [(one.number, one.name, one.weight) for one in found] == [(1, "m3", 3.0), (2, "m1", 1.0), (3, "m2", 2.0)]
    # A note without its model: killed in between, the model is still a partial one. And the other way round.
    found[0].path.with_suffix(".json").unlink()
    again.close()
    last = uploads(tmp_path)
    assert [one.name for one in last.open()] == ["m1", "m2"]
    assert (folder / f"{found[0].digest}.partial").exists()
    for one in found[1:]:
        last.remove(one)
    assert sorted(path.name for path in folder.iterdir()) == [f"{found[0].digest}.partial", "lock"]
    last.close()


def test_old_uploads_are_forgotten_and_young_ones_are_not(sent: tuple[Offer, bytes], tmp_path: Path) -> None:
    offer, content = sent
    now = [0.0]
    at = uploads(tmp_path, expire_s=100.0, now=now)
    at.open()
    lease = begin(at, offer)
    lease.take(0, memoryview(content)[:50])
    written = lease.model.path.stat().st_mtime
    now[0] = written + 1000.0
    at.expire()
    assert lease.model.path.exists(), "somebody has the lease"
    lease.release()
    now[0] = written + 99.0
    at.expire()
    assert lease.model.path.exists()
    now[0] = written + 101.0
    at.expire()
    assert not lease.model.path.exists()
    lease = begin(at, offer)
    assert lease.position == 0
    at.close()


def test_room_is_made_from_the_oldest_idle_upload_and_never_from_others(tmp_path: Path) -> None:
    offers = [offer_of(model(tmp_path, f"m{i}", i + 1)) for i in range(5)]
    one = IncomingModel(tmp_path / "x", offers[0][0].tensors, offers[0][0].checksums).num_file_bytes
    at = uploads(tmp_path, max_bytes=3 * one)
    at.open()
    folder = tmp_path / "uploads"

    def there() -> set[int]:
        return {i for i, (offer, _) in enumerate(offers) if (folder / f"{offer.digest}.partial").exists()}

    for i in (1, 0):
        lease = begin(at, offers[i][0])
        lease.take(0, memoryview(offers[i][1])[:-1])
        lease.release()
        os.utime(lease.model.path, (10.0 - i, 10.0 - i))  # 1 is the oldest
    live = begin(at, offers[2][0])
    assert there() == {0, 1, 2}
    second = begin(at, offers[3][0])
    assert there() == {0, 2, 3}
    third = begin(at, offers[0][0])
    assert third.position == len(offers[0][1]) - 1, "its own beginning is nobody's room"
    with pytest.raises(PeerUnavailable, match="busy: 3 models"):
        at.begin(offers[4][0], "who")
    assert there() == {0, 2, 3}
    for lease in (live, second):
        lease.release()
    third.take(third.position, memoryview(offers[0][1])[-1:])
    third.sync()
    at.finish(third)
    third.release()
    begin(at, offers[4][0]).release()
    assert 4 in there()
    begin(at, offers[1][0]).release()
    whole = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert whole == one
    assert whole + sum(path.stat().st_size for path in folder.glob("*.partial")) <= 3 * one
    at.close()


def test_what_could_not_be_absorbed_is_kept_and_makes_room_for_others_first(tmp_path: Path) -> None:
    offers = [offer_of(model(tmp_path, f"m{i}", i + 1)) for i in range(3)]
    one = IncomingModel(tmp_path / "x", offers[0][0].tensors, offers[0][0].checksums).num_file_bytes
    at = uploads(tmp_path, max_bytes=2 * one)
    at.open()
    wholes = []
    for offer, content in offers[:2]:
        lease = begin(at, offer)
        lease.take(0, memoryview(content))
        lease.sync()
        wholes.append(at.finish(lease))
        lease.release()
    with pytest.raises(PeerUnavailable, match="busy"):
        at.begin(offers[2][0], "who")
    for whole in wholes:
        at.set_aside(whole)
    begin(at, offers[2][0])
    assert [whole.path.exists() for whole in wholes] == [False, True], "one was enough, the older one"
    assert not wholes[0].path.with_suffix(".json").exists()
    assert (at.take_up(wholes[0]), at.take_up(wholes[1])) == (False, True)
    with pytest.raises(PeerUnavailable, match="busy"):
        at.begin(offers[0][0], "who")
    at.close()


@pytest.mark.parametrize("note", ["", "[]", '{"name": "a"}', "\x00"])
def test_a_damaged_note_sends_its_model_back_to_its_beginning(note: str, tmp_path: Path) -> None:
    offer, content = offer_of(model(tmp_path, "a", 1))
    at = uploads(tmp_path)
    at.open()
    lease = begin(at, offer)
    lease.take(0, memoryview(content))
    lease.sync()
    whole = at.finish(lease)
    at.close()
    whole.path.with_suffix(".json").write_text(note)
    again = uploads(tmp_path)
    assert again.open() == []
    assert begin(again, offer).position == len(content)
    again.close()


def test_the_names_are_on_the_disk_before_anybody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[list[str]] = []
    monkeypatch.setattr("dimat.continual.uploads.sync_folder", lambda path: synced.append(names_in(path)))
    offer, content = offer_of(model(tmp_path, "a", 1))
    at = uploads(tmp_path)
    at.open()
    lease = begin(at, offer)
    lease.take(0, memoryview(content))
    lease.sync()
    whole = at.finish(lease)
    assert synced[-1] == sorted([whole.path.name, whole.path.with_suffix(".json").name, "lock"])
    at.close()


def test_a_ledger_that_cannot_be_written_to_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("in the way")
    with pytest.raises(DimatError, match="cannot be served: File exists"):
        uploads(tmp_path).open()
