"""What an agent does with what it is told of the others, and how it comes back to them."""

from pathlib import Path

import pytest
import torch

from dimat.agent.build import build_agent
from dimat.agent.comeback import catch_up, others_at
from dimat.agent.state import Agent
from dimat.config import load_config
from dimat.errors import SchemaError
from dimat.messages import Change, Directive, Member, View
from dimat.transport.base import Wait
from dimat.transport.memory import MemoryHub, MemoryTransport

SMALL = ["task.model.name=mlp", "task.model.hidden=[8]", "agents=4", "topology.graph=ring", "merge.align=none"]


def agent(number: int, folder: Path, hub: MemoryHub, *settings: str) -> Agent:
    config = load_config(None, [*SMALL, *settings])
    made = build_agent(config, number, folder, f"s{number}", lambda schema: MemoryTransport(number, "s", schema, hub))
    made.transport.start()
    return made


def view(*rounds: int, start: int = 0) -> View:
    members = tuple(Member(number, f"m{number}", "running", round) for number, round in enumerate(rounds))
    return View(1, "running", start_round=start, members=members)


def test_a_change_holds_from_its_round_on_and_ends_waits(tmp_path: Path) -> None:
    one = agent(0, tmp_path, MemoryHub())
    plain = one.row(4)
    one.hear(Directive(changes=(Change(1, 5, (1,)), Change(2, 7, ()))))
    assert one.row(4) == plain
    assert sorted(one.row(5)) == sorted(one.row(6)) == [0, 2, 3]  # over the bridge
    assert one.row(7) == plain
    one.hear(Directive(changes=(Change(1, 2, (3,)),)))  # an answer that was overtaken
    assert one.row(3) == plain
    one.hear(Directive(changes=(Change(3, 9, (1, 3)),)))
    assert isinstance(one.transport, MemoryTransport)
    assert one.transport.settled(Wait("published", (1, 2, 3), "snapshot", 8, 60.0)) == {1, 3}


def test_dropped_neighbours_give_their_weight_to_oneself_and_the_last_merge_is_among_those_who_are_there(
    tmp_path: Path,
) -> None:
    settings = ("membership.repair=drop", "merge.final=complete", "rounds=9")
    one = agent(0, tmp_path, MemoryHub(), *settings)
    one.hear(Directive(changes=(Change(1, 5, (1,)),)))
    assert one.row(5) == pytest.approx({0: 2 / 3, 3: 1 / 3})
    assert one.row(9) == pytest.approx(dict.fromkeys((0, 2, 3), 1 / 3))


def test_an_agent_that_is_away_itself_merges_with_nobody(tmp_path: Path) -> None:
    one = agent(1, tmp_path, MemoryHub())
    one.hear(Directive(changes=(Change(1, 5, (1,)),)))
    assert one.row(6) == {1: 1.0}


def test_a_checkpoint_that_is_fresh_enough_is_gone_on_from(tmp_path: Path) -> None:
    one = agent(0, tmp_path, MemoryHub(), "membership.max_staleness=5")
    assert others_at(0, view(99, 12, 11, 3)) == 12
    near = view(0, 12, 11, 12, start=7)
    assert catch_up(one, near) is near


def test_whoever_is_far_behind_takes_a_neighbours_newest_model(tmp_path: Path) -> None:
    hub = MemoryHub()
    one = agent(0, tmp_path, hub, "membership.max_staleness=5")
    far, near = (agent(number, tmp_path, hub) for number in (2, 3))
    with torch.no_grad():
        for parameter in near.model.parameters():
            parameter.fill_(0.25)
    far.publish("snapshot", 12)
    near.publish("snapshot", 11)
    near.publish("snapshot", 12)
    found = catch_up(one, view(0, 12, 12, 12, start=6))
    assert found.start_round == 12
    assert all(bool((parameter == 0.25).all()) for parameter in one.model.parameters())  # agent 1 is silent, 3 is near
    assert one.basis_settled
    assert one.rounds_held() == (0, 12)
    one.resume(12)  # as the rounds begin
    assert all(bool((parameter == 0.25).all()) for parameter in one.model.parameters())


def test_where_nobody_answers_the_old_checkpoint_has_to_do(tmp_path: Path) -> None:
    one = agent(0, tmp_path, MemoryHub(), "membership.max_staleness=0")
    seen = view(0, 12, 12, 12, start=6)
    assert catch_up(one, seen) is seen


def test_another_model_is_not_taken(tmp_path: Path) -> None:
    hub = MemoryHub()
    one = agent(0, tmp_path, hub, "membership.max_staleness=0")
    agent(3, tmp_path, hub, "task.model.hidden=[9]").publish("snapshot", 12)
    with pytest.raises(SchemaError, match="agent 3"):
        catch_up(one, view(0, 12, 12, 12, start=6))
