"""Models merged on disk: the same bits as in memory, whatever the method, and everything about the files."""

import dataclasses
import json
import os
import resource
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dimat.errors import DimatError, SchemaError, UsageError
from dimat.merge import Fold, fold_models, make_fold, stream
from dimat.merge.digest import digest_of
from dimat.merge.source import InMemory, OnDisk
from dimat.merge.stream import ROOMY_SLICE_ENTRIES, Merged, merge_files
from dimat.modelfile import ModelFile, open_model, write_model

NUM_MODELS = 3
LARGE = (ROOMY_SLICE_ENTRIES + 901) // 500, 500  # a little more than a slice

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(seed: int, large: tuple[int, ...] = (6, 4)) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "large.weight": torch.randn(large, generator=generator),
        "bias": torch.randn(7, generator=generator),
        "half": torch.randn(3, 5, generator=generator).to(torch.bfloat16),
        "scalar": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 3),
        "counter": torch.tensor([seed, 5 - seed]),
    }


def on_disk(folder: Path, states: list[Tensors], **metadata: str) -> list[ModelFile]:
    files = []
    for i, state in enumerate(states):
        path = folder / f"model-{i}.safetensors"
        write_model(path, state, metadata=metadata)
        files.append(open_model(path))
    return files


def hugging_face(folder: Path, state: Tensors) -> ModelFile:
    folder.mkdir()
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": folder.name}))
    (folder / "tokenizer.json").write_text("{}")
    return open_model(folder)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_equal(got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


# ---- the same as in memory


@pytest.mark.parametrize(
    ("method", "options", "num_models"),
    [
        ("mean", {}, 3),
        ("slerp", {"t": 0.3}, 2),
        ("task_arithmetic", {"scale": 0.7}, 3),
        ("ties", {}, 3),
        ("ties", {"trim": "tensor"}, 3),
        ("dare", {"signs": "ties", "seed": 3}, 3),
        ("breadcrumbs", {}, 3),
        ("magmax", {}, 3),
        ("model_stock", {}, 3),
        ("fisher", {}, 3),
        ("opcm", {"plain": "large*"}, 3),
    ],
)
def test_files_give_the_bits_that_memory_gives(
    method: str, options: dict[str, Any], num_models: int, tmp_path: Path
) -> None:
    fold = make_fold(method, options)
    base, *states = (model(seed, LARGE) for seed in range(num_models + 1))
    weights = [1.0 + i for i in range(num_models)]
    evidence = [
        {kind: {name: tensor.abs() + 1 for name, tensor in model(9 + i, LARGE).items()} for kind in fold.stats}
        for i in range(num_models)
    ]
    stats = []
    for i, kinds in enumerate(evidence):
        (tmp_path / f"stats-{i}").mkdir()
        stats.append({kind: on_disk(tmp_path / f"stats-{i}", [state])[0] for kind, state in kinds.items()})
    files = on_disk(tmp_path, [*states, base])
    merge_files(
        fold,
        files[:-1],
        tmp_path / "out.safetensors",
        weights=weights,
        base=files[-1],
        stats=stats if fold.stats else None,
    )
    expected = fold_models(fold, states, weights, base, evidence if fold.stats else None)
    assert_equal(open_model(tmp_path / "out.safetensors").read_all(), expected)


def test_every_model_is_named_by_its_digest_and_no_byte_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *states = (model(seed, LARGE) for seed in range(NUM_MODELS + 1))
    files = on_disk(tmp_path, [*states, base])
    expected = [digest_of(OnDisk(file)) for file in files]
    read: dict[Path, int] = {}
    really = ModelFile.read

    def counted(self: ModelFile, *arguments: Any) -> torch.Tensor:
        tensor = really(self, *arguments)
        read[self.path] = read.get(self.path, 0) + tensor.nbytes
        return tensor

    monkeypatch.setattr(ModelFile, "read", counted)
    merged = merge_files(make_fold("task_arithmetic"), files[:-1], tmp_path / "out.safetensors", base=files[-1])
    assert [*merged.input_digests, merged.base_digest] == expected
    assert read == {file.path: file.num_bytes for file in files}
    monkeypatch.undo()
    assert merged.digest == digest_of(OnDisk(open_model(tmp_path / "out.safetensors")))
    assert (merged.num_models, merged.num_tensors) == (NUM_MODELS, len(states[0]))
    assert merged.num_parameters == sum(tensor.numel() for tensor in states[0].values())
    assert merged.seconds > 0


def test_a_base_that_takes_no_part_has_no_digest(tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(0), model(1)])
    assert merge_files(make_fold("mean"), files[:1], tmp_path / "out.safetensors", base=files[1]).base_digest is None


