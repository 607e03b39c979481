from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat.errors import TaskError
from dimat.tasks import TensorLoader
from dimat.tasks.scaling import Scaling


def loader(size: int, batch_size: int, seed: int = 0, scaling: Scaling | None = None) -> TensorLoader:
    x = torch.arange(size, dtype=torch.float32)[:, None]
    return TensorLoader(x, torch.arange(size), batch_size, torch.Generator().manual_seed(seed), scaling)


@given(st.integers(1, 70), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_an_epoch_has_every_sample_once_and_no_lonely_one(size, batch_size) -> None:
    batches = list(loader(size, batch_size))
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(size))
    assert all(torch.equal(x[:, 0].long(), y) for x, y in batches)
    assert len(batches) == len(loader(size, batch_size))
    lengths = [len(y) for _, y in batches]
    assert max(lengths) <= batch_size + 1
    if batch_size > 1 and size > 1:
        assert min(lengths) > 1


def test_each_epoch_has_a_new_order_which_the_generator_fixes() -> None:
    one, other = loader(50, 8, seed=1), loader(50, 8, seed=1)
    first, second = ([y.tolist() for _, y in one] for _ in range(2))
    assert first != second
    assert [y.tolist() for _, y in other] == first
    # What a continued run does: put the generator's state back into a fresh loader.
    fresh = loader(50, 8, seed=9)
    fresh.generator.set_state(other.generator.get_state())
    assert [y.tolist() for _, y in fresh] == second


def test_global_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    list(loader(20, 4))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "32"])
def test_a_wrong_batch_size_is_refused(batch_size) -> None:
    with pytest.raises(TaskError, match="batch_size"):
        loader(5, batch_size)


def test_samples_without_labels_are_refused() -> None:
    with pytest.raises(TaskError, match="3 samples and 2 labels"):
        TensorLoader(torch.zeros(3, 1), torch.zeros(2), 2, torch.Generator())


def test_standard_scaling_gives_each_channel_mean_0_and_deviation_1() -> None:
    x = (
        torch.randn(9000, 3, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 1e-3])[:, None]
        + 7
    )
    x[:, 0] = 4.25  # a channel that never changes
    scaled = Scaling.standard(x).apply(x).double()
    torch.testing.assert_close(scaled.mean((0, 2)), torch.zeros(3).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled[:, 1:].std((0, 2)), torch.ones(2).double(), atol=1e-2, rtol=0)
    assert (scaled[:, 0] == 0).all()


def test_bytes_are_scaled_batch_by_batch() -> None:
    x = torch.tensor([[0], [255], [0], [255]], dtype=torch.uint8)
    made = TensorLoader(x, torch.arange(4) % 2, 4, torch.Generator().manual_seed(0), Scaling.symmetric(255))
    [(batch, labels)] = list(made)
    assert made.x.dtype == torch.uint8
    assert torch.equal(batch[:, 0], labels * 2.0 - 1)
