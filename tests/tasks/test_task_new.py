from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import yaml

from dimat.cli.new import new_task, next_commands
from dimat.config import load_config
from dimat.errors import TaskError
from dimat.tasks import load_task


def test_what_is_written_trains_as_it_is(tmp_path, monkeypatch) -> None:
    module, config = new_task("blobs", tmp_path)
    monkeypatch.chdir(tmp_path)
    run = load_config(config)
    assert (run.name, run.task.name) == ("blobs", f"{module.resolve()}:Task")
    task = load_task(run.task.name, batch_size=run.train.batch_size, options=run.task.options)
    torch.manual_seed(0)
    model, loader = task.model(), task.data(0, run.agents, run.seed)
    before = task.evaluate(model)["accuracy"]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        for batch in loader:
            optimiser.zero_grad()
            task.loss(model, batch).backward()
            optimiser.step()
    assert before < 0.3 < 0.8 < task.evaluate(model)["accuracy"]
    assert "my_task" not in module.read_text() + config.read_text()
    assert next_commands(module, config) == [f"dimat check task {module}:Task", f"dimat run {config}"]


def test_the_keys_of_the_config_are_those_of_a_run(tmp_path) -> None:
    _, config = new_task("blobs", tmp_path)
    assert {"name", "agents", "rounds", "task", "train", "topology", "merge"} <= set(yaml.safe_load(config.read_text()))


@pytest.mark.parametrize("existing", ["blobs.py", "blobs.yaml"])
def test_an_existing_file_is_kept_and_nothing_is_written_beside_it(tmp_path, existing) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(TaskError, match=f"{existing} exists already"):
        new_task("blobs", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "proposal"),
    [("my-task", "my_task"), ("blobs.py", "blobs"), ("1st", "my_task"), ("class", "my_task"), ("a/b", "a_b")],
)
def test_a_name_that_python_cannot_import_is_refused_with_one_that_it_can(tmp_path, name, proposal) -> None:
    with pytest.raises(TaskError, match="cannot name a Python module") as caught:
        new_task(name, tmp_path)
    assert str(caught.value.hint).endswith(f"dimat new {proposal}")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_refused(tmp_path) -> None:
    with pytest.raises(TaskError, match="cannot be written"):
        new_task("blobs", tmp_path / "absent")
    assert not list(tmp_path.iterdir())


def test_the_commands_load_without_torch() -> None:
    code = "import sys, dimat.cli.new, dimat.cli.check_task; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
