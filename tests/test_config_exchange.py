"""`exchange`: the defaults, what the resolved config says again, and what is refused."""

import pytest
import yaml

from dimat.config import load_config, parse_config
from dimat.errors import ConfigError


def test_the_keys_of_the_first_release_go_on_meaning_the_same() -> None:
    old = parse_config({"exchange": {"mode": "sync", "timeout_s": 60, "encoding": "float32"}}, source="test")
    assert old == load_config(None)


@pytest.mark.parametrize(
    "settings",
    [[], ["exchange.timeout_s=3"], ["exchange.mode=async", "exchange.min_timeout_s=1", "exchange.overlap=true"]],
)
def test_the_resolved_config_is_read_as_itself(settings: list[str]) -> None:
    """A ceiling below the default floor is nobody's mistake: the floor goes down with it."""
    config = load_config(None, settings)
    again = parse_config(yaml.safe_load(config.to_yaml()), source="test")
    assert again == config
    assert again.digest == config.digest


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["exchange.timeout_s=3", "exchange.min_timeout_s=4"], "the least wait is longer than the longest"),
        (["exchange.mode=asinc"], "Did you mean 'async'?"),
        (["exchange.deadline=adaptiv"], "Did you mean 'adaptive'?"),
        (["exchange.min_timeout_s=0"], "greater than 0"),
        (["exchange.max_staleness=-1"], "greater than or equal to 0"),
        (["exchange.max_stalenes=1"], "Did you mean 'exchange.max_staleness'?"),
        (["exchange.staleness_power=-0.5"], "greater than or equal to 0"),
        (["exchange.overlap=true"], "which do not exist before its training ends. Take mode 'async', or overlap false"),
    ],
)
def test_what_cannot_be_is_refused_and_the_right_word_named(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, settings)
    assert words in str(error.value)
