"""A neighbour that sends nonsense, or nothing: dropped for this round, counted, shown; the run goes on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dimat.agent.state import Agent
from dimat.config import load_config
from dimat.coordinator import Store
from dimat.messages import Header, Payload, Report
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.snapshot.encode import encode

SETTINGS = [
    "task.model.name=mlp",
    "task.model.hidden=[16]",
    "train.epochs=1",
    "train.batch_size=64",
    "rounds=4",
    "agents=4",
]
CULPRIT, ROUND = 1, 2

Fault = Callable[[Agent, Payload], Payload | None]


def nan(agent: Agent, payload: Payload) -> Payload:
    state = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    state["fc1.weight"][3, 5] = torch.nan
    return encode(state, payload.header)


def infinity(agent: Agent, payload: Payload) -> Payload:
    state = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    state["head.bias"][0] = -torch.inf
    return encode(state, payload.header)


def wrong_digest(agent: Agent, payload: Payload) -> Payload:
    first = dataclasses.replace(payload.tensors[0], checksum=b"\x00" * 16)
    return Payload(payload.header, (first, *payload.tensors[1:]))


def truncated(agent: Agent, payload: Payload) -> Payload:
    last = payload.tensors[-1]
    return Payload(payload.header, (*payload.tensors[:-1], dataclasses.replace(last, data=last.data[:-4])))


def another_shape(agent: Agent, payload: Payload) -> Payload:
    state = dict(agent.model.state_dict())
    state["fc1.weight"] = torch.zeros(16, 63)
    return encode(state, payload.header)


def nothing(agent: Agent, payload: Payload) -> None:
    return None


FAULTS: dict[str, tuple[Fault, str]] = {
    "nan": (nan, "NaN or Inf in tensor 'fc1.weight'"),
    "infinity": (infinity, "NaN or Inf in tensor 'head.bias'"),
    "wrong digest": (wrong_digest, "digest"),
    "truncated": (truncated, ""),
    "another shape": (another_shape, "[16, 63]"),
    "nothing": (nothing, "had not published round 2"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_dropped_for_this_round_counted_and_the_run_goes_on(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, words = FAULTS[name]
    honest = Agent.publish

    def publish(self: Agent, kind: str, round: int) -> Payload:
        if (self.id, kind, round) != (CULPRIT, "snapshot", ROUND):
            return honest(self, kind, round)
        payload = encode(self.model.state_dict(), Header(kind, round, self.id))
        bad = fault(self, payload)
        if bad is not None:
            self.transport.publish(bad)
        return payload

    monkeypatch.setattr(Agent, "publish", publish)
    config = load_config(None, SETTINGS)
    folder = prepare(config, tmp_path / "run")
    simulate(config, folder)

    with Store.open(folder, read_only=True) as store:
        told: dict[tuple[int, int], Report] = {(r.agent, r.round): r for r in store.reports()}
        summaries = {summary.round: summary for summary in store.summaries()}
    assert len(told) == 16, "everybody came to the end"
    for neighbour in (0, 2):
        report = told[neighbour, ROUND]
        assert words in report.missing[CULPRIT]
        assert report.weights == pytest.approx({neighbour: 2 / 3, 3: 1 / 3})
        assert CULPRIT not in report.bytes_received
    assert summaries[ROUND].num_missing >= 2
    assert CULPRIT not in told[3, ROUND].missing, "who does not read it does not miss it"
    for agent in range(4):
        assert not told[agent, ROUND + 1].missing, "the next round is whole again"
    assert all(torch.isfinite(torch.tensor(report.metrics["accuracy"])) for report in told.values())


def test_both_ends_drop_an_edge_that_one_end_could_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the matrix that was really used stays doubly stochastic."""
    honest = Agent.publish

    def publish(self: Agent, kind: str, round: int) -> Payload:
        payload = honest(self, kind, round) if (self.id, kind, round) != (CULPRIT, "snapshot", ROUND) else None
        if payload is None:
            payload = encode(self.model.state_dict(), Header(kind, round, self.id))
            self.transport.publish(nan(self, payload))
        return payload

    monkeypatch.setattr(Agent, "publish", publish)
    config = load_config(None, SETTINGS)
    folder = prepare(config, tmp_path / "run")
    simulate(config, folder)
    with Store.open(folder, read_only=True) as store:
        rows = {r.agent: r.weights for r in store.reports(sketches=False) if r.round == ROUND}
    for agent in range(4):
        assert sum(rows[other].get(agent, 0.0) for other in range(4)) == pytest.approx(1.0), "columns sum to one too"
    assert rows[CULPRIT] == {CULPRIT: 1.0}
