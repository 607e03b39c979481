"""`dimat run` ends with the run, also when an agent came back after everybody had left."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from dimat.config import load_config
from dimat.launch import local
from dimat.launch.local import LocalRun


class Process:
    """A child that has ended with `code`, or goes on (None) until it is closed."""

    log = Path("agent.log")

    def __init__(self, name: str, code: int | None) -> None:
        self.name, self.code = name, code

    def poll(self) -> int | None:
        return self.code

    def close(self, patience_s: float = 0.0) -> None:
        if self.code is None:
            self.code = -15


def test_who_came_back_after_the_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for a coordinator that is gone; the command would last as long as its patience."""
    monkeypatch.setattr(local, "LATE_S", 0.3)
    run = LocalRun(load_config(None, ["agents=2"]), tmp_path, "per-agent", lambda view: None, lock=0)
    parts: dict[str, Any] = {
        "_coordinator": Process("coordinator", 0),
        "_launchers": [Process("agent 0", 0), Process("agent 1", None)],
        "_run_ended": lambda: True,
    }
    for name, part in parts.items():
        monkeypatch.setattr(run, name, part)
    with caplog.at_level(logging.WARNING):
        run._supervise("127.0.0.1:1")
    assert "agent 1 came back after the run had ended" in caplog.text
    assert parts["_launchers"][1].poll() == -15
