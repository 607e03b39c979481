"""Parameters of mergekit recipes: gradients as numpy interpolates, filters in order, the nearest place first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimat.recipes.settings import check_setting, flag, number, resolve, value_at

numbers = st.floats(-10, 10)


@given(st.lists(numbers, min_size=1, max_size=6), st.floats(0, 1))
def test_a_list_of_numbers_is_interpolated_over_the_depth(values: list[float], depth: float) -> None:
    expected = np.interp(depth, np.linspace(0, 1, len(values)), values) if len(values) > 1 else values[0]
    assert value_at(values, "x", depth, number) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("depth, expected", [(0, True), (0.49, True), (0.5, False), (0.99, False), (1, True)])
def test_a_list_of_flags_is_picked_from(depth: float, expected: bool) -> None:
    assert value_at([True, False, True], "x", depth, flag) is expected


def test_the_first_filter_that_is_part_of_the_name_counts() -> None:
    setting = [{"filter": "attn", "value": [0, 1]}, {"filter": "q_proj", "value": 7}, {"filter": "*", "value": 3}]
    assert value_at(setting, "layers.1.attn.q_proj", 0.5, number) == 0.5
    assert value_at(setting, "layers.1.q_proj", 0.5, number) == 7
    assert value_at(setting, "layers.1.mlp", 0.5, number) == 3
    assert value_at(setting[:2], "layers.1.mlp", 0.5, number) is None
    assert value_at({"filter": "mlp", "value": 2}, "layers.1.mlp", 0.5, number) == 2


def test_the_nearest_place_that_has_a_value_for_the_tensor_counts() -> None:
    places = [None, {"weight": [{"filter": "mlp", "value": 1}]}, {"weight": []}, {"weight": 2, "density": "1e-1"}]
    assert resolve("weight", places, "mlp", 0, number) == 1
    assert resolve("weight", places, "attn", 0, number) == 2
    assert resolve("density", places, "attn", 0, number) == pytest.approx(0.1)  # YAML reads 1e-1 as text
    assert resolve("gamma", places, "attn", 0, number, default=0.01) == 0.01


def test_what_is_no_number_names_its_parameter() -> None:
    with pytest.raises(ValueError, match="parameter 'weight': got 'heavy', expected a finite number"):
        resolve("weight", [{"weight": "heavy"}], "x", 0, number)
    with pytest.raises(ValueError, match="parameter 'normalize': got 3, expected true or false"):
        resolve("normalize", [{"normalize": 3}], "x", 0, flag)


@pytest.mark.parametrize("setting", [{"filter": "x"}, [{"value": 1}, 2], [[1, 2]], {"value": 1, "fliter": "x"}, None])
def test_other_forms_are_no_settings(setting: object) -> None:
    with pytest.raises(ValueError, match="filter"):
        check_setting(setting)
