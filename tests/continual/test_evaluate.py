from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dimat.continual.evaluate import Evaluation, evaluate_ledger, match_tasks
from dimat.continual.evaluations import Judgement, pack, read_judgements, write_judgements
from dimat.continual.ledger import Ledger
from dimat.continual.tasklist import TaskEntry, read_tasks
from dimat.errors import ConfigError, PluginError, SchemaError, TaskError, UsageError
from dimat.modelfile import write_model

# Task i has ten samples, of which the first round(10 * bias[i]) are right; the bias of a model is what it was given.
TASKS = '''
import torch
from torch import nn

CALLS = []

class Counted:
    """How many of ten samples are right is what the i-th bias says; without `which`, evaluate alone tells."""
    def __init__(self, i=0, backwards=False):
        self.i, self.backwards = i, backwards
    def model(self):
        return nn.Linear(2, 3)
    def correct(self, model):
        CALLS.append(self.i)
        right = torch.arange(10) < round(10 * float(model.bias[self.i]))
        return right.flip(0) if self.backwards and float(model.bias[self.i]) < 0.75 else right

class Quiet:
    def __init__(self, i=0):
        self.i = i
    def model(self):
        return nn.Linear(2, 3)
    def evaluate(self, model):
        assert not model.training
        return {"accuracy": float(model.bias[self.i]), "loss": 0.0}

class Wide(Counted):
    def model(self):
        return nn.Linear(3, 3)

class Neither:
    def model(self):
        return nn.Linear(2, 3)

def answering(value):
    class Answer(Neither):
        def __init__(self, data=None): pass
        def correct(self, model): return value
    return Answer

Floats, Empty, Square = (answering(v) for v in (torch.ones(3), torch.ones(0, dtype=bool), torch.ones(2, 2, dtype=bool)))

class Percent(Neither):
    def evaluate(self, model): return {"accuracy": 93.0}

class Silent(Neither):
    def evaluate(self, model): return {"loss": 1.0}

class Failing(Neither):
    def evaluate(self, model): raise ValueError("no data here")
class Leaving(Neither):
    def evaluate(self, model): raise SystemExit(3)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def make(folder: Path, name: str, biases: list[float]) -> Path:
    state = {"weight": torch.zeros(3, 2), "bias": torch.tensor(biases)}
    write_model(folder / f"{name}.safetensors", state)
    return folder / f"{name}.safetensors"


def ledger_of(folder: Path, keep: int = 9) -> Ledger:
    """Of the mean, so that biases after each add are known: a alone; (a + b) / 2; (a + b + c) / 3."""
    make(folder, "base", [0.0, 0.0, 0.0])
    return Ledger.create(folder / "ledger", folder / "base.safetensors", "mean", keep=keep)


MODELS = {"a": [0.9, 0.1, 0.0], "b": [0.7, 0.9, 0.2], "c": [0.3, 0.5, 1.0]}
# A[k, i]: the mean of the first k + 1 models, on the tasks that are in; ten samples round it to tenths.
EXPECTED = [[0.9], [0.8, 0.5], [0.6, 0.5, 0.4]]


def tasks_file(folder: Path, text: str) -> tuple[TaskEntry, ...]:
    (folder / "tasks.yaml").write_text(text)
    return read_tasks(folder / "tasks.yaml")


def counted(folder: Path) -> tuple[TaskEntry, ...]:
    lines = [f"- {{name: 'tasks.py:Counted', options: {{i: {i}}}, label: {name}}}" for i, name in enumerate("ABC")]
    return tasks_file(folder, "\n".join(lines))


def add(ledger: Ledger, folder: Path, name: str) -> None:
    ledger.add(make(folder, name, MODELS[name]))


def accuracies(evaluation: Evaluation) -> list[list[float]]:
    return [[round(a, 6) for a in step.accuracies.values()] for step in evaluation.steps]


def test_each_version_is_judged_on_the_tasks_whose_models_are_in(folder: Path) -> None:
    ledger, tasks = ledger_of(folder), counted(folder)
    for name in MODELS:
        add(ledger, folder, name)
        evaluation = evaluate_ledger(ledger, tasks)
    assert accuracies(evaluation) == EXPECTED
    assert evaluation.accuracy == pytest.approx((0.6 + 0.5 + 0.4) / 3)
    assert evaluation.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.5 - 0.5)) / 2)
    assert evaluation.tasks == {"A": "a", "B": "b", "C": "c"}
    assert [step.model for step in evaluation.steps] == ["a", "b", "c"]
    assert not evaluation.notes
    # Samples are right from the first on, so what is lost in accuracy is what broke.
    assert evaluation.steps[1].flips == pytest.approx({"A": 0.1})
    assert evaluation.steps[2].flips == pytest.approx({"A": 0.2, "B": 0.0})


def test_flips_follow_samples_not_accuracies(folder: Path) -> None:
    ledger = ledger_of(folder)
    tasks = tasks_file(folder, "- {name: 'tasks.py:Counted', options: {i: 0, backwards: true}}")
    for biases in ([0.8, 0, 0], [0.4, 0, 0]):  # first eight right; then, of (.8 + .4) / 2, the last six
        ledger.add(make(folder, f"m{biases[0]}", biases))
        evaluation = evaluate_ledger(ledger, tasks)
    assert evaluation.steps[1].flips == pytest.approx({"tasks.py:Counted": 0.4})


def test_what_is_in_the_journal_is_not_measured_twice_unless_told(folder: Path) -> None:
    import sys

    ledger, tasks = ledger_of(folder), counted(folder)
    add(ledger, folder, "a")
    add(ledger, folder, "b")
    first = evaluate_ledger(ledger, tasks)
    calls = next(module.CALLS for name, module in sys.modules.items() if name.startswith("dimat_user_tasks")
                 and module.__file__ == str(folder / "tasks.py"))  # fmt: skip
    assert calls == [0, 1]
    rows = read_judgements(ledger.journal)
    assert evaluate_ledger(ledger, tasks) == first
    assert calls == [0, 1]
    assert read_judgements(ledger.journal) == rows
    evaluate_ledger(ledger, tasks, again=True)
    assert calls == [0, 1, 0, 1]
    assert read_judgements(ledger.journal).keys() == rows.keys()


def test_versions_whose_state_is_kept_can_be_judged_later(folder: Path) -> None:
    ledger, tasks = ledger_of(folder), counted(folder)
    for name in MODELS:
        add(ledger, folder, name)
    evaluation = evaluate_ledger(ledger, tasks)
    assert evaluation.backward_transfer is None
    assert any("no BWT" in note and "A at version 1, B at version 2 (" in note for note in evaluation.notes)
    assert evaluation.accuracy == pytest.approx(0.5)
    evaluation = evaluate_ledger(ledger, tasks, versions=[2, 1])
    assert accuracies(evaluation) == EXPECTED
    assert evaluation.backward_transfer == pytest.approx(-0.15)


def test_versions_that_are_gone_are_refused(folder: Path) -> None:
    ledger, tasks = ledger_of(folder, keep=0), counted(folder)
    with pytest.raises(UsageError, match="absorbed no model yet"):
        evaluate_ledger(ledger, tasks)
    for name in "ab":
        add(ledger, folder, name)
    with pytest.raises(UsageError, match="version 1 is not kept any more"):
        evaluate_ledger(ledger, tasks, versions=[1])
    for number in (0, 3):
        with pytest.raises(UsageError, match=rf"version {number} has no model in it.*Kept with models: 2"):
            evaluate_ledger(ledger, tasks, versions=[number])


def test_rows_of_a_version_that_was_undone_do_not_pass_for_those_of_the_next(folder: Path) -> None:
    ledger, tasks = ledger_of(folder), counted(folder)
    for name in "ab":
        add(ledger, folder, name)
        evaluate_ledger(ledger, tasks)
    ledger.undo()
    assert accuracies(evaluate_ledger(ledger, tasks)) == EXPECTED[:1]
    ledger.add(make(folder, "other", [0.1, 0.3, 0.0]))
    evaluation = evaluate_ledger(ledger, tasks)
    assert accuracies(evaluation) == [[0.9], [0.5, 0.2]]
    assert evaluation.tasks == {"A": "a", "B": "other"}
    assert evaluation.steps[-1].flips == pytest.approx({"A": 0.4})


def test_a_removed_model_takes_its_task_along(folder: Path) -> None:
    ledger, tasks = ledger_of(folder), counted(folder)
    for name in MODELS:
        add(ledger, folder, name)
        evaluate_ledger(ledger, tasks)
    ledger.remove("b", folder / "b.safetensors")
    evaluation = evaluate_ledger(ledger, tasks)
    assert evaluation.tasks == {"A": "a", "C": "c"}
    last = evaluation.steps[-1]
    assert (last.action, last.model) == ("remove", "b")
    assert last.accuracies == pytest.approx({"A": 0.6, "C": 0.5})
    assert evaluation.backward_transfer == pytest.approx(0.6 - 0.9)
    assert any("B is left out: model number 2 was removed" in note for note in evaluation.notes)


def test_tasks_without_correct_have_accuracies_and_say_what_they_lack(folder: Path) -> None:
    ledger = ledger_of(folder)
    tasks = tasks_file(folder, "tasks.py:Quiet  # the first bias\n")
    for name in "ab":
        add(ledger, folder, name)
        evaluation = evaluate_ledger(ledger, tasks)
    assert evaluation.accuracy == pytest.approx(0.8)
    assert not evaluation.steps[-1].flips
    assert any("no negative flips for want of correct(model): tasks.py:Quiet" in note for note in evaluation.notes)
    assert evaluation.backward_transfer is None
    assert any("no BWT for, models that no task belongs to: b" in note for note in evaluation.notes)
    assert read_judgements(ledger.journal)[2, "tasks.py:Quiet"].num_samples is None


def test_tasks_are_matched_by_name_or_place(folder: Path) -> None:
    ledger = ledger_of(folder)
    for name in "ab":
        add(ledger, folder, name)
    entries = ledger.entries()
    named = (TaskEntry("x", "second", after="b"), TaskEntry("y", "typo", after="aa"), TaskEntry("z", "late"))
    found, notes = match_tasks(named, entries)
    assert {label: entry.name for label, entry in found.items()} == {"second": "b"}
    assert notes == [
        "typo is left out: its model 'aa' is not in (did you mean 'a'?)",
        "late is left out: model number 3 is not in yet",
    ]
    with pytest.raises(UsageError, match="'one' and 'two' both belong to the model 'a'"):
        match_tasks((TaskEntry("x", "one"), TaskEntry("y", "two", after="a")), entries)
    tasks = tasks_file(folder, "- {name: 'tasks.py:Counted', after: nobody}")
    with pytest.raises(UsageError, match=r"none of the 1 tasks has its model in it: .*'nobody' is not in"):
        evaluate_ledger(ledger, tasks)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("Wide", SchemaError, r"tensor 'weight' has shape \(3, 2\) in .*, and \(3, 3\) in the model of task"),
        ("Neither", TaskError, r"has neither correct\(model\).* nor evaluate\(model\)"),
        ("Floats", TaskError, r"correct\(model\) returned float32 of shape \(3,\), expected one bool"),
        ("Empty", TaskError, r"returned bool of shape \(0,\)"),
        ("Square", TaskError, r"returned bool of shape \(2, 2\)"),
        ("Percent", TaskError, "its accuracy is 93.0, expected a share from 0 to 1"),
        ("Silent", TaskError, r"evaluate\(model\) returned the keys loss, expected a mapping with accuracy"),
        ("Failing", TaskError, "fails on version 1: ValueError: no data here"),
        ("Leaving", TaskError, "fails on version 1: SystemExit: 3"),
        ("Missing", PluginError, "has no task of that name"),
    ],
)
def test_tasks_that_do_not_answer_as_they_should(folder: Path, name: str, kind: type[Exception], words: str) -> None:
    ledger = ledger_of(folder)
    add(ledger, folder, "a")
    with pytest.raises(kind, match=words):
        evaluate_ledger(ledger, tasks_file(folder, f"tasks.py:{name}"))
    assert not read_judgements(ledger.journal)


def test_built_in_tasks_judge_a_module_of_their_own(folder: Path) -> None:
    from dimat.tasks import load_task

    task = load_task("digits", model={"name": "mlp", "hidden": [8]})
    torch.manual_seed(0)
    base, model = task.model(), task.model()
    write_model(folder / "base.safetensors", base.state_dict())
    write_model(folder / "m.safetensors", model.state_dict())
    ledger = Ledger.create(folder / "ledger", folder / "base.safetensors", "mean")
    ledger.add(folder / "m.safetensors")
    tasks = tasks_file(folder, "- {name: digits, model: {name: mlp, hidden: [8]}}")
    before = torch.random.get_rng_state()
    evaluation = evaluate_ledger(ledger, tasks)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert evaluation.accuracy == pytest.approx(task.evaluate(model)["accuracy"])
    row = read_judgements(ledger.journal)[1, "digits"]
    assert row.right is not None and row.num_samples == len(row.right) == 359
    assert row.accuracy == pytest.approx(row.right.mean())


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_samples_come_back_from_the_journal_as_they_were(folder: Path, count: int) -> None:
    ledger = ledger_of(folder)
    right = np.random.default_rng(count).random(count) < 0.5
    row = Judgement(3, "t", 0.5, count, pack(right), "now")
    write_judgements(ledger.journal, [row])
    found = read_judgements(ledger.journal)[3, "t"]
    assert found == row
    assert found.right is not None and np.array_equal(found.right, right)


def test_a_row_is_replaced_only_when_told(folder: Path) -> None:
    ledger = ledger_of(folder)
    for accuracy, again, expected in ((0.1, False, 0.1), (0.2, False, 0.1), (0.3, True, 0.3)):
        write_judgements(ledger.journal, [Judgement(1, "t", accuracy, None, None, "")], again=again)
        assert read_judgements(ledger.journal)[1, "t"].accuracy == expected


def test_lists_of_tasks(folder: Path) -> None:
    (folder / "x.npz").write_bytes(b"")
    entries = tasks_file(
        folder,
        "tasks:\n- digits\n- {name: arrays, data: x.npz, model: mlp, label: mine, after: m}\n- tasks.py:Counted\n",
    )
    assert entries[0] == TaskEntry("digits", "digits")
    assert entries[1] == TaskEntry("arrays", "mine", "m", {"data": str(folder / "x.npz"), "model": "mlp"})
    assert entries[2].name == f"{folder / 'tasks.py'}:Counted" and entries[2].label == "tasks.py:Counted"
    plain = tasks_file(folder, "# one a line\n\ndigits\ntasks.py:Counted # turned\n")
    assert [(one.name, one.label) for one in plain] == [(one.name, one.label) for one in (entries[0], entries[2])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("a: [", "neither YAML nor a plain list"),
        ("a: 1", "holds a dict, expected a list"),
        ("- 3", "task 1 is 3, expected a name, or keys and values"),
        ("- {label: x}", "task 1 has no name"),
        ("- {name: digits, lable: x}", "unknown key 'lable'. Did you mean 'label'"),
        ("- {name: digits, options: 3}", "options is 3, expected a mapping"),
        ("- digits\n- digits", "two tasks have the label 'digits'"),
        ("- {name: digits, after: m}\n- {name: arrays, after: m}", "two tasks have the after 'm'"),
    ],
)
def test_lists_that_cannot_be_read(folder: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tasks_file(folder, text)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_tasks(folder / "none.yaml")


def command(arguments: list[str]) -> tuple[int, Any]:
    from typer.testing import CliRunner

    from dimat.cli.app import app

    result = CliRunner().invoke(app, ["continual", "evaluate", *arguments])
    return result.exit_code, result


def told(folder: Path, *more: str) -> Mapping[str, Any]:
    import json

    code, result = command([str(folder / "ledger"), "--tasks", str(folder / "tasks.yaml"), "--format", "json", *more])
    assert code == 0, result.output
    answer: Mapping[str, Any] = json.loads(result.stdout)
    return answer


def test_the_command_answers_in_json_and_draws(folder: Path) -> None:
    ledger = ledger_of(folder)
    counted(folder)
    for name in MODELS:
        add(ledger, folder, name)
    told(folder, "--version", "1", "--version", "2")
    answer = told(folder, "--picture", str(folder / "out.png"))
    assert answer["accuracy"] == pytest.approx(0.5)
    assert answer["backward_transfer"] == pytest.approx(-0.15)
    assert answer["tasks"] == [{"task": "A", "model": "a"}, {"task": "B", "model": "b"}, {"task": "C", "model": "c"}]
    assert [list(step["accuracies"].values()) for step in answer["history"]] == EXPECTED
    assert answer["history"][2]["negative_flips"] == {"A": pytest.approx(0.2), "B": 0}
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_a_table(folder: Path) -> None:
    ledger = ledger_of(folder)
    counted(folder)
    for name in "ab":
        add(ledger, folder, name)
        code, result = command([str(folder / "ledger"), "--tasks", str(folder / "tasks.yaml")])
        assert code == 0, result.output
    for words in ("1: +a", "2: +b", "0.900", "0.800", "ACC", "0.650", "BWT", "-0.100", "10.0%"):
        assert words in result.stdout, result.stdout


def test_add_evaluates_what_it_made_so_that_bwt_is_known(folder: Path) -> None:
    import json

    from typer.testing import CliRunner

    from dimat.cli.app import app

    ledger = ledger_of(folder, keep=0)
    counted(folder)
    for name in MODELS:
        model = str(make(folder, name, MODELS[name]))
        words = [
            "continual",
            "add",
            str(ledger.path),
            model,
            "--evaluate",
            str(folder / "tasks.yaml"),
            "--format",
            "json",
        ]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    evaluation = json.loads(result.stdout)["evaluation"]
    assert evaluation["backward_transfer"] == pytest.approx(-0.15)
    (folder / "tasks.yaml").write_text("- {name: digits, lable: x}")
    with pytest.raises(ConfigError, match="lable"):
        CliRunner().invoke(
            app, [*words[:3], str(make(folder, "d", [1.0, 1.0, 1.0])), *words[4:]], catch_exceptions=False
        )
    assert len(ledger.entries()) == 3  # a list that cannot be read is told before anything is absorbed