def test_digests_are_the_same_when_the_method_asks_for_them_before(tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(0), model(1)])
    merged = merge_files(make_fold("dare"), files[:1], tmp_path / "out.safetensors", base=files[1])
    assert merged.input_digests == (digest_of(OnDisk(files[0])),)


def test_weights_may_differ_by_tensor_and_options_by_model(tmp_path: Path) -> None:
    states = [model(seed) for seed in range(3)]
    files = on_disk(tmp_path, states)
    share = {"bias": 0.25}
    merge_files(
        make_fold("mean"),
        files[:2],
        tmp_path / "out.safetensors",
        weight_of=lambda name, i: (share.get(name, 0.5), 1 - share.get(name, 0.5))[i],
    )
    merged = open_model(tmp_path / "out.safetensors").read_all()
    torch.testing.assert_close(merged["bias"], 0.25 * states[0]["bias"] + 0.75 * states[1]["bias"])
    torch.testing.assert_close(merged["scalar"], (states[0]["scalar"] + states[1]["scalar"]) / 2)

    folds = [make_fold("ties", {"trim": "tensor", "density": density}) for density in (1.0, 0.1)]
    merge_files(folds[0], files[:2], tmp_path / "out2.safetensors", base=files[2], folds=folds)
    x, y = (state["bias"] - states[2]["bias"] for state in states[:2])
    y = torch.where(y.abs() == y.abs().max(), y, 0)  # one of seven: a tenth, at least one
    agree = (x > 0) == (x + y > 0)
    kept = torch.where((y != 0) & ((y > 0) == (x + y > 0)), y, 0)
    count = agree.float() + (kept != 0)
    expected = states[2]["bias"] + (torch.where(agree, x, 0) + kept) / count.clamp(min=1)
    torch.testing.assert_close(open_model(tmp_path / "out2.safetensors").read("bias"), expected)


def test_progress_ends_where_it_said_it_would(tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(seed, LARGE) for seed in range(3)])
    for method in ("mean", "task_arithmetic", "ties", "dare"):
        calls: list[tuple[int, int]] = []

        def show(done: int, total: int, calls: list[tuple[int, int]] = calls) -> None:
            calls.append((done, total))

        merge_files(
            make_fold(method),
            files[:2],
            tmp_path / f"{method}.safetensors",
            base=files[2] if method != "mean" else None,
            progress=show,
        )
        done = [one for one, _ in calls]
        assert done == sorted(done)
        assert len(done) > 5 and {total for _, total in calls} == {done[-1]}
        if method != "ties":  # whose survey finds out on the way that it needs a second pass
            assert done[-2] == done[-1], "bytes were expected that nobody read"


# ---- what is written


def test_dtype_and_metadata_are_those_of_the_first_model_or_as_asked(tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(0), model(1)], author="somebody")
    merge_files(make_fold("mean"), files, tmp_path / "a.safetensors")
    assert open_model(tmp_path / "a.safetensors").metadata == {"author": "somebody"}
    merge_files(make_fold("mean"), files, tmp_path / "b.safetensors", dtype=torch.float16, metadata={"x": "y"})
    again = open_model(tmp_path / "b.safetensors")
    assert again.metadata == {"x": "y"}
    assert {name: one.dtype for name, one in again.tensors.items()} == {
        name: torch.float16 if tensor.is_floating_point() else tensor.dtype for name, tensor in model(0).items()
    }


def test_a_folder_is_written_like_the_first_one_in_shards(tmp_path: Path) -> None:
    states = [model(0), model(1)]
    files = [hugging_face(tmp_path / name, state) for name, state in zip("ab", states, strict=True)]
    (tmp_path / "a" / "training.bin").write_bytes(b"stays")

    def card(merged: Merged) -> Mapping[str, bytes]:
        return {"README.md": f"made of {merged.input_digests[0]}, is {merged.digest}".encode()}

    out = tmp_path / "out"
    merged = merge_files(make_fold("mean"), files, out, shard_bytes=100, extra_files=card)
    shards = {path.name for path in out.glob("*.safetensors")}
    assert len(shards) > 1 and "model.safetensors" not in shards
    assert names_in(out) - shards == {"config.json", "tokenizer.json", "model.safetensors.index.json", "README.md"}
    assert json.loads((out / "config.json").read_text()) == {"model_type": "a"}
    assert (out / "README.md").read_text() == f"made of {digest_of(OnDisk(files[0]))}, is {merged.digest}"
    assert_equal(dict(open_model(out).read_all()), fold_models(make_fold("mean"), states))
    assert digest_of(OnDisk(open_model(out))) == merged.digest


