"""State dicts to payloads and back, without a network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.errors import PayloadError, SchemaError
from dimat.messages import Header, TensorSpec, digest
from dimat.snapshot.encode import DTYPES, check_finite, decode, encode, schema_of

HEADER = Header("snapshot", round=3, agent=4)


@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 4), max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_what_is_encoded_is_decoded(dtype: str, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 2, shape, generator=generator).to(DTYPES[dtype])
    payload = encode({"t": tensor}, HEADER)
    assert payload.tensors[0].spec == TensorSpec("t", dtype, tuple(shape))
    assert len(payload.tensors[0].data) == payload.tensors[0].spec.num_bytes
    assert payload.tensors[0].checksum == digest(payload.tensors[0].data)
    decoded = decode(payload)["t"]
    assert decoded.dtype == tensor.dtype
    assert decoded.shape == tensor.shape
    assert torch.equal(decoded, tensor)


def test_strides_do_not_travel() -> None:
    """Transposed, sliced, expanded and channels-last tensors arrive in C order, as the bytes of their entries."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    views = {
        "transposed": base.transpose(0, 2),
        "sliced": base[:, ::2],
        "expanded": torch.tensor([1.0]).expand(5),
        "channels_last": torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    payload = encode(views, HEADER)
    for tensor in payload.tensors:
        expected = views[tensor.spec.name].contiguous().numpy().tobytes()
        assert bytes(tensor.data) == expected


def test_decoding_copies_nothing() -> None:
    payload = encode({"w": torch.zeros(4), "n": torch.tensor(1)}, HEADER)
    payload.tensors[0].data[3] = 0x40  # the exponent of the first entry
    assert decode(payload)["w"][0] == 2.0


def test_tied_tensors_travel_by_name() -> None:
    shared = torch.nn.Parameter(torch.ones(3))
    payload = encode({"embed": shared, "head": shared}, HEADER)
    assert [tensor.spec.name for tensor in payload.tensors] == ["embed", "head"]
    assert payload.num_bytes == 24
    assert not decode(payload)["head"].requires_grad


def test_the_schema_is_that_of_the_payload() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    schema = schema_of(model.state_dict(), groups="abcd")
    assert schema.groups == "abcd"
    assert schema.tensors == encode(model.state_dict(), HEADER).schema.tensors
    assert [spec.name for spec in schema.tensors] == list(model.state_dict())


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (torch.zeros(2).to_sparse(), "sparse"),
        (torch.zeros(2, device="meta"), "meta"),
        ({"epoch": 3}, "dict"),
    ],
)
def test_what_cannot_travel_is_named(entry: object, words: str) -> None:
    for refuse in (schema_of, lambda state: encode(state, HEADER)):
        with pytest.raises(SchemaError, match="'odd'") as caught:
            refuse({"odd": entry})
        assert words in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_a_number_is_named(value: float) -> None:
    fine = {"w": torch.ones(3), "n": torch.tensor([1]), "e": torch.empty(0)}
    check_finite(encode(fine, HEADER))
    with pytest.raises(PayloadError, match=r"agent 4.*round 3.*'b'"):
        check_finite(encode(fine | {"b": torch.tensor([0.0, value], dtype=torch.bfloat16)}, HEADER))
