"""Schemas name the first difference; everything that crosses the wire is frozen and free of torch."""

import dataclasses

import pytest

from dimat import messages
from dimat.messages import Schema, TensorSpec

W = TensorSpec("w", "float32", (2, 3))
B = TensorSpec("b", "float32", (3,))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Schema((W, B)), None),
        (Schema((TensorSpec("w", "float32", (3, 2)), B)), "tensor 'w' is float32 [2, 3] here and float32 [3, 2] there"),
        (Schema((TensorSpec("w", "float16", (2, 3)), B)), "float32 [2, 3] here and float16 [2, 3] there"),
        (Schema((W,)), "'b' [3] exists only here"),
        (Schema((W, B, TensorSpec("c", "int64", ()))), "'c' [] exists only there"),
        (Schema((B, W)), "'w' where there it is 'b'"),
        (Schema((W, B), groups="x"), "permutation groups differ"),
    ],
)
def test_the_first_difference_is_named(other: Schema, words: str | None) -> None:
    mine = Schema((W, B))
    difference = mine.difference(other)
    assert difference is None if words is None else words in (difference or "")
    assert (mine.fingerprint == other.fingerprint) == (words is None)


def test_sizes_are_in_bytes() -> None:
    assert TensorSpec("s", "bfloat16", ()).num_bytes == 2
    assert TensorSpec("e", "float64", (0, 5)).num_bytes == 0
    assert Schema((W, B)).num_bytes == 36


def test_every_message_is_frozen() -> None:
    classes = [value for value in vars(messages).values() if dataclasses.is_dataclass(value)]
    assert len(classes) > 8
    assert all(value.__dataclass_params__.frozen for value in classes)
