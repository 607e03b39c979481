"""A method's options stand beside it under `merge:`; misspelt keys of dimat's own are still told."""

import pytest

from dimat.config import MergeConfig, load_config
from dimat.config.part import MISSPELT, misspelt
from dimat.errors import ConfigError
from dimat.merge import builtin_methods, options_of


def test_options_beside_the_method_are_its_options() -> None:
    beside = load_config(None, ["merge.method=ties", "merge.density=0.3"])
    under = load_config(None, ["merge.method=ties", "merge.options.density=0.3"])
    assert beside == under
    assert beside.merge.options == {"density": 0.3}


def test_an_option_said_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'density' stands twice"):
        load_config(None, ["merge.density=0.3", "merge.options.density=0.3"])


@pytest.mark.parametrize(("typo", "meant"), [("algin", "align"), ("metod", "method"), ("calibrat", "calibrate")])
def test_a_misspelt_key_is_not_taken_for_an_option(typo: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean 'merge.{meant}'"):
        load_config(None, [f"merge.{typo}=none"])


def test_no_option_of_a_built_in_method_looks_like_a_misspelt_key() -> None:
    options = {option for method in builtin_methods().values() for option in options_of(method)}
    assert "density" in options
    assert [option for option in options if misspelt(option, MergeConfig.model_fields)] == []
    assert MISSPELT < 0.8
