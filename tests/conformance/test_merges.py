"""Every merge method keeps the contract of a fold; a new one is a row here."""

from itertools import permutations
from pathlib import Path

import pytest
import torch

from dimat.merge import Fold, make_fold
from dimat.merge.api import METHODS
from dimat.merge.check import check_merge

CASES = ["mean"]
OWN = '''
from dimat.merge import Fold
import torch

def largest():
    """The entry of largest value."""
    return Fold(
        init=lambda base: {},
        absorb=lambda state, x, base, w, stats=None, survey=None: {
            "top": torch.maximum(state["top"], x) if "top" in state else x
        },
        combine=lambda a, b: {"top": torch.maximum(a["top"], b["top"])},
        finish=lambda state, base, scalars: state["top"],
    )

def broken():
    """Depends on the order and does not say so."""
    import dataclasses
    return dataclasses.replace(largest(), absorb=lambda state, x, base, w, stats=None, survey=None: {"top": x})
'''


def models() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 2, generator=generator) for _ in range(3)]


def run(method: Fold, tensors: list[torch.Tensor]) -> torch.Tensor:
    state = method.init(None)
    for tensor in tensors:
        state = method.absorb(state, tensor, None, 1.0)
    return method.finish(state, None, {})


def test_every_method_is_in_the_table() -> None:
    assert sorted(METHODS) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_checker_finds_nothing(name: str) -> None:
    assert check_merge(name) == []


@pytest.mark.parametrize("name", CASES)
def test_order_and_bracketing_do_not_matter(name: str) -> None:
    method = make_fold(name)
    expected = run(method, models())
    for order in permutations(models()):
        torch.testing.assert_close(run(method, list(order)), expected)
    a, b, c = (method.absorb(method.init(None), tensor, None, 1.0) for tensor in models())
    for joined in (method.combine(method.combine(a, b), c), method.combine(a, method.combine(b, c))):
        torch.testing.assert_close(method.finish(joined, None, {}), expected)
    torch.testing.assert_close(method.finish(method.combine(method.init(None), a), None, {}), models()[0])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_tensors_pass(name: str, shape: tuple[int, ...]) -> None:
    merged = run(make_fold(name), [torch.ones(shape), torch.ones(shape)])
    assert merged.shape == shape


def test_a_users_method_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    assert check_merge(f"{path}:largest") == []
    problems = check_merge(f"{path}:broken")
    assert any("another order" in problem for problem in problems)
    assert any("combine" in problem for problem in problems)
