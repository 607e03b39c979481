"""What options of merge methods may be, and what is said of those that they may not."""

from collections.abc import Callable

import pytest

from dimat.errors import ConfigError, PluginError
from dimat.merge import make_fold
from dimat.merge.options import choice, flag, number, patterns, whole


def test_what_is_allowed_comes_back() -> None:
    assert number("scale", -2) == -2.0
    assert isinstance(number("scale", 1), float)
    assert number("density", 1, above=0, at_most=1) == 1.0
    assert number("t", 0, at_least=0) == 0.0
    assert whole("seed", 7) == 7
    assert flag("normalize", False) is False
    assert choice("trim", "tensor", ("global", "tensor")) == "tensor"
    assert patterns("plain", "*.weight") == ("*.weight",)
    assert patterns("plain", ["a*", "b"]) == ("a*", "b")
    assert patterns("plain", []) == ()


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: number("scale", "1"), "scale is '1', expected a number$"),
        (lambda: number("scale", True), "scale is True, expected a number$"),
        (lambda: number("scale", None), "scale is None"),
        (lambda: number("scale", float("nan")), "scale is nan"),
        (lambda: number("scale", float("inf")), "scale is inf"),
        (lambda: number("density", 0, above=0, at_most=1), "density is 0, expected a number above 0 and at most 1$"),
        (lambda: number("density", 1.01, above=0, at_most=1), r"density is 1\.01"),
        (lambda: number("t", -0.1, at_least=0), "expected a number at least 0$"),
        (lambda: whole("seed", 1.0), r"seed is 1\.0, expected a whole number of at least 0$"),
        (lambda: whole("seed", True), "seed is True"),
        (lambda: whole("keep", 0, at_least=1), "keep is 0, expected a whole number of at least 1$"),
        (lambda: flag("normalize", 1), "normalize is 1, expected true or false$"),
        (lambda: flag("normalize", "true"), "normalize is 'true'"),
        (lambda: choice("trim", "globl", ("global", "tensor")), "Did you mean 'global'. Allowed: global, tensor$"),
        (lambda: choice("trim", 3, ("global", "tensor")), "trim is 3. Allowed: global, tensor$"),
        (lambda: patterns("plain", 3), "plain is 3, expected a pattern of tensor names"),
        (lambda: patterns("plain", ["a", 3]), "expected a pattern"),
        (lambda: patterns("plain", ""), "expected a pattern"),
    ],
)
def test_what_is_not_allowed_is_said(check: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check()


def test_a_method_says_which_of_its_options_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"'ties' refuses its options .*density is 2"):
        make_fold("ties", {"density": 2})
    with pytest.raises(ConfigError, match=r"no option 'densty'. Did you mean 'density'. its options: density, scale"):
        make_fold("ties", {"densty": 0.2})
    with pytest.raises(PluginError, match="Did you mean 'model_stock'"):
        make_fold("model_stok")
