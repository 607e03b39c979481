"""Models in memory and on disk answer alike; what does not fit together is named."""

from pathlib import Path

import pytest
import torch

from dimat.errors import SchemaError, UsageError
from dimat.merge import fold
from dimat.merge.source import InMemory, OnDisk, Source, TensorInfo, check_alike, check_finite, check_statistics
from dimat.modelfile import open_model, write_model

STATE = {
    "matrix": torch.arange(12.0).reshape(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 2),
    "counter": torch.tensor([3, 4]),
}


@pytest.fixture(params=["memory", "disk"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    if request.param == "memory":
        return InMemory("model 0", STATE)
    write_model(tmp_path / "a.safetensors", STATE)
    return OnDisk(open_model(tmp_path / "a.safetensors"))


def test_a_source_tells_what_it_holds_and_reads_it(source: Source) -> None:
    assert dict(source.tensors) == {name: TensorInfo(x.dtype, tuple(x.shape)) for name, x in STATE.items()}
    for name, tensor in STATE.items():
        assert torch.equal(source.read(name), tensor)
        assert source.read(name).dtype == tensor.dtype


def test_slices_are_flat_and_in_row_major_order(source: Source) -> None:
    assert source.read("matrix", 2, 7).tolist() == [2, 3, 4, 5, 6]
    assert source.read("matrix", 10, 99).tolist() == [10, 11]
    assert source.read("matrix", 0, 12).shape == (12,)
    assert source.read("scalar", 0, 1).shape == (1,)
    assert source.read("empty", 0, 0).shape == (0,)


def test_a_source_is_called_by_its_path_or_number(tmp_path: Path) -> None:
    write_model(tmp_path / "a.safetensors", STATE)
    assert OnDisk(open_model(tmp_path / "a.safetensors")).label == str(tmp_path / "a.safetensors")
    assert InMemory("model 3", STATE).label == "model 3"


def test_slices_of_a_strided_tensor_in_memory_are_in_row_major_order_too() -> None:
    turned = InMemory("a", {"x": torch.arange(6.0).reshape(2, 3).T, "y": torch.arange(8.0)[::2]})
    assert turned.read("x", 0, 2).tolist() + turned.read("y", 1, 3).tolist() == [0, 3, 2, 4]
    assert turned.read("x", 2, 6).tolist() == [1, 4, 2, 5]


def test_reading_does_not_follow_gradients() -> None:
    assert not InMemory("a", {"x": torch.ones(2, requires_grad=True)}).read("x").requires_grad


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"matrix": None}, r"^a has tensor 'matrix' \[3, 4\], b has not$"),
        ({"more": torch.ones(2)}, r"^b has tensor 'more' \[2\], a has not$"),
        ({"matrix": torch.ones(4, 3)}, r"^tensor 'matrix' is \[3, 4\] in a and \[4, 3\] in b$"),
        ({"counter": torch.ones(2)}, r"^tensor 'counter' is torch.int64 in a and torch.float32 in b$"),
        ({"half": None, "scalar": None}, "'half'"),
    ],
)
def test_the_first_tensor_that_differs_is_named(changes: dict[str, torch.Tensor | None], words: str) -> None:
    other = {name: tensor for name, tensor in {**STATE, **changes}.items() if tensor is not None}
    with pytest.raises(SchemaError, match=words):
        check_alike([InMemory("a", STATE), InMemory("same", STATE), InMemory("b", other)])


def test_order_and_width_may_differ() -> None:
    other = {name: x.double() if x.is_floating_point() else x for name, x in reversed(STATE.items())}
    check_alike([InMemory("a", STATE), InMemory("b", other)])


def test_statistics_cover_what_is_averaged() -> None:
    model = InMemory("a", STATE)
    check_statistics(model, InMemory("f", {name: x for name, x in STATE.items() if name != "counter"}))
    with pytest.raises(SchemaError, match=r"^a has tensor 'half' \[2\], f has not$"):
        check_statistics(model, InMemory("f", {"matrix": STATE["matrix"]}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_what_is_not_finite_is_named(dtype: torch.dtype) -> None:
    check_finite(torch.ones(3).to(dtype), "w", "a")
    with pytest.raises(UsageError, match="tensor 'w' of a holds NaN; expected finite numbers"):
        check_finite(torch.tensor([1.0, float("nan"), 0.0]).to(dtype), "w", "a")
    if dtype != torch.float8_e4m3fn:  # which has no Inf
        with pytest.raises(UsageError, match="holds Inf"):
            check_finite(torch.tensor([1.0, -float("inf")]).to(dtype), "w", "a")
    check_finite(torch.zeros(0, dtype=dtype), "w", "a")


@pytest.mark.parametrize(
    ("entry", "what"), [(None, "NoneType"), (3.0, "float"), (torch.eye(2).to_sparse(), "torch.sparse_coo")]
)
def test_what_is_no_dense_tensor_is_named(entry: object, what: str) -> None:
    """Modules may keep None under `_extra_state`."""
    state = {"w": torch.ones(2), "layer._extra_state": entry}
    with pytest.raises(UsageError, match=rf"'layer\._extra_state' of model 0 is {what}, expected a dense tensor"):
        fold("mean", [state])  # type: ignore[list-item]
