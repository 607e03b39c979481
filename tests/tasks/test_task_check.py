from __future__ import annotations

import re
import sys
from itertools import count
from types import ModuleType

import pytest
import torch
from torch import nn

from dimat.cli import check_task as command
from dimat.errors import PluginError, TaskError
from dimat.tasks import TensorLoader, check_task
from dimat.tasks.check import problems


class Good:
    """A task without fault; each class below has one."""

    def model(self):
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))

    def data(self, agent, num_agents, seed):
        own = torch.Generator().manual_seed(100 * seed + agent)
        self.x = torch.randn(60, 4, generator=own)
        return TensorLoader(self.x, (self.x[:, 0] > 0).long(), 8, own)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model):
        model.eval()
        with torch.no_grad():
            return {"accuracy": 0.5, "loss": float(model(torch.ones(3, 4)).sum())}

    def probe(self):
        return [self.x[:30], self.x[30:]]


_TICK = count()


class NoEvaluate:
    model, data, loss, probe = Good.model, Good.data, Good.loss, Good.probe


class ShortSignature(Good):
    def data(self, agent, seed):
        return super().data(agent, 1, seed)


class SeededModel(Good):
    def model(self):
        torch.manual_seed(0)
        return super().model()


class WanderingModel(Good):
    def model(self):
        torch.manual_seed(next(_TICK))
        return super().model()


class OneModel(Good):
    def __init__(self):
        self.only = super().model()

    def model(self):
        return self.only


class NoModule(Good):
    def model(self):
        return "resnet"


class EmptyModel(Good):
    def model(self):
        return nn.Flatten()


class Iterator(Good):
    def data(self, *arguments):
        return iter(super().data(*arguments))


class Once(Good):
    def data(self, *arguments):
        batches = list(super().data(*arguments))

        class Draining:
            def __iter__(self):
                while batches:
                    yield batches.pop()

        return Draining()


class Unseeded(Good):
    def data(self, agent, num_agents, seed):
        return super().data(agent, num_agents, next(_TICK))


class Raising(Good):
    def data(self, *arguments):
        raise KeyError("subject_train")


class FixedOrder(Good):
    def data(self, *arguments):
        return list(super().data(*arguments))


class NoGenerator(Good):
    def data(self, *arguments):
        loader = super().data(*arguments)

        class Shuffling:
            def __iter__(self):
                return iter(loader)

        return Shuffling()


class EqualShards(Good):
    def data(self, agent, num_agents, seed):
        return super().data(0, num_agents, seed)


class LastEmpty(Good):
    def data(self, agent, num_agents, seed):
        loader = super().data(agent, num_agents, seed)
        return loader if agent < num_agents - 1 else []


class Overlapping(Good):
    def data(self, agent, num_agents, seed):
        loader = super().data(agent, num_agents, seed)
        loader.x[:30] = torch.arange(30.0)[:, None]
        return loader


class VectorLoss(Good):
    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


class FloatLoss(Good):
    def loss(self, model, batch):
        return super().loss(model, batch).item()


class DetachedLoss(Good):
    def loss(self, model, batch):
        return super().loss(model, batch).detach()


class NanLoss(Good):
    def loss(self, model, batch):
        return super().loss(model, batch) * float("nan")


class IdleParameter(Good):
    def model(self):
        model = super().model()
        model.register_parameter("idle", nn.Parameter(torch.zeros(2)))
        return model


class NoAccuracy(Good):
    def evaluate(self, model):
        return {"acuracy": 0.5, "loss": 1.0}


class NanEvaluation(Good):
    def evaluate(self, model):
        return {"accuracy": 0.5, "loss": float("nan")}


class TensorEvaluation(Good):
    def evaluate(self, model):
        return {"accuracy": torch.tensor(0.5), "loss": 1.0}


class Percent(Good):
    def evaluate(self, model):
        return {"accuracy": 50.0, "loss": 1.0}


class NumberEvaluation(Good):
    def evaluate(self, model):
        return 0.5


class EvaluatesInTraining(Good):
    def evaluate(self, model):
        model.train()(torch.randn(5, 4))
        return {"accuracy": 0.5, "loss": 1.0}


class RandomEvaluation(Good):
    def evaluate(self, model):
        return {"accuracy": 0.5, "loss": float(next(_TICK))}


class LargeProbe(Good):
    def probe(self):
        return [self.x.repeat(10, 1)]


class EmptyProbe(Good):
    def probe(self):
        return []


class RandomProbe(Good):
    def probe(self):
        return [self.x[torch.randperm(60)[:20]]]


class ChangingProbe(Good):
    def probe(self):
        return [self.x[:20] + next(_TICK)]


class ForeignProbe(Good):
    def probe(self):
        return [torch.zeros(4, 4)]


class LabelledProbe(Good):
    def probe(self):
        return [(self.x[:20], torch.zeros(20))]


class EmptyLabels(Good):
    def labels(self):
        return {"0": 0}


@pytest.fixture(autouse=True)
def faulty(monkeypatch):
    module = ModuleType("faulty_tasks")
    for name, value in globals().items():
        if isinstance(value, type):
            setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "faulty_tasks", module)


