"""What is hashed while torch is imported gives the digests that hashing afterwards gives, or is not used."""

import hashlib
import os
import sys
import time
from pathlib import Path

import pytest
import torch

import dimat.hashing
from dimat.cli.app import main
from dimat.cli.merge import _read_anyway
from dimat.cli.merge_words import Request, read_words
from dimat.hashing import Begun, HashAhead, HashedFile
from dimat.merge import make_fold
from dimat.merge.digest import Digest, digest_of
from dimat.merge.source import OnDisk, TensorInfo
from dimat.merge.stream import begun_of, merge_files
from dimat.modelfile import open_model, write_model

STATE = {"a": torch.arange(3000.0), "b": torch.arange(7, dtype=torch.int64), "none": torch.zeros(0, 2)}


def wait_for(ahead: HashAhead) -> dict[Path, HashedFile]:
    """What it has found once it has gone through everything."""
    ahead._thread.join(30)
    return ahead.stop()


def hashed(*paths: Path) -> dict[Path, HashedFile]:
    with HashAhead(paths) as ahead:
        return wait_for(ahead)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model.safetensors", STATE)
    return tmp_path / "model.safetensors"


def test_every_tensor_is_hashed(model: Path) -> None:
    file = open_model(model)
    begun = begun_of(file, hashed(model))
    assert sorted(begun) == ["a", "b"], "there is nothing to hash of a tensor without entries"
    for name, one in begun.items():
        content = STATE[name].numpy().tobytes()
        assert (one.num_bytes, one.running.digest()) == (len(content), hashlib.sha256(content).digest())


def test_shards_of_a_folder_are_found(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_model(tmp_path / "sharded", STATE, like=_like(folder), shard_bytes=100)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert sorted(begun_of(open_model(tmp_path / "sharded"), hashed(tmp_path / "sharded"))) == ["a", "b"]


def _like(folder: Path):  # type: ignore[no-untyped-def]
    write_model(folder / "model.safetensors", STATE)
    return open_model(folder)


@pytest.mark.parametrize("num_bytes", [0, 1, 4, 1000, 4096, 11_999, 12_000])
def test_a_hash_goes_on_where_it_was_stopped(model: Path, num_bytes: int) -> None:
    """Wherever that is: in the middle of an entry, too."""
    begun = {"a": Begun(num_bytes, hashlib.sha256(STATE["a"].numpy().tobytes()[:num_bytes]))}
    digest = Digest(begun)
    for name, tensor in STATE.items():
        info = TensorInfo(tensor.dtype, tuple(tensor.shape))
        for start in range(0, max(tensor.numel(), 1), 1024):
            digest.add(name, info, tensor.reshape(-1)[start : start + 1024])
    source = OnDisk(open_model(model))
    assert digest.hexdigest() == digest_of(source) == digest_of(source, begun) == digest_of(source, begun)


def test_what_was_hashed_already_is_not_read_again(model: Path) -> None:
    source = OnDisk(open_model(model))
    begun = begun_of(source.file, hashed(model))
    whole = digest_of(source)
    model.unlink()
    assert digest_of(OnDisk(source.file), begun | {"none": Begun(0, hashlib.sha256())}) == whole


def test_hashes_of_another_version_are_not_used(model: Path) -> None:
    found = hashed(model)
    write_model(model, {**STATE, "a": STATE["a"] + 1})
    assert begun_of(open_model(model), found) == {}


def test_stopping_in_the_middle_leaves_what_was_done(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimat.hashing, "CHUNK_BYTES", 1000)
    ahead = HashAhead([model])
    reads = []

    def stop_after_three(path: Path, buffer: memoryview) -> None:
        class Counting:
            def __init__(self, file):  # type: ignore[no-untyped-def]
                self.file = file

            def readinto(self, into: memoryview) -> int:
                reads.append(len(into))
                if len(reads) == 3:
                    ahead._stopped.set()
                return int(self.file.readinto(into))

        begin = HashAhead._begin
        monkeypatch.setattr(HashAhead, "_begin", lambda self, file, n, b: begin(self, Counting(file), n, b))
        HashAhead._hash(ahead, path, buffer)

    monkeypatch.setattr(ahead, "_hash", stop_after_three)
    with ahead:
        found = wait_for(ahead)
    file = open_model(model)
    begun = begun_of(file, found)
    assert [one.num_bytes for one in begun.values()] == [56, 2000] and list(begun) == ["b", "a"]
    assert digest_of(OnDisk(file), begun) == digest_of(OnDisk(file))


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x02" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]", b"\x03" + bytes(7) + b"nul"]
)
def test_damaged_files_are_passed_over(tmp_path: Path, model: Path, content: bytes) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    entry = b'{"a": {"data_offsets": [0, 99999999]}, "b": {"data_offsets": [5, 1]}, "c": {}}'
    (tmp_path / "lies.safetensors").write_bytes(len(entry).to_bytes(8, "little") + entry + bytes(10))
    far = b'{"a": {"data_offsets": [%d, %d]}}' % (2**70, 2**71)
    (tmp_path / "far.safetensors").write_bytes(len(far).to_bytes(8, "little") + far)
    names = ("absent", "damaged.safetensors", "lies.safetensors", "far.safetensors")
    found = hashed(*(tmp_path / name for name in names), model)
    assert sorted(begun_of(open_model(model), found)) == ["a", "b"]


