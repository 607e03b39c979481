"""The digest names a model by what it holds, and by nothing else."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.merge.digest import Digest, digest_of, slices_of
from dimat.merge.source import InMemory, OnDisk, TensorInfo
from dimat.modelfile import open_model, write_model

STATE = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "n": torch.tensor(3),
    "none": torch.zeros(0, 2),
}


def digest(state: dict[str, torch.Tensor]) -> str:
    return digest_of(InMemory("a", state))


def test_it_is_sha256_over_the_tensors_by_name() -> None:
    lines = []
    for name in sorted(STATE):
        tensor = STATE[name]
        content = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        lines.append(f"{name}\t{str(tensor.dtype)[6:]}\t{list(tensor.shape)}\t{content}\n")
    assert digest(STATE) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_files_shards_and_order_do_not_matter(tmp_path: Path) -> None:
    write_model(tmp_path / "x.safetensors", dict(reversed(STATE.items())), metadata={"a": "note"})
    assert digest_of(OnDisk(open_model(tmp_path / "x.safetensors"))) == digest(STATE)
    strided = {**STATE, "b": STATE["b"].T.contiguous().T}
    assert digest(strided) == digest(STATE)


@pytest.mark.parametrize(
    "changes",
    [
        {"b": STATE["b"] + torch.tensor([0, 0, 1e-6])},
        {"b": STATE["b"].reshape(3, 2)},
        {"b": STATE["b"].view(torch.int32)},
        {"c": torch.zeros(0)},
        {"none": torch.zeros(2, 0)},
        {"n": torch.tensor(4)},
    ],
)
def test_all_that_is_held_matters(changes: dict[str, torch.Tensor]) -> None:
    assert digest({**STATE, **changes}) != digest(STATE)


def test_names_matter() -> None:
    assert digest({"x": STATE["b"], "y": STATE["b"] + 1}) != digest({"y": STATE["b"], "x": STATE["b"] + 1})


def test_no_name_passes_for_another_tensors_line() -> None:
    content = hashlib.sha256(STATE["b"].numpy().tobytes()).hexdigest()
    two = {"a": STATE["b"], "b": STATE["b"] + 1}
    assert digest({f"a\tfloat32\t[2, 3]\t{content}\nb": STATE["b"] + 1}) != digest(two)
    assert len({digest({name: STATE["b"]}) for name in ("a\nb", "a\\nb", "a\tb", "a\\tb")}) == 4


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12), first=st.sampled_from(["a", "b"]))
def test_it_can_be_made_slice_by_slice_with_tensors_in_between(sizes: list[int], first: str) -> None:
    running, start = Digest(), 0
    info = {name: TensorInfo(x.dtype, tuple(x.shape)) for name, x in STATE.items()}
    others = [name for name in STATE if name != "b"]
    if first == "a":
        for name in others:
            running.add(name, info[name], STATE[name])
    for size in [*sizes, 6]:
        entries = STATE["b"].reshape(-1)[start : start + size]
        start += len(entries)
        if len(entries):
            running.add("b", info["b"], entries)
    if first == "b":
        for name in others:
            running.add(name, info[name], STATE[name])
    assert running.hexdigest() == digest(STATE)


def test_slices_cover_every_entry_once() -> None:
    for num_entries in (0, 1, 5, 6, 7):
        spans = list(slices_of(TensorInfo(torch.float32, (num_entries,)), 3))
        assert [i for start, stop in spans for i in range(start, stop)] == list(range(num_entries))
        assert spans  # also of a tensor without entries
        assert max(stop - start for start, stop in spans) <= 3
