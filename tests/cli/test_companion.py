"""The coordinator that rank 0 starts beside itself outlives rank 0's own rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from dimat.cli.agent import Companion


class Child:
    """A coordinator that is waited for three times before it ends."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def wait(self, timeout_s: float) -> int | None:
        self.calls.append("wait")
        return 0 if self.calls.count("wait") > 3 else None

    def close(self) -> None:
        self.calls.append("close")


def test_it_is_not_stopped_while_others_are_in_their_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents behind a line that was cut may come to their last round minutes after rank 0 did."""
    companion, child = Companion(Path("unused"), "127.0.0.1", None, False), Child()
    monkeypatch.setattr(companion, "_child", child)
    companion.outlast()
    assert child.calls == ["wait"] * 4
    companion.close()
    assert child.calls[-1] == "close"


def test_where_rank_0_started_none_there_is_none_to_outlast() -> None:
    Companion(Path("unused"), "127.0.0.1", None, False).outlast()
