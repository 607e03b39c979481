"""Which round comes after one: the next, but for an agent that is out of the graph while the others went on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dimat.agent.build import build_agent
from dimat.agent.live import next_round
from dimat.agent.state import Agent
from dimat.config import load_config
from dimat.messages import Change, Directive
from dimat.transport.memory import MemoryHub, MemoryTransport

OUT, BACK = Change(1, 4, (0,)), Change(2, 25, ())


def agent(*settings: str) -> Agent:
    config = load_config(None, ["task.model=mlp", "agents=3", "topology.graph=path", "merge.align=none", *settings])
    return build_agent(config, 0, Path("unused"), "s", lambda schema: MemoryTransport(0, "s", schema, MemoryHub()))


@pytest.mark.parametrize(
    ("changes", "others_at", "number", "expected"),
    [
        ((), 20, 4, 5),  # slow is not lost
        ((OUT,), 20, 2, 3),  # the change holds from round 4 on
        ((OUT,), 20, 4, 21),
        ((OUT,), 4, 4, 5),
        ((OUT,), 40, 4, 40),
        ((OUT, BACK), 30, 23, 31),
        ((OUT, BACK), 30, 24, 25),  # in the graph again: its neighbours wait for it
    ],
)
def test_who_is_out_of_the_graph_joins_the_others(
    changes: tuple[Change, ...], others_at: int, number: int, expected: int
) -> None:
    made = agent()
    made.hear(Directive(changes=changes, newest_round=others_at))
    assert next_round(made, number, 40) == expected


def test_without_waiting_nothing_is_left_out() -> None:
    made = agent("exchange.mode=async")
    made.hear(Directive(changes=(OUT,), newest_round=20))
    assert next_round(made, 4, 40) == 5
