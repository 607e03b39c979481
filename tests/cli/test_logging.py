"""The log of processes that write to one file: a line of one never stands inside of another's."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from dimat.cli.options import set_up_logging


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, as it was before when the test ends."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


class Writes(io.StringIO):
    """Notes each write: an unbuffered stream makes each a system call, between two of which others write."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def write(self, text: str) -> int:
        self.texts.append(text)
        return len(text)


def test_a_record_is_one_write_that_ends_with_its_line(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up_logging(0, False)
    monkeypatch.setattr(sys, "stderr", told := Writes())
    root_logger.warning("agent %d is there", 3)
    assert len(told.texts) == 1
    assert told.texts[0].endswith("WARNING agent 3 is there\n")