def test_extra_files_stand_beside_a_file(tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(0)])
    merge_files(make_fold("mean"), files, tmp_path / "out.safetensors", extra_files={"out.card.json": b"{}"})
    assert names_in(tmp_path) == {"model-0.safetensors", "out.safetensors", "out.card.json"}
    assert (tmp_path / "out.card.json").read_bytes() == b"{}"


def test_what_is_there_is_replaced_only_when_told(tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(0)])
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"out\.safetensors exists already") as caught:
        merge_files(make_fold("mean"), files, out)
    assert "--force" in str(caught.value.hint)
    assert out.read_bytes() == b"precious"
    merge_files(make_fold("mean"), files, out, overwrite=True)
    assert_equal(open_model(out).read_all(), model(0))

    folder = hugging_face(tmp_path / "a", model(1))
    old = hugging_face(tmp_path / "old", model(2))
    (old.path / "note.txt").write_text("of the old one")
    with pytest.raises(UsageError, match="old exists already"):
        merge_files(make_fold("mean"), [folder], old.path)
    merge_files(make_fold("mean"), [folder], old.path, overwrite=True)
    assert names_in(old.path) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert_equal(open_model(old.path).read_all(), model(1))
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


def test_inputs_are_never_written_to(tmp_path: Path) -> None:
    file = on_disk(tmp_path, [model(0)])[0]
    folder = hugging_face(tmp_path / "a", model(0))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "outer").mkdir()
    inner = hugging_face(tmp_path / "outer" / "inner", model(0))
    hugging_face(tmp_path / "outer" / "model", model(0))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "outer" / name).write_bytes((folder.path / name).read_bytes())
    for models, out, words in (
        ([file], file.path, "is the model"),
        ([folder], folder.path, "is the model"),
        ([folder], tmp_path / "link", "is the model"),
        ([file, folder], folder.path / "model.safetensors", "is the model"),
        ([folder], folder.path / "merged", "lies in the model folder"),
        ([file, folder], folder.path / "merged.safetensors", "lies in the model folder"),
        ([inner], tmp_path / "outer", "lies in out"),
    ):
        with pytest.raises(UsageError, match=words):
            merge_files(make_fold("mean"), models, out, overwrite=True)
    with pytest.raises(UsageError, match="is the model"):
        merge_files(
            make_fold("task_arithmetic"), [file], folder.path / "model.safetensors", base=folder, overwrite=True
        )


# ---- what goes wrong


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond: what a full disk looks like from here."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("method", ["mean", "ties"])
def test_a_disk_that_fills_up_leaves_nothing_behind(method: str, tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(seed, LARGE) for seed in (0, 1)])
    before, open_files = names_in(tmp_path), len(list(Path("/proc/self/fd").iterdir()))
    with files_up_to(500_000), pytest.raises(DimatError, match=r"cannot be (written|kept): File too large"):
        merge_files(make_fold(method), files[:1], tmp_path / "out.safetensors", base=files[1], extra_files={"x": b""})
    assert names_in(tmp_path) == before
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    assert not [one for one in threading.enumerate() if one.name == "read ahead"]


