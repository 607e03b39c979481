"""What the ranks of one agent share among them; that they really meet is shown by tests/e2e/test_ranks.py."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dimat.agent.directory import may_be_started_again
from dimat.agent.ranks import Shares, share_of
from dimat.config import load_config
from dimat.errors import ConfigError
from dimat.simulate import simulate


@given(st.integers(1, 40), st.integers(1, 6))
def test_every_sample_is_dealt_and_all_ranks_get_the_same_number(size: int, num_ranks: int) -> None:
    dealt = [share_of(torch.arange(size), rank, num_ranks).tolist() for rank in range(num_ranks)]
    assert {len(share) for share in dealt} == {-(-size // num_ranks)}
    everything = sorted(sample for share in dealt for sample in share)
    assert set(everything) == set(range(size))
    assert len(everything) - size < num_ranks, "no more is dealt twice than evens the shares out"


def test_shares_are_taken_in_every_structure_alike() -> None:
    x, y = torch.arange(8.0).reshape(4, 2), torch.arange(4)
    batch = {"pair": [x, (y, None)], "scale": torch.tensor(3.0), "name": "b"}
    share = share_of(batch, 1, 2)
    assert share["pair"][0].tolist() == x[[1, 3]].tolist()
    assert share["pair"][1][0].tolist() == [1, 3]
    assert share["pair"][1][1] is None and share["name"] == "b" and share["scale"] == 3.0
    assert isinstance(share["pair"][1], tuple)


def test_the_mean_gradient_of_even_shares_is_that_of_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=generator), torch.randn(12, 1, generator=generator)
    weight = torch.randn(1, 5, generator=generator, requires_grad=True)

    def gradient(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(batch[0] @ weight.T, batch[1])
        return torch.autograd.grad(loss, weight)[0]

    shares = [next(iter(Shares([(x, y)], rank, 3))) for rank in range(3)]
    mean = torch.stack([gradient(share) for share in shares]).mean(0)
    torch.testing.assert_close(mean, gradient((x, y)))


def test_a_simulation_refuses_several_ranks(tmp_path: Path) -> None:
    config = load_config(None, ["launch.ranks_per_agent=2"])
    with pytest.raises(ConfigError, match="a simulation is one process"):
        simulate(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "most", "expected"), [("0", "1", True), ("1", "1", False), ("0", "0", False)])
def test_restarts_that_are_left(count: str, most: str, expected: bool) -> None:
    environment = {"TORCHELASTIC_RESTART_COUNT": count, "TORCHELASTIC_MAX_RESTARTS": most}
    assert may_be_started_again(environment) is expected
    assert not may_be_started_again({})