FAULTS = [
    (NoEvaluate, "methods", "problem", "no method evaluate"),
    (ShortSignature, "methods", "problem", r"data\(agent, seed\) cannot be called as data\(agent, num_agents, seed\)"),
    (SeededModel, "model", "problem", "two global seeds give the same initial weights"),
    (WanderingModel, "model", "problem", "same global seed gives different initial weights"),
    (OneModel, "model", "problem", "same module each time"),
    (NoModule, "model", "problem", "returned a str"),
    (EmptyModel, "model", "problem", "no parameters"),
    (Iterator, "data", "problem", "used up after one epoch"),
    (Once, "data", "problem", "second epoch of agent 0 has no batch"),
    (Unseeded, "data", "problem", "same agent and seed give different batches"),
    (Raising, "data", "problem", "KeyError: 'subject_train'"),
    (FixedOrder, "data", "warning", "same batches in the same order"),
    (NoGenerator, "data", "warning", "no attribute `generator`"),
    (EqualShards, "shards", "warning", "agents 0 and 1 have the same samples"),
    (LastEmpty, "shards", "problem", "agent 4 has no batch"),
    (Overlapping, "shards", "warning", "share 50% of their samples"),
    (VectorLoss, "loss", "problem", r"shape \(8,\)"),
    (FloatLoss, "loss", "problem", "a float"),
    (DetachedLoss, "loss", "problem", "no gradient"),
    (NanLoss, "loss", "problem", "nan"),
    (IdleParameter, "loss", "warning", "no gradient reaches idle"),
    (NoAccuracy, "evaluate", "problem", "no accuracy, only acuracy, loss"),
    (NanEvaluation, "evaluate", "problem", "loss is nan"),
    (TensorEvaluation, "evaluate", "problem", "accuracy is tensor"),
    (Percent, "evaluate", "problem", "accuracy is 50"),
    (NumberEvaluation, "evaluate", "problem", "returned a float"),
    (EvaluatesInTraining, "evaluate", "problem", "changes the model"),
    (RandomEvaluation, "evaluate", "problem", "evaluated differently"),
    (LargeProbe, "probe", "problem", "600 samples, expected at most 512"),
    (EmptyProbe, "probe", "problem", "no samples"),
    (RandomProbe, "probe", "problem", "draws random numbers"),
    (ChangingProbe, "probe", "problem", "differs from call to call"),
    (ForeignProbe, "probe", "warning", "100% of the probe's samples"),
    (LabelledProbe, "probe", "problem", "does not take the probe's batches"),
    (EmptyLabels, "labels", "problem", "returned {'0': 0}"),
]


@pytest.mark.parametrize(("task", "check", "status", "message"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_one_fault_is_told_once_with_its_cure(task, check, status, message) -> None:
    findings = check_task(f"faulty_tasks:{task.__name__}")
    [fault] = [finding for finding in findings if finding.status != "ok"]
    assert (fault.check, fault.status) == (check, status)
    assert fault.cure
    assert re.search(message, fault.message)
    assert command.exit_code(findings) == (2 if status == "problem" else 0)


def test_a_task_without_fault_passes_and_leaves_the_seed_alone() -> None:
    state = torch.get_rng_state()
    findings = check_task("faulty_tasks:Good")
    assert {finding.check for finding in findings} == {
        "methods",
        "model",
        "data",
        "shards",
        "loss",
        "evaluate",
        "probe",
    }
    assert {finding.status for finding in findings} == {"ok"}
    assert torch.equal(state, torch.get_rng_state())


def test_where_the_authors_code_raised_is_told() -> None:
    [fault] = problems(check_task("faulty_tasks:Raising"))
    assert "test_task_check.py:" in fault.cure
    assert "in data" in fault.cure


def test_the_report_of_the_command() -> None:
    findings = command.check("faulty_tasks:DetachedLoss")
    text = command.as_text("faulty_tasks:DetachedLoss", findings)
    assert "PROBLEM  loss" in text
    assert "no .item(), .detach() or no_grad" in text
    assert text.endswith("cannot run yet: 6 ok, 0 warnings, 1 problems")
    document = command.as_json("faulty_tasks:DetachedLoss", findings)
    assert document["ok"] is False
    assert [f["check"] for f in document["findings"] if f["status"] == "problem"] == ["loss"]


def test_a_file_is_enough_when_one_class_in_it_looks_like_a_task(tmp_path, monkeypatch) -> None:
    base = ModuleType("tests_good_base")
    base.Good = Good
    monkeypatch.setitem(sys.modules, "tests_good_base", base)
    one, two, none = tmp_path / "one.py", tmp_path / "two.py", tmp_path / "none.py"
    one.write_text("from tests_good_base import Good\nclass Helper: pass\nclass Mine(Good): pass\n")
    two.write_text("from tests_good_base import Good\nclass A(Good): pass\nclass B(Good): pass\n")
    none.write_text("class Helper: pass\n")
    assert not problems(check_task(str(one)))
    with pytest.raises(TaskError, match="several: A, B"):
        check_task(str(two))
    with pytest.raises(TaskError, match="none of Helper"):
        check_task(str(none))
    with pytest.raises(PluginError, match="does not exist"):
        check_task(str(tmp_path / "absent.py"))