@pytest.mark.parametrize("method", ["mean", "ties"])
def test_a_disk_that_is_too_small_is_noticed_before_a_weight_is_read(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = on_disk(tmp_path, [model(0, LARGE), model(1, LARGE)])
    monkeypatch.setattr(ModelFile, "read", None)
    size = files[0].num_bytes
    real = os.statvfs(tmp_path)
    few = size - 1 if method == "mean" else 4 * size  # states of ties: four times a model, beside the output
    small = os.statvfs_result((1, 1, *real[2:4], few, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    with pytest.raises(DimatError, match=r"bytes"):
        merge_files(make_fold(method), files[:1], tmp_path / "out.safetensors", base=files[1])
    assert names_in(tmp_path) == {"model-0.safetensors", "model-1.safetensors"}


def test_a_state_that_waits_on_disk_has_no_name_there(tmp_path: Path) -> None:
    base, *states = (model(seed) for seed in range(3))
    files = on_disk(tmp_path, [*states, base])
    seen: list[set[str]] = []
    ties = make_fold("ties")

    def finish(*arguments: Any) -> torch.Tensor:
        seen.append({name for name in names_in(tmp_path) if not name.startswith(("model", ".out"))})
        return ties.finish(*arguments)

    merge_files(dataclasses.replace(ties, finish=finish), files[:2], tmp_path / "out.safetensors", base=files[2])
    assert seen and not set().union(*seen)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_a_number_that_is_none_is_found_with_its_tensor_and_file(value: float, which: int, tmp_path: Path) -> None:
    states = [model(0, LARGE), model(1, LARGE)]
    states[which]["large.weight"].view(-1)[-1] = value
    files = on_disk(tmp_path, states)
    with pytest.raises(UsageError, match=rf"tensor 'large\.weight' of .*model-{which}\.safetensors holds (NaN|Inf)"):
        merge_files(make_fold("task_arithmetic"), files[:1], tmp_path / "out.safetensors", base=files[1])
    assert names_in(tmp_path) == {"model-0.safetensors", "model-1.safetensors"}
    assert not [one for one in threading.enumerate() if one.name == "read ahead"]


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(0), model(1)])
    write_model(files[1].path, model(2))
    os.utime(files[1].path, ns=(1, 1))
    with pytest.raises(DimatError, match=r"model-1\.safetensors was changed"):
        merge_files(make_fold("mean"), files, tmp_path / "out.safetensors")
    files[1].path.unlink()
    with pytest.raises(DimatError, match=r"model-1\.safetensors cannot be read"):
        merge_files(make_fold("mean"), files, tmp_path / "out.safetensors")
    assert names_in(tmp_path) == {"model-0.safetensors"}


def test_a_file_that_was_cut_short_is_never_opened(tmp_path: Path) -> None:
    path = on_disk(tmp_path, [model(0)])[0].path
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UsageError, match="is damaged"):
        open_model(path)


def test_what_does_not_fit_together_is_said_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = on_disk(tmp_path, [model(0), {**model(1), "bias": torch.zeros(8)}])
    monkeypatch.setattr(ModelFile, "read", None)
    out = tmp_path / "out.safetensors"
    mean = make_fold("mean")
    with pytest.raises(SchemaError, match=r"'bias' is \[7\] in .*model-0\.safetensors and \[8\] in .*model-1"):
        merge_files(mean, files, out)
    with pytest.raises(UsageError, match="2 weights for 1 models"):
        merge_files(mean, files[:1], out, weights=[1, 2])
    with pytest.raises(UsageError, match="2 folds for 1 models"):
        merge_files(mean, files[:1], out, folds=[mean, mean])
    with pytest.raises(UsageError, match="ancestor"):
        merge_files(make_fold("ties"), files[:1], out)
    with pytest.raises(UsageError, match="a finite number"):
        merge_files(mean, files[:1], out, weights=[float("nan")])
    assert not out.exists()


def test_an_error_of_the_method_leaves_nothing_behind(tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(0, LARGE)])

    def failing(*_: Any, **__: Any) -> Mapping[str, torch.Tensor]:
        raise RuntimeError("not today")

    method: Fold = dataclasses.replace(make_fold("mean"), absorb=failing)
    with pytest.raises(RuntimeError, match="not today"):
        merge_files(method, files, tmp_path / "out.safetensors")
    assert names_in(tmp_path) == {"model-0.safetensors"}
    assert not [one for one in threading.enumerate() if one.name == "read ahead"]


def test_the_digest_in_memory_is_that_of_the_file(tmp_path: Path) -> None:
    files = on_disk(tmp_path, [model(0)])
    merged = merge_files(make_fold("mean"), files, tmp_path / "out.safetensors")
    assert merged.input_digests[0] == merged.digest == digest_of(InMemory("a", model(0)))


@pytest.mark.parametrize(
    ("method", "options"), [("dare", {"signs": "ties"}), ("ties", {"trim": "tensor"}), ("mean", {})]
)
def test_threads_and_slices_change_no_bit(
    method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side with two threads, in large slices; one after another with one, in small ones."""
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path in paths:
        write_model(path, {"w": torch.randn(1_300_000, generator=generator), "b": torch.randn(7, generator=generator)})
    base, *models = map(open_model, paths)
    before, digests, used = torch.get_num_threads(), set(), []
    real = stream.side_by_side
    monkeypatch.setattr(stream, "side_by_side", lambda *given: used.append(1) or real(*given))
    try:
        for num_threads, slice_entries in [(1, 1 << 16), (2, 1 << 19), (2, 1 << 18)]:
            torch.set_num_threads(num_threads)
            monkeypatch.setattr(stream, "ROOMY_SLICE_ENTRIES", slice_entries)
            out = tmp_path / f"out-{num_threads}-{slice_entries}.safetensors"
            digests.add(merge_files(make_fold(method, options), models, out, base=base).digest)
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1
    assert len(used) == (2 if method == "dare" else 0)
