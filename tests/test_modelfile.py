"""Model files: what safetensors writes is read bit for bit, and the other way round; damage is named, not believed."""

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from dimat.errors import DimatError, SchemaError, UsageError
from dimat.modelfile import fit, lay_out, open_model, same_architecture, write_model, write_streamed
from dimat.modelfile.fit import build_model, read_tensors, tied_names
from dimat.modelfile.header import DTYPES, parse_header
from dimat.modelfile.write import check_out

Header = dict[str, Any]


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def of_every_dtype() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, dtype in DTYPES.items():
        noise = torch.randint(0, 2 if dtype == torch.bool else 256, (6 * dtype.itemsize,), generator=generator)
        found[f"layer.{name}"] = noise.to(torch.uint8).view(dtype).reshape(2, 3)
    return found | {"scalar": torch.tensor(3, dtype=torch.int64), "empty": torch.zeros(0, 4, dtype=torch.float64)}


# ---- files


@pytest.mark.parametrize("writer", ["ours", "theirs"])
@pytest.mark.parametrize("reader", ["ours", "theirs"])
def test_every_dtype_goes_through_bit_for_bit(tmp_path: Path, writer: str, reader: str) -> None:
    path, tensors, notes = tmp_path / "all.safetensors", of_every_dtype(), {"format": "pt", "ünï": "cödé"}
    if writer == "ours":
        write_model(path, tensors, metadata=notes)
    else:
        safetensors.torch.save_file(tensors, path, notes)
    if reader == "ours":
        model = open_model(path)
        found, metadata = model.read_all(), model.metadata
        assert model.num_bytes == sum(len(bits(tensor)) for tensor in tensors.values())
    else:
        found = safetensors.torch.load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
    assert metadata == notes
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)


def test_equal_tensors_give_equal_bytes_in_whatever_order_they_come(tmp_path: Path) -> None:
    tensors, notes = of_every_dtype(), {str(i): "note" for i in range(20)}
    write_model(tmp_path / "a.safetensors", tensors, metadata=notes)
    backwards = dict(reversed(tensors.items())), dict(reversed(notes.items()))
    write_model(tmp_path / "b.safetensors", backwards[0], metadata=backwards[1])
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_only_the_tensor_that_is_asked_for_is_read(tmp_path: Path) -> None:
    """Every other byte of the data is destroyed after the header was read, at the same size and time."""
    path = tmp_path / "model.safetensors"
    write_model(path, {"a": torch.ones(1000), "b": torch.arange(5.0), "c": torch.ones(1000)})
    model = open_model(path)
    stored, status = model.tensors["b"], path.stat()
    content = bytearray(path.read_bytes())
    content[: stored.start] = bytes(stored.start)
    content[stored.start + stored.num_bytes :] = bytes(len(content) - stored.start - stored.num_bytes)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert model.read("b").tolist() == [0, 1, 2, 3, 4]


def test_a_tensor_that_was_read_is_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, {"a": torch.zeros(3)})
    model = open_model(path)
    model.read("a").fill_(7)
    assert model.read("a").tolist() == [0, 0, 0]


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, {"a": torch.zeros(3)})
    model = open_model(path)
    write_model(path, {"a": torch.zeros(4)})
    with pytest.raises(DimatError, match=r"model\.safetensors was changed"):
        model.read("a")


def test_an_unknown_tensor_answers_with_the_closest(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", {"head.weight": torch.zeros(3)})
    with pytest.raises(UsageError, match=r"'haed\.weight'. Did you mean 'head\.weight'"):
        open_model(tmp_path / "model.safetensors").read("haed.weight")


def test_writing_leaves_no_trace_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"what was there")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dimat.modelfile.pieces.write_entries", full)
    with pytest.raises(DimatError, match="No space left on device"):
        write_model(path, {"a": torch.zeros(3)})
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == b"what was there"


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'a' is torch\.complex128"):
        write_model(tmp_path / "model.safetensors", {"a": torch.zeros(3, dtype=torch.complex128)})


# ---- damage

