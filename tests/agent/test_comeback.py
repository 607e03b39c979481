"""What an agent does with what it is told of the others, and how it comes back to them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dimat.agent.build import build_agent
from dimat.agent.comeback import catch_up, others_at
from dimat.agent.state import Agent
from dimat.cli.agent import identity
from dimat.config import load_config
from dimat.errors import ConfigError, PeerUnavailable, SchemaError, UsageError
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


def test_a_round_that_the_neighbours_still_hold_is_done(tmp_path: Path) -> None:
    one = agent(0, tmp_path, MemoryHub())
    assert others_at(0, view(99, 12, 11, 3)) == 12
    near = view(0, 12, 11, 12, start=11)
    assert catch_up(one, near) is near


def with_checkpoint(one: Agent, round: int, value: float) -> Agent:
    with torch.no_grad():
        for parameter in one.model.parameters():
            parameter.fill_(value)
    one.basis_settled = True
    one.save(round)
    return one


def test_a_checkpoint_that_is_fresh_enough_is_gone_on_from_in_the_round_of_the_others(tmp_path: Path) -> None:
    with_checkpoint(agent(0, tmp_path, MemoryHub()), 7, 0.5)
    one = agent(0, tmp_path, MemoryHub(), "membership.max_staleness=5")
    assert catch_up(one, view(0, 12, 11, 12, start=7)).start_round == 12
    assert one.rounds_held() == (0, 7, 12)
    one.resume(12)  # as the rounds begin
    assert all(bool((parameter == 0.5).all()) for parameter in one.model.parameters())
    assert one.status.round == 12  # heartbeats say so


@pytest.mark.parametrize("settled", [True, False])
def test_whoever_is_far_behind_or_missed_the_basis_takes_a_neighbours_newest_model(
    tmp_path: Path, settled: bool
) -> None:
    hub = MemoryHub()
    mine = with_checkpoint(agent(0, tmp_path, MemoryHub()), 6, 0.5)
    mine.basis_settled = settled
    mine.save(6)
    one = agent(0, tmp_path, hub, f"membership.max_staleness={5 if settled else 50}")
    one.basis_settled = False
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
    assert one.rounds_held()[-1] == 12
    one.resume(12)
    assert all(bool((parameter == 0.25).all()) for parameter in one.model.parameters())


def test_where_nobody_answers_the_old_checkpoint_has_to_do(tmp_path: Path) -> None:
    with_checkpoint(agent(0, tmp_path, MemoryHub()), 6, 0.5)
    one = agent(0, tmp_path, MemoryHub(), "membership.max_staleness=0", "exchange.timeout_s=0.1")
    assert catch_up(one, view(0, 12, 12, 12, start=6)).start_round == 12


def test_another_model_is_not_taken(tmp_path: Path) -> None:
    hub = MemoryHub()
    with_checkpoint(agent(0, tmp_path, MemoryHub()), 6, 0.5)
    one = agent(0, tmp_path, hub, "membership.max_staleness=0")
    agent(3, tmp_path, hub, "task.model.hidden=[9]").publish("snapshot", 12)
    with pytest.raises(SchemaError, match="agent 3"):
        catch_up(one, view(0, 12, 12, 12, start=6))


ELASTIC = ("agents=3", "membership.elastic=true", "membership.max_agents=4", "exchange.timeout_s=5")


def test_a_newcomer_takes_a_model_and_is_in_the_ring_when_told(tmp_path: Path) -> None:
    hub = MemoryHub()
    founder, newcomer = (agent(number, tmp_path, hub, *ELASTIC) for number in (0, 3))
    assert sorted(founder.row(7)) == [0, 1, 2]
    assert newcomer.row(7) == {3: 1.0}
    founder.publish("snapshot", 6)
    found = catch_up(newcomer, view(6, 6, 6, 0))
    assert found.start_round == 6
    assert newcomer.basis_settled
    for name, tensor in founder.model.state_dict().items():
        assert torch.equal(newcomer.model.state_dict()[name], tensor)
    for one in (founder, newcomer):
        one.hear(Directive(changes=(Change(1, 8, (), "with agent 3"),)))
    assert sorted(founder.row(7)) == [0, 1, 2]
    assert sorted(founder.row(8)) == [0, 2, 3]
    assert sorted(newcomer.row(8)) == [0, 1, 3]


def test_a_newcomer_with_a_trained_model_keeps_its_function_and_takes_the_basis(tmp_path: Path) -> None:
    """It was trained from the founder's start, and renumbered: the basis that it finds back is the founder's."""
    settings = ("task.model.hidden=[8]", "agents=3", "membership.elastic=true", "membership.max_agents=4")
    aligned = ("merge.align=weights", "merge.basis=agree", "init=same")
    founder = agent(0, tmp_path, MemoryHub(), *settings, *aligned)
    assert founder.spec is not None
    state = {name: tensor.clone() for name, tensor in founder.model.state_dict().items()}
    perms = founder.spec.random(3)
    for number in range(4):
        save_file(dict(founder.spec.apply(state, perms)), tmp_path / f"{number}.safetensors")
    hub = MemoryHub()
    newcomer = agent(3, tmp_path, hub, *settings, "merge.align=weights", f"init={tmp_path}")
    other = agent(0, tmp_path, hub, *settings, "merge.align=weights", f"init={tmp_path}")
    other.model.load_state_dict(state)
    other.publish("snapshot", 6)
    first = next(iter(state))
    assert not torch.equal(newcomer.model.state_dict()[first], state[first])
    assert catch_up(newcomer, view(6, 6, 6, 0)).start_round == 6
    for name, tensor in state.items():
        assert torch.equal(newcomer.model.state_dict()[name], tensor), name


def test_a_newcomer_that_nobody_answers_says_so(tmp_path: Path) -> None:
    newcomer = agent(3, tmp_path, MemoryHub(), *ELASTIC, "exchange.timeout_s=0.1")
    with pytest.raises(PeerUnavailable, match="agent 3 found nobody"):
        catch_up(newcomer, view(6, 6, 6, 0))


def test_seats_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_agents"):
        load_config(None, ["membership.max_agents=9"])
    with pytest.raises(ConfigError, match="begins with 5"):
        load_config(None, ["membership.elastic=true", "membership.max_agents=4"])
    assert load_config(None, ["membership.elastic=true"]).num_seats == 10
    assert identity(load_config(None, ["membership.elastic=true"]), 9, {})[0] == 9
    with pytest.raises(UsageError, match="expected 0 to 4") as caught:
        identity(load_config(None), 5, {})
    assert "membership.elastic" in str(caught.value.hint)
