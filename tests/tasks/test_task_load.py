from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from dimat.errors import PluginError, TaskError
from dimat.tasks import Task, load_task, preflight, probe_batches
from dimat.tasks.base import batch_size, label_histogram, missing_methods, model_inputs


class Minimal:
    """The least that is a task."""

    def model(self):
        return nn.Linear(2, 2)

    def data(self, agent, num_agents, seed):
        self.own = torch.full((3, 2), float(agent))
        return [(self.own, torch.zeros(3, dtype=torch.long))]

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model):
        return {"accuracy": 0.5, "loss": 1.0}

    def probe(self):
        return [self.own]


class Optioned(Minimal):
    def __init__(self, batch_size, data="default.npz", *, depth=1, colour="red"):
        self.arguments = (batch_size, data, depth, colour)


class Open(Minimal):
    def __init__(self, **given):
        self.given = given


class Needy(Minimal):
    def __init__(self, height):
        self.height = height


class Failing(Minimal):
    def __init__(self):
        raise ValueError("the dog ate it")


class Asked(Minimal):
    @property
    def num_samples(self):
        raise TaskError("call data first")


class NoProbe:
    model = data = loss = evaluate = lambda self: None

    def prob(self):
        return None


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch):
    module = ModuleType("own_tasks")
    for value in (Minimal, Optioned, Open, Needy, Failing, NoProbe, Asked):
        setattr(module, value.__name__, value)
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_tasks", module)


def test_a_class_without_arguments_is_a_task() -> None:
    task = load_task("own_tasks:Minimal", model="resnet20", partition="classes", batch_size=8)
    assert isinstance(task, Task)
    assert isinstance(load_task("own_tasks:Asked"), Asked)


def test_a_class_gets_what_it_names_and_keeps_its_defaults() -> None:
    assert load_task("own_tasks:Optioned", batch_size=8).arguments == (8, "default.npz", 1, "red")
    task = load_task("own_tasks:Optioned", data="mine.npz", batch_size=8, options={"depth": 3})
    assert task.arguments == (8, "mine.npz", 3, "red")
    task = load_task("own_tasks:Open", model="m", partition="p", batch_size=8, options={"anything": 1})
    assert task.given == {"model": "m", "partition": "p", "batch_size": 8, "anything": 1}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("digts", {}, "Did you mean 'digits'"),
        ("own_tasks:Minima", {}, "Did you mean 'Minimal'"),
        ("own_tasks:Optioned", {"options": {"dept": 1}}, "Did you mean 'depth'.*Available: colour, depth"),
        ("own_tasks:Minimal", {"options": {"depth": 1}}, "unknown option 'depth'. It has none"),
        ("own_tasks:Minimal", {"data": "x.npz"}, "reads no file"),
        ("digits", {"data": "x.npz"}, "task digits reads no file"),
        ("own_tasks:Optioned", {"options": {"batch_size": 4}}, "given twice"),
        ("own_tasks:Needy", {}, "needs height"),
        ("own_tasks:Failing", {}, "ValueError: the dog ate it"),
        ("own_tasks:number", {}, "is a int, expected a class"),
        (
            "own_tasks:NoProbe",
            {},
            r"no method probe \(is 'prob' meant to be it\?\).*it has: data, evaluate, loss, model, prob",
        ),
        ("digits", {"batch_size": 0}, "batch_size is a whole number"),
        ("digits", {"model": "cn"}, "Did you mean 'cnn'"),
        ("digits", {"partition": "idd"}, "Did you mean 'iid'"),
    ],
)
def test_what_cannot_be_made_says_why(name, arguments, message) -> None:
    with pytest.raises((TaskError, PluginError), match=message):
        load_task(name, **arguments).data(0, 5, 0)


def test_a_file_beside_the_user_is_found(tmp_path, monkeypatch) -> None:
    (tmp_path / "beside.py").write_text("from tests_own_base import Minimal\nclass Mine(Minimal): pass\n")
    base = ModuleType("tests_own_base")
    base.Minimal = Minimal
    monkeypatch.setitem(sys.modules, "tests_own_base", base)
    monkeypatch.chdir(tmp_path)
    assert type(load_task("beside.py:Mine")).__name__ == "Mine"
    with pytest.raises(PluginError, match="does not exist"):
        load_task("besides.py:Mine")


def test_an_entry_point_names_a_task(monkeypatch) -> None:
    from importlib import metadata

    entry = metadata.EntryPoint(name="mine", value="own_tasks:Minimal", group="dimat.tasks")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == "dimat.tasks" else [])
    assert isinstance(load_task("mine"), Minimal)


def test_helpers_read_what_tasks_return() -> None:
    task = Minimal()
    task.data(3, 5, 0)
    [(x,)] = probe_batches(task)
    assert torch.equal(x, torch.full((3, 2), 3.0))
    assert label_histogram(task) is None
    assert missing_methods(task) == []
    assert model_inputs((1, 2)) == (1, 2)
    assert batch_size(([torch.zeros(4, 2)], 7)) == 4
    with pytest.raises(TaskError, match="no method shared_probe"):
        probe_batches(task, "shared")
    with pytest.raises(TaskError, match="Did you mean 'local'"):
        probe_batches(task, "locl")
    for size, message in ((513, "returned 513 samples, expected at most 512"), (None, "returned no batch")):
        task.probe = lambda size=size: [torch.zeros(size, 2)] if size else []
        with pytest.raises(TaskError, match=message):
            probe_batches(task)


def test_preflight_tells_every_agents_histogram_and_leaves_the_seed_alone() -> None:
    state = torch.get_rng_state()
    histograms = preflight(load_task("digits", partition="classes"), 5, seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert [[label for label, count in h.items() if count] for h in histograms] == [
        [str(agent), str(agent + 5)] for agent in range(5)
    ]
    with pytest.raises(TaskError, match=r"2000 agents share 14\d\d training samples"):
        preflight(load_task("digits"), 2000, seed=0)
    assert preflight(Minimal(), 2, seed=0) == [None, None]