F32: Header = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def with_header(header: Header | bytes, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it has 0 bytes"),
    "shorter than a length": (b"abc", "it has 3 bytes"),
    "header longer than the file": (with_header(b"{}")[:8] + b"{", "it has 9 bytes, fewer than the 10 "),
    "absurd header length": (b"\xff" * 8 + b"{}", "fewer than"),
    "no JSON": (with_header(b"this is not JSON"), "does not begin with a JSON header"),
    "no UTF-8": (with_header(b'{"\xff": 1}'), "does not begin with a JSON header"),
    "too deep": (with_header(b"[" * 200_000), "does not begin with a JSON header"),
    "too many digits": (with_header(b'{"a": ' + b"9" * 10_000 + b"}"), "does not begin with a JSON header"),
    "no object": (with_header(b"[1, 2]"), "not an object"),
    "a name twice": (with_header(b'{"a": 1, "a": 2}'), "lists 'a' twice"),
    "metadata that is no text": (with_header({"__metadata__": {"a": 1}}), "__metadata__"),
    "no description": (with_header({"a": 3}), "tensor 'a' is not described"),
    "a field too many": (with_header({"a": F32 | {"code": "x"}}), "tensor 'a' is not described"),
    "negative shape": (with_header({"a": F32 | {"shape": [-2]}}), "tensor 'a' has shape [-2]"),
    "shape of truths": (with_header({"a": F32 | {"shape": [True]}}), "tensor 'a' has shape [True]"),
    "shape of floats": (with_header({"a": F32 | {"shape": [2.0]}}), "tensor 'a' has shape [2.0]"),
    "enormous but empty": (
        with_header({"a": F32 | {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        "tensor 'a' has shape [0, 461",
    ),
    "enormous": (with_header({"a": F32 | {"shape": [2**62], "data_offsets": [0, 16]}}), "takes 18446744073709551616"),
    "three offsets": (with_header({"a": F32 | {"data_offsets": [0, 8, 8]}}), "tensor 'a' has data_offsets"),
    "offsets backwards": (with_header({"a": F32 | {"data_offsets": [8, 0]}}), "tensor 'a' has data_offsets [8, 0]"),
    "out of range": (with_header({"a": F32 | {"data_offsets": [16, 24]}}), "[16, 24] in 16 bytes"),
    "too few bytes": (with_header({"a": F32 | {"data_offsets": [0, 4]}}), "takes 8 bytes, 4 are given"),
    "overlap": (with_header({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}), "tensor 'b' starts at byte 4"),
    "hole": (with_header({"a": F32 | {"data_offsets": [8, 16]}}), "leaves a hole"),
    "bytes left over": (with_header({"a": F32}), "its tensors end at byte"),
    "unknown dtype": (with_header({"a": F32 | {"dtype": "F4"}}), "dtype 'F4', expected one of F64, F32"),
    "dtype that is a list": (with_header({"a": F32 | {"dtype": ["F32"]}}), "has dtype ['F32']"),
    "no tensors": (with_header({"__metadata__": {}}, b""), "holds no tensors"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_and_not_believed(tmp_path: Path, case: str) -> None:
    content, words = DAMAGED[case]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(words)) as refused:
        open_model(path)
    assert "broken.safetensors" in str(refused.value)


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # sparse: it takes no space
    with pytest.raises(UsageError, match=r"broken\.safetensors.*100,000,001 bytes, more than the 100,000,000"):
        open_model(path)


@given(st.binary(max_size=200), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_whatever_a_header_says_the_answer_is_a_refusal_or_a_checked_layout(text: bytes, size: int) -> None:
    _believe(text, 8 + len(text) + size)


numbers = st.integers(-1, 20) | st.floats() | st.none() | st.booleans()
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F5"]) | numbers,
        "shape": st.lists(numbers, max_size=3) | numbers,
        "data_offsets": st.lists(st.integers(-1, 20), max_size=3) | numbers,
    }
)


@given(st.dictionaries(st.text(max_size=3), entries, max_size=3), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_nor_is_a_header_of_the_right_form_believed(header: Header, size: int) -> None:
    text = json.dumps(header).encode()
    _believe(text, 8 + len(text) + size)


def _believe(text: bytes, file_bytes: int) -> None:
    try:
        tensors, _ = parse_header(Path("x.safetensors"), text, file_bytes)
    except UsageError:
        return
    covered = [i for one in tensors for i in range(one.start, one.start + one.num_bytes)]
    assert covered == list(range(8 + len(text), file_bytes))
    for one in tensors:
        assert one.num_bytes == torch.zeros(one.shape, dtype=one.dtype).nbytes


# ---- what is no model


def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt")
    (tmp_path / "old.weights").write_bytes((tmp_path / "old.pt").read_bytes())
    (tmp_path / "bare.model").write_bytes(b"\x80\x04K\x01.")
    for name in ("old.pt", "old.weights", "bare.model"):
        with pytest.raises(UsageError, match=f"{re.escape(name)} is a pickle") as refused:
            open_model(tmp_path / name)
        assert "safetensors.torch.save_file" in str(refused.value.hint)


def test_other_files_and_missing_ones_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", {"a": torch.zeros(2)})
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"notes\.txt is no \.safetensors file"):
        open_model(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=r"modle\.safetensors does not exist. Did you mean '.*model\.safetensors'"):
        open_model(tmp_path / "modle.safetensors")
    with pytest.raises(UsageError, match=r"Its folder .*nowhere does not exist either"):
        open_model(tmp_path / "nowhere" / "model.safetensors")


# ---- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four tensors in two shards, a config, a tokenizer, and what does not travel."""
    path = tmp_path / "hf"
    path.mkdir()
    for name in ("config.json", "tokenizer.json", "vocab.txt", "LICENSE", "training_args.bin", ".secret.json"):
        (path / name).write_text(name)
    shards = {"model-1.safetensors": ["a", "c"], "model-2.safetensors": ["b", "d"]}
    for file, names in shards.items():
        safetensors.torch.save_file({name: torch.full((4,), float(ord(name))) for name in names}, path / file)
    _index(path, {name: file for file, names in shards.items() for name in names})
    return path


def _index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_sharded_folder_reads_as_one_model(folder: Path) -> None:
    model = open_model(folder)
    assert model.is_folder
    assert {name: tensor[0].item() for name, tensor in model.read_all().items()} == {n: ord(n) for n in "abcd"}


def test_it_is_written_as_one_file_with_what_belongs_to_it(folder: Path, tmp_path: Path) -> None:
    model = open_model(folder)
    write_model(tmp_path / "out", model.read_all(), like=model)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "tokenizer.json", "vocab.txt", "LICENSE", "model.safetensors"}
    assert (tmp_path / "out" / "vocab.txt").read_text() == "vocab.txt"
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "out"}
    again = open_model(tmp_path / "out").read_all()
    assert all(torch.equal(again[name], model.read(name)) for name in "abcd")


def test_large_models_are_written_in_shards_that_are_read_again(folder: Path, tmp_path: Path) -> None:
    model = open_model(folder)
    tensors = model.read_all() | {"large": torch.arange(10.0)}
    write_model(tmp_path / "out", tensors, like=model, shard_bytes=32)
    found = sorted(path.name for path in (tmp_path / "out").glob("model*"))
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]  # a b | c d | large
    assert found == [*shards, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * 16 + 40
    again = open_model(tmp_path / "out").read_all()
    assert {name: tensor.tolist() for name, tensor in again.items()} == {n: t.tolist() for n, t in tensors.items()}


def test_a_failure_leaves_no_half_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dimat.modelfile.pieces.write_entries", full)
    with pytest.raises(DimatError, match="No space left on device"):
        write_model(tmp_path / "out", {"a": torch.zeros(3)}, like=open_model(folder))
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}


