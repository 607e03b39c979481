"""A neighbour that lies in a whole run: refused or held back, its weight given to self, counted and shown."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dimat.agent.state import Agent
from dimat.config import load_config
from dimat.coordinator import Store
from dimat.coordinator.store import Event
from dimat.errors import Interrupted
from dimat.messages import Header, Payload, Report, RoundSummary, View
from dimat.report.html import write_report
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.snapshot.encode import encode

SMALL = [
    "task.model.name=mlp",
    "task.model.hidden=[16]",
    "task.partition.scheme=iid",
    "train.epochs=1",
    "train.batch_size=64",
    "init=same",
    "merge.align=none",
    "rounds=3",
    "agents=5",
    "topology.graph=complete",
]
CHECKS = ["merge.checks.max_norm_ratio=3", "merge.checks.min_cosine=0.5"]
LIAR, HONEST = 3, (0, 1, 2, 4)


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    honest = Agent.publish

    def publish(self: Agent, kind: str, round: int) -> Payload:
        if self.id != LIAR:
            return honest(self, kind, round)
        state = self.model.state_dict()
        self.transport.publish(encode({name: -10 * t for name, t in state.items()}, Header(kind, round, self.id)))
        return encode(state, Header(kind, round, self.id))

    monkeypatch.setattr(Agent, "publish", publish)
    yield


def run(folder: Path, *settings: str) -> Path:
    config = load_config(None, [*SMALL, *settings])
    simulate(config, prepare(config, folder))
    return folder


def bits(folder: Path, round: int = 3) -> list[bytes]:
    return [(folder / "checkpoints" / str(a) / f"{round}.safetensors").read_bytes() for a in range(5)]


def read(folder: Path) -> tuple[dict[tuple[int, int], Report], list[RoundSummary], list[Event]]:
    with Store.open(folder, read_only=True) as store:
        return {(r.agent, r.round): r for r in store.reports()}, list(store.summaries()), store.events()


@pytest.mark.usefixtures("liar")
def test_a_liar_is_refused_by_all_counted_and_shown_and_nobody_else_is(tmp_path: Path) -> None:
    told, summaries, events = read(run(tmp_path / "run", *CHECKS))
    for agent in HONEST:
        for round in (1, 2, 3):
            report = told[agent, round]
            assert list(report.refused) == [LIAR]
            assert report.missing[LIAR].startswith("refused: its parameters lie ")
            assert report.metrics["refused"] == 1.0
            assert report.weights == pytest.approx({a: 0.4 if a == agent else 0.2 for a in HONEST})
            assert LIAR in report.bytes_received, "it did answer"
    # To the liar all honest agents are alike: it reads on, so its four edges are read one way.
    assert not told[LIAR, 2].missing and told[LIAR, 2].metrics["refused"] == 0.0
    assert [summary.num_refused for summary in summaries] == [4, 4, 4]
    texts = [event.text for event in events if event.kind == "refused"]
    assert len(texts) == 3
    assert "agent 3 was refused by agents 0, 1, 2, 4 (its parameters lie" in texts[0]
    assert texts[0].endswith("4 edges were read one way, by a weight of 0.8")
    page = write_report(tmp_path / "run").read_text()
    assert "agent 3 (3 rounds, 3 refused)" in page
    assert "4 edges were read one way" in page


@pytest.mark.usefixtures("liar")
def test_what_the_gate_holds_back_is_counted_and_shown(tmp_path: Path) -> None:
    told, summaries, _ = read(run(tmp_path / "run", "merge.gate.margin=0.05", "train.epochs=4"))
    shares = [told[agent, round].metrics["gate"] for agent in HONEST for round in (1, 2, 3)]
    assert max(shares) < 1.0, "a fifth of -10 x is no merge that anybody wants"
    for agent in HONEST:
        report = told[agent, 1]
        share = report.metrics["gate"]
        assert report.weights.get(LIAR, 0.0) == pytest.approx(share / 5)
        assert sum(report.weights.values()) == pytest.approx(1.0)
        assert report.metrics["accuracy"] >= report.metrics["accuracy_before"] - 0.1
    assert summaries[0].num_held_back >= len(HONEST)
    page = write_report(tmp_path / "run").read_text()
    assert "merges held back" in page and "3 of 3" in page
    assert "merges held back" not in write_report(run(tmp_path / "plain")).read_text()


def test_limits_that_nobody_meets_change_no_bit(tmp_path: Path) -> None:
    """Neither checks nor gate draw random numbers, round, or leave a mode behind."""
    limits = ["merge.checks.max_norm_ratio=1e6", "merge.checks.min_cosine=-1", "merge.gate.margin=1e6"]
    model = ["task.model={name: cnn, width: 0.1}", "rounds=2"]  # batch norms have statistics and modes to spoil
    assert bits(run(tmp_path / "plain", *model), 2) == bits(run(tmp_path / "watched", *model, *limits), 2)


@pytest.mark.usefixtures("liar")
def test_a_run_that_was_stopped_continues_to_the_same_bits(tmp_path: Path) -> None:
    """What was usual in earlier merges is part of a checkpoint."""
    settings = [*CHECKS, "merge.gate.margin=0.05", "merge.every=2", "rounds=6"]

    def stop(view: View) -> None:
        if view.newest is not None and view.newest.round == 3:
            raise Interrupted("enough")

    whole = run(tmp_path / "whole", *settings)
    config = load_config(None, [*SMALL, *settings])
    with pytest.raises(Interrupted):
        simulate(config, prepare(config, tmp_path / "halves"), stop)
    assert not (tmp_path / "halves" / "checkpoints" / "0" / "6.json").exists()
    run(tmp_path / "halves", *settings)
    assert bits(tmp_path / "halves", 6) == bits(whole, 6)
    told, _, _ = read(whole)
    assert list(told[0, 6].refused) == [LIAR]
    assert told[0, 6].missing == read(tmp_path / "halves")[0][0, 6].missing, "the same numbers in the reason"


def test_momentum_is_reset_only_where_a_merge_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.nn.Module] = []
    from dimat.agent import round as rounds

    honest = rounds.make_optimizer
    monkeypatch.setattr(rounds, "make_optimizer", lambda config, model: made.append(model) or honest(config, model))
    monkeypatch.setattr(rounds, "hold_back", lambda agent, mine, merged, weights, calibrate: (0.0, {agent.id: 1.0}))
    run(tmp_path / "held", "merge.optimizer_state=reset", "merge.gate.margin=0.1", "rounds=1")
    assert made == []
    run(tmp_path / "taken", "merge.optimizer_state=reset", "rounds=1")
    assert len(made) == 5
