"""Where tensors stand: in which slice, and how deep."""

import pytest

from dimat.errors import ConfigError
from dimat.recipes.depth import Place, places_of

LLAMA = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.weight" for i in range(5)), "model.norm.weight",
         "lm_head.weight"]  # fmt: skip


def test_depth_runs_over_the_layers_and_is_zero_outside() -> None:
    assert [place.depth for place in places_of(LLAMA).values()] == [0, 0, 0.25, 0.5, 0.75, 1, 0, 0]


def test_every_stack_counts_for_itself_and_a_single_layer_is_the_last() -> None:
    names = [
        "encoder.block.0.w",
        "encoder.block.2.w",
        "decoder.block.0.layer.1.w",
        "decoder.block.1.layer.0.w",
        "h.0.w",
    ]
    assert [place.depth for place in places_of(names).values()] == [0, 1, 0, 1, 1]
    assert places_of(["0.weight", "1.weight", "2.weight"])["1.weight"].depth == 0.5  # a Sequential


def test_slices_have_depths_of_their_own_and_keep_what_stands_before_and_behind() -> None:
    places = places_of(LLAMA, [(0, 2), (2, 5)])
    assert [(place.part, place.depth) for place in places.values()] == [
        (0, 0), (0, 0), (0, 1), (1, 0), (1, 0.5), (1, 1), (1, 0), (1, 0),
    ]  # fmt: skip
    assert places_of(LLAMA, [(0, 1), (1, 5)])["model.layers.0.mlp.weight"] == Place(0, 1.0)


@pytest.mark.parametrize(
    "ranges, told",
    [
        ([(0, 3), (2, 5)], r"slices\[1\] takes the layers 2 to 5, expected it to go on at layer 3.*stacks"),
        ([(0, 2), (3, 5)], r"slices\[1\] takes the layers 3 to 5"),
        ([(2, 5), (0, 2)], r"slices\[0\] takes the layers 2 to 5"),
        ([(0, 4)], "end at layer 4, the models have 5"),
        ([(0, 0), (0, 5)], r"slices\[0\] takes the layers 0 to 0"),
    ],
)
def test_slices_that_are_not_the_whole_model_are_refused(ranges: list[tuple[int, int]], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        places_of(LLAMA, ranges)


def test_slices_of_two_stacks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"one stack of layers; here are 'encoder', 'decoder'"):
        places_of(["encoder.0.w", "decoder.0.w"], [(0, 1)])
