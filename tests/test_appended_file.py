"""A file written tensor by tensor is a .safetensors file like any other."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dimat.errors import DimatError
from dimat.modelfile import open_model
from dimat.modelfile.append import AppendedFile


def test_both_readers_find_what_was_appended(tmp_path: Path) -> None:
    tensors = {
        "sum:a": torch.arange(6.0).reshape(2, 3),
        "weight:a": torch.tensor(2.0, dtype=torch.float64),
        "sum:b": torch.zeros(0, 4),
    }
    path = tmp_path / "state.safetensors"
    with AppendedFile(path, 4096) as file:
        for name, tensor in tensors.items():
            file.append(name, tensor)
        file.close({"format": "1"})
    for found in (load_file(path), open_model(path).read_all()):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert open_model(path).metadata == {"format": "1"}


def test_a_header_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DimatError, match="reserved"), AppendedFile(tmp_path / "s.safetensors", 16) as file:
        file.append("a" * 100, torch.zeros(1))
        file.close({})