def _without_config(path: Path) -> None:
    (path / "config.json").unlink()


def _without_shard(path: Path) -> None:
    (path / "model-2.safetensors").unlink()


def _tensor_in_two_shards(path: Path) -> None:
    safetensors.torch.save_file({name: torch.zeros(4) for name in "abd"}, path / "model-2.safetensors")


def _pickled(path: Path) -> None:
    for file in path.glob("model*"):
        file.unlink()
    (path / "pytorch_model.bin").write_bytes(b"PK")


def _other_file(path: Path) -> None:
    for file in path.glob("model*"):
        file.unlink()
    safetensors.torch.save_file({"a": torch.zeros(4)}, path / "adapter.safetensors")


def _mapped(weight_map: object) -> Callable[[Path], None]:
    return lambda path: _index(path, weight_map)


GOOD = {"a": "model-1.safetensors", "c": "model-1.safetensors", "b": "model-2.safetensors", "d": "model-2.safetensors"}
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (_without_config, "has no config.json"),
    "missing shard": (_without_shard, "shard model-2.safetensors is missing"),
    "misspelt shard": (_mapped(GOOD | {"d": "modle-2.safetensors"}), "is model-2.safetensors meant?"),
    "a tensor in two shards": (_tensor_in_two_shards, "tensor 'a' is in model-1.safetensors and in model-2"),
    "a tensor in another shard": (
        _mapped(GOOD | {"d": "model-1.safetensors"}),
        "tensor 'd' is listed in model-1.safetensors, but it is in model-2.safetensors",
    ),
    "a tensor in no shard": (_mapped(GOOD | {"e": "model-1.safetensors"}), "'e' is listed in model-1.safetensors, but"),
    "a tensor not listed": (_mapped({k: v for k, v in GOOD.items() if k != "d"}), "tensor 'd' of model-2.safetensors"),
    "a way out of the folder": (_mapped(GOOD | {"d": "../x.safetensors"}), "listed in '../x.safetensors'"),
    "an absolute path": (_mapped(GOOD | {"d": "/etc/passwd"}), "listed in '/etc/passwd'"),
    "the folder itself": (_mapped(GOOD | {"d": ".."}), "listed in '..'"),
    "no file name": (_mapped(GOOD | {"d": 3}), "listed in 3"),
    "a map that is a list": (_mapped(["a"]), "weight_map is not a mapping"),
    "an index that is no JSON": (
        lambda path: (path / "model.safetensors.index.json").write_text("{") and None,
        "index.json is damaged",
    ),
    "a name listed twice": (
        lambda path: (
            (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x", "a": "y"}}') and None
        ),
        "it lists 'a' twice",
    ),
    "weights as a pickle": (_pickled, "as a pickle (pytorch_model.bin)"),
    "another file": (_other_file, "it holds adapter.safetensors"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_contradicts_itself_is_refused(folder: Path, case: str) -> None:
    spoil, words = FOLDERS[case]
    spoil(folder)
    with pytest.raises(UsageError, match=re.escape(words)) as refused:
        open_model(folder)
    assert str(folder) in str(refused.value)


def test_shards_may_be_links_as_in_a_download_cache(folder: Path, tmp_path: Path) -> None:
    (folder / "model-1.safetensors").rename(tmp_path / "blob")
    (folder / "model-1.safetensors").symlink_to(tmp_path / "blob")
    assert open_model(folder).read("a").tolist() == [97] * 4


# ---- where a model may be written


def test_out_is_checked_before_anything_starts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, {"a": torch.zeros(2)})
    link = tmp_path / "link.safetensors"
    link.hardlink_to(path)
    file, model = open_model(path), open_model(folder)
    refused: list[tuple[Path, bool, str]] = [
        (path, False, "is the model"),
        (link, False, "is the model"),
        (folder, True, "is the model"),
        (tmp_path / "nowhere" / "out.safetensors", False, "does not exist"),
        (tmp_path / "out.pt", False, r"out\.pt is not named \*\.safetensors"),
        (tmp_path, False, "is a folder; the models are files"),
        (tmp_path / "out.safetensors", True, "is named as a file"),
        (tmp_path, True, "not empty"),
    ]
    for out, is_folder, words in refused:
        with pytest.raises(UsageError, match=words):
            check_out(out, is_folder=is_folder, inputs=(file, model))
    check_out(tmp_path / "out.safetensors", is_folder=False, inputs=(file, model))
    with pytest.raises(UsageError, match="its disk has"):
        check_out(tmp_path / "out.safetensors", is_folder=False, num_bytes=2**60)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="may not be written to"):
        check_out(tmp_path / "out.safetensors", is_folder=False)


