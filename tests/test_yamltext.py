"""YAML from elsewhere: one kind of error, whatever is wrong, and none of it takes long."""

import pytest
import yaml

from dimat.yamltext import MOST_VALUES, load_yaml, shortened

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "told"),
    {
        "a date of month 13": ("2020-13-45", "month"),
        "more digits than Python reads": ("1" * 5000, "digits"),
        "more hexadecimal digits than it prints": ("0x" + "f" * 5000, "out of all range"),
        "a number that no float holds": ("-1" + "0" * 400, "out of all range"),
        "deep brackets": ("[" * 5000, "too deep"),
        "aliases of aliases": (BOMB, "unfold"),
        "aliases of aliases in pairs": (f"{BOMB}p: !!pairs [{{a: *a39}}]\n", "unfold"),
        "an alias of itself": ("a: &a {b: *a}", "unfold"),
        "an object of Python": ("!!python/object:os.system {}", "constructor"),
        "no YAML": ("a: [", "expected"),
    }.values(),
)
def test_everything_that_is_wrong_is_an_error_of_yaml(text: str, told: str) -> None:
    with pytest.raises(yaml.YAMLError, match=told):
        load_yaml(text)


def test_what_is_right_is_what_yaml_says() -> None:
    text = "base: &b {weight: 1.5, list: [1, two, true, null]}\nagain: *b\nday: 2020-02-29\nnumber: 1e308\n"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml(f"[{'1,' * (MOST_VALUES - 2)}1]") == [1] * (MOST_VALUES - 1)


def test_long_values_are_cut_in_messages() -> None:
    assert shortened("abc") == "'abc'"
    assert len(shortened("a" * 10**6)) < 80