def test_a_pipe_is_not_waited_for(tmp_path: Path, model: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert list(hashed(tmp_path / "pipe.safetensors", model)) == [model]


@pytest.mark.parametrize("method", ["mean", "dare", "ties"])
def test_a_merge_tells_the_same_digests(tmp_path: Path, method: str) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "x", "y")]
    for i, path in enumerate(paths):
        write_model(path, {name: tensor + i for name, tensor in STATE.items()})
    base, *models = (open_model(path) for path in paths)
    fold = make_fold(method)
    told = [
        merge_files(fold, models, tmp_path / f"{i}.safetensors", base=base, hashed=one)
        for i, one in enumerate((None, hashed(*paths)))
    ]
    assert told[0].input_digests == told[1].input_digests == tuple(digest_of(OnDisk(one)) for one in models)
    assert (told[0].digest, told[0].base_digest) == (told[1].digest, told[1].base_digest)


def test_the_command_hashes_ahead(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not where nothing will be merged."""
    seen: list[tuple[Path, ...]] = []
    real = HashAhead.__init__

    def init(self: HashAhead, paths: tuple[Path, ...]) -> None:
        seen.append(paths)
        real(self, paths)

    monkeypatch.setattr(HashAhead, "__init__", init)
    words = ["merge", "mean", str(model), str(model), "--out", str(tmp_path / "out.safetensors")]
    for more in (["--dry-run"], []):
        with pytest.raises(SystemExit) as ended:
            monkeypatch.setattr("sys.argv", ["dimat", *words, *more])
            main()
        assert not ended.value.code
    assert seen == [(), (model, model)]
    capsys.readouterr()


def test_models_of_recipes_are_hashed_too(tmp_path: Path, model: Path) -> None:
    for file, text in {
        "ours.yaml": f"method: mean\nmodels: [{model}, {model}]\n",
        "theirs.yaml": f"merge_method: task_arithmetic\nbase_model: {model}\nmodels: [{{model: {model}, parameters: "
        "{weight: 1}}]\n",
    }.items():
        (tmp_path / file).write_text(text)
        request = Request(None, (), tmp_path / "out.safetensors", recipe=tmp_path / file)
        assert _read_anyway(read_words(request), request) == (model, model)


def test_pythons_lock_is_shared_as_before(model: Path) -> None:
    before = sys.getswitchinterval()
    with HashAhead([model]) as ahead:
        assert sys.getswitchinterval() <= dimat.hashing.SWITCH_INTERVAL_S
        ahead.stop()
        assert sys.getswitchinterval() == before
        sys.setswitchinterval(before * 2)
    try:
        assert sys.getswitchinterval() == pytest.approx(before * 2), "stopped already: not touched again"
    finally:
        sys.setswitchinterval(before)


def test_stopping_takes_no_longer_than_a_chunk(tmp_path: Path) -> None:
    """The thread has ended when `stop` returns: it holds no file open."""
    write_model(tmp_path / "m.safetensors", {str(i): torch.zeros(1000) for i in range(50)})
    with HashAhead([tmp_path / "m.safetensors"] * 2) as ahead:
        time.sleep(0.001)
        ahead.stop()
        assert not ahead._thread.is_alive()