# ---- the module that a file belongs to


class Tied(nn.Module):
    """An embedding that is the output layer too, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.ones(3), persistent=False)


def saved(path: Path, model: nn.Module, without: tuple[str, ...] = (), **more: Tensor) -> Path:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in without}
    write_model(path, state | more)
    return path


@pytest.mark.parametrize("left_out", [(), ("head.weight",), ("embed.weight",)])
def test_shared_tensors_may_be_stored_once_or_under_each_name(tmp_path: Path, left_out: tuple[str, ...]) -> None:
    model = Tied()
    file = open_model(saved(tmp_path / "a.safetensors", model, left_out, mask=torch.zeros(3)))
    found = fit(model, file, "here:Tied")
    assert found.extra == ("mask",)
    state = found.state(read_tensors(file, model))
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    other = open_model(saved(tmp_path / "b.safetensors", model, ("head.weight",), mask=torch.zeros(3)))
    same_architecture(file, other, tied_names(model))


def test_shared_tensors_that_differ_are_refused(tmp_path: Path) -> None:
    model = Tied()
    file = open_model(saved(tmp_path / "a.safetensors", model, **{"head.weight": torch.zeros(5, 3)}))
    with pytest.raises(SchemaError, match=r"a\.safetensors: 'embed\.weight' and 'head\.weight' differ"):
        read_tensors(file, model)


def test_the_first_difference_from_the_module_is_named(tmp_path: Path) -> None:
    model = Tied()
    cases: dict[str, tuple[tuple[str, ...], dict[str, Tensor]]] = {
        r"has no tensor 'norm\.bias' of shape \(3,\)": (("norm.bias",), {}),
        r"'norm\.weight' has shape \(4,\) in .*a\.safetensors, and \(3,\) in": ((), {"norm.weight": torch.zeros(4)}),
        r"has a tensor 'nrom\.bias' of shape \(3,\)": ((), {"nrom.bias": torch.zeros(3)}),
    }  # fmt: skip
    for words, (without, more) in cases.items():
        file = open_model(saved(tmp_path / "a.safetensors", model, without, **more))
        with pytest.raises(SchemaError, match=words):
            fit(model, file, "here:Tied")
    renamed = open_model(saved(tmp_path / "a.safetensors", model, ("norm.bias",), **{"norm.bais": torch.zeros(3)}))
    with pytest.raises(SchemaError) as refused:
        fit(model, renamed, "here:Tied")
    assert refused.value.hint == "the file has 'norm.bais' instead"


def test_factories_that_do_not_work_are_named(tmp_path: Path) -> None:
    code = "import torch\nclass Wide:\n    pass\ndef broken():\n    raise RuntimeError('no luck')\n"
    code += "def needs(width):\n    return torch.nn.Linear(2, width)\nmodule = torch.nn.Linear(2, 2)\n"
    code += "def half():\n    return torch.nn.Linear(2, 2).to(torch.bfloat16)\n"
    (tmp_path / "own.py").write_text(code)
    for name, words in {
        "plain": "not of the form",
        f"{tmp_path}/own.py:brokn": "Did you mean 'broken'",
        f"{tmp_path}/own.py:broken": "fails: RuntimeError: no luck",
        f"{tmp_path}/own.py:needs": "called without arguments.*'width'",
        f"{tmp_path}/own.py:module": "is a Linear, expected a function",
        f"{tmp_path}/own.py:Wide": "returned a Wide",
        "nowhere_at_all:build": "does not import",
    }.items():
        with pytest.raises(UsageError, match=words):
            build_model(name)
    assert build_model(f"{tmp_path}/own.py:half").weight.dtype == torch.float32


# ---- pieces


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tensors_in_pieces_give_the_bytes_of_whole_ones(data: st.DataObject) -> None:
    shapes = {"a": (5, 3), "b": (), "c": (0, 2), "d": (7,)}
    tensors = {
        name: torch.arange(float(torch.Size(shape).numel()))
        .reshape(shape)
        .to(data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.uint8])))
        for name, shape in shapes.items()
    }
    is_folder = data.draw(st.booleans())
    layout = lay_out(
        {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()},
        is_folder=is_folder,
        shard_bytes=data.draw(st.integers(1, 200)),
    )
    pieces: list[Tensor] = []
    for name in layout.names:
        entries = tensors[name].reshape(-1)
        cuts = data.draw(st.sets(st.integers(1, len(entries) - 1))) if len(entries) > 1 else set()
        pieces += torch.tensor_split(entries, sorted(cuts))
    with tempfile.TemporaryDirectory() as folder:
        like = Path(folder, "like")
        like.mkdir()
        (like / "config.json").write_text("{}")
        write_model(like / "model.safetensors", {"x": torch.zeros(1)})
        out = Path(folder, "out" if is_folder else "out.safetensors")
        write_streamed(out, layout, iter(pieces), {}, like=open_model(like) if is_folder else None)
        again = open_model(out)
        assert list(again.tensors) == layout.names or len(layout.files) > 1
        for name, tensor in again.read_all().items():
            assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name])
        assert len(list(out.glob("*.safetensors")) if is_folder else [out]) == len(layout.files)


def test_pieces_that_do_not_fill_what_was_announced_are_a_mistake(tmp_path: Path) -> None:
    layout = lay_out({"a": (torch.float32, (4,))}, is_folder=False)
    for pieces in ([torch.zeros(3), torch.zeros(2)], [torch.zeros(4), torch.zeros(1)], [torch.zeros(4).double()]):
        with pytest.raises(AssertionError):
            write_streamed(tmp_path / "out.safetensors", layout, pieces, {})
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_never_replaced(folder: Path, tmp_path: Path) -> None:
    model = open_model(folder)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="a folder of other things"):
        check_out(home, is_folder=True, inputs=(model,), overwrite=True)
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty", is_folder=True, inputs=(model,), overwrite=False)


def test_a_folder_that_cannot_be_replaced_stays(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    really = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return really(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    layout = lay_out({"a": (torch.float32, (4,))}, is_folder=True)
    with pytest.raises(DimatError, match="Input/output error"):
        write_streamed(out, layout, [torch.zeros(4)], {}, like=open_model(folder))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "out"}


def test_a_disk_that_fails_on_the_way_fails_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of a failed flush once, to whoever flushes: here that is another thread."""
    import errno

    from dimat.modelfile import pieces

    flushed = threading.Event()

    def fails(handle: int) -> None:
        flushed.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pieces, "_sync_data", fails)
    monkeypatch.setattr(pieces, "FLUSH_BYTES", 1)
    monkeypatch.setattr(pieces, "FLUSH_S", 0.001)

    def coming() -> Iterator[torch.Tensor]:
        yield torch.ones(4)
        assert flushed.wait(30)
        yield torch.ones(4)

    layout = lay_out({"w": (torch.float32, (8,))}, is_folder=False)
    with pytest.raises(DimatError, match="cannot be written: Input/output error"):
        write_streamed(tmp_path / "m.safetensors", layout, coming(), {})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """In a container every process may be number 1."""
    (tmp_path / "like").mkdir()
    (tmp_path / "like" / "config.json").write_text("{}")
    write_model(tmp_path / "like" / "model.safetensors", {"w": torch.ones(2)})
    leftover = tmp_path / f".out.{os.getpid()}.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    write_model(tmp_path / "out", {"w": torch.ones(2)}, like=open_model(tmp_path / "like"))
    assert open_model(tmp_path / "out").read("w").tolist() == [1, 1]
