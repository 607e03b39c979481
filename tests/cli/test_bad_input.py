"""What bad input gets: a clear error on stderr, exit code 2, nothing started and nothing half-written."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dimat.cli.app import main

Dimat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dimat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Dimat:
    """Type a command; returns exit code, stdout and stderr. The current folder is an empty one."""
    monkeypatch.chdir(tmp_path)

    def type_it(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dimat", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return type_it


def arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """A data file's content; None leaves an array out."""
    rng = np.random.default_rng(0)
    content: dict[str, np.ndarray | None] = {
        "x_train": rng.normal(size=(40, 6)).astype(np.float32),
        "y_train": np.arange(40) % 4,
        "x_test": rng.normal(size=(8, 6)).astype(np.float32),
        "y_test": np.arange(8) % 4,
    }
    return {name: array for name, array in (content | changes).items() if array is not None}


FILES: dict[str, str | dict[str, np.ndarray]] = {
    "apart.yaml": "edges: [[0, 1], [2, 3]]\n",
    "heavy.yaml": "edges: [[0, 1], [1, 2], [2, 3], [3, 0]]\nweights: [0.7, 0.7, 0.7, 0.7]\n",
    "four.yaml": "edges: [[0, 1], [1, 2], [2, 3]]\n",
    "nonsense.yaml": "generator: [ring\n",
    "wrong.graphml": "this is no XML",
    "unknown_key.yaml": "agnets: 5\n",
    "no_labels.npz": arrays(y_train=None),
    "shapes.npz": arrays(x_test=np.zeros((8, 5), np.float32)),
    "labels.npz": arrays(y_train=np.arange(40) - 1),
    "lengths.npz": arrays(y_train=np.arange(39) % 4),
    "nan.npz": arrays(x_train=np.full((40, 6), np.nan, np.float32)),
    "good.npz": arrays(),
    "half_task.py": "class Task:\n    def model(self): ...\n    def data(self, agent, num_agents, seed): ...\n"
    "    def los(self, model, batch): ...\n    def evaluate(self, model): ...\n    def probe(self): ...\n",
    "own_topology.py": "import networkx as nx\ndef apart(n, *, round=0, seed=0):\n    return nx.empty_graph(n)\n",
    "picklish.npz": {"x_train": np.array([{"a": 1}], dtype=object)},
}

TABLE = ["task.name=arrays", "task.model=mlp"]
CASES: dict[str, tuple[list[str], list[str]]] = {
    "unknown key in a file": (["unknown_key.yaml"], ["unknown key 'agnets'", "Did you mean 'agents'"]),
    "unknown key": (["-s", "trian.lr=1"], ["unknown key 'trian'", "Did you mean 'train'"]),
    "unknown value": (["-s", "merge.align=activation"], ["merge.align", "Did you mean 'activations'"]),
    "missing config": (["nowhere.yaml"], ["'nowhere.yaml' cannot be read"]),
    "one agent": (["-s", "agents=1"], ["agents", "greater than or equal to 2", "got 1"]),
    "unknown graph": (["-s", "topology.graph=rnig"], ["unknown topology 'rnig'", "Did you mean 'ring'"]),
    "unknown graph option": (["-s", "topology.graph=torus", "-s", "topology.options.row=2"], ["row", "rows"]),
    "impossible size": (["-s", "topology.graph=hypercube"], ["hypercube", "5", "4", "8"]),
    "disconnected": (["-s", "topology.graph=apart.yaml", "-s", "agents=4"], ["connected", "0", "2"]),
    "disconnected function": (["-s", "topology.graph=own_topology.py:apart"], ["connected"]),
    "rows do not sum to one": (
        ["-s", "topology.graph=heavy.yaml", "-s", "topology.mixing=edge_weights", "-s", "agents=4"],
        ["1.4"],
    ),
    "metropolis on a directed graph": (
        ["-s", "topology.graph=exponential", "-s", "topology.mixing=metropolis"],
        ["directed", "uniform"],
    ),
    "unreadable topology file": (["-s", "topology.graph=nonsense.yaml"], ["nonsense.yaml"]),
    "wrong topology file": (["-s", "topology.graph=wrong.graphml"], ["wrong.graphml"]),
    "missing topology file": (["-s", "topology.graph=nowhere.yaml"], ["nowhere.yaml"]),
    "topology of another size": (["-s", "topology.graph=four.yaml"], ["four.yaml", "4", "5"]),
    "no data file": (["-s", "task.name=arrays"], ["task.data"]),
    "missing data file": (["task.name=arrays", "task.data=nowhere.npz"], ["nowhere.npz"]),
    "data without an array": ([*TABLE, "task.data=no_labels.npz"], ["y_train", "x_train, y_test"]),
    "shapes that differ": ([*TABLE, "task.data=shapes.npz"], ["x_test", "5", "6"]),
    "negative labels": ([*TABLE, "task.data=labels.npz"], ["y_train", "-1"]),
    "lengths that differ": ([*TABLE, "task.data=lengths.npz"], ["40", "39"]),
    "NaN in the data": ([*TABLE, "task.data=nan.npz"], ["x_train", "NaN"]),
    "objects in the data": ([*TABLE, "task.data=picklish.npz"], ["x_train"]),
    "a file that is no data": ([*TABLE, "task.data=four.yaml"], ["four.yaml"]),
    "more agents than samples": (
        [*TABLE, "task.data=good.npz", "agents=41", "task.partition.scheme=iid"],
        ["41 agents", "40"],
    ),
    "a column that is not there": (
        [*TABLE, "task.data=good.npz", "task.partition.scheme=column", "task.partition.column=person"],
        ["person"],
    ),
    "a model that does not fit": (["task.name=arrays", "task.model=cnn", "task.data=good.npz"], ["cnn"]),
    "unknown model": (["task.model=cnnn"], ["cnnn", "Did you mean 'cnn'"]),
    "unknown model option": (["task.model.name=mlp", "task.model.hiden=[3]"], ["hiden", "hidden"]),
    "unknown task": (["task.name=digit"], ["unknown task 'digit'", "Did you mean 'digits'"]),
    "a task without a method": (["task.name=half_task.py:Task"], ["no method loss", "los"]),
    "unknown merge method": (["merge.method=maen"], ["unknown merge method 'maen'", "Did you mean 'mean'"]),
    "unknown merge option": (["merge.options.scale=2"], ["no option 'scale'"]),
    "no checkpoints to start from": (["init=nowhere"], ["nowhere", "0.safetensors"]),
}


@pytest.mark.parametrize("command", ["run", "simulate"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_before_anything_starts(dimat: Dimat, tmp_path: Path, case: str, command: str) -> None:
    for name, content in FILES.items():
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
        else:
            np.savez(tmp_path / name, **content)  # type: ignore[arg-type]
    before = sorted(tmp_path.rglob("*"))
    arguments, words = CASES[case]
    if arguments[0] != "-s" and "=" in arguments[0]:
        arguments = [part for setting in arguments for part in ("-s", setting)]
    code, out, err = dimat(command, *arguments, "--out", "run")
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in err, err
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


def test_a_port_in_use_is_named(dimat: Dimat, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = dimat("coordinator", "--port", str(port), "--out", str(tmp_path / "run"))
    assert (code, out) == (2, "")
    assert str(port) in err
    assert "in use" in err


def test_a_folder_of_another_config_is_refused_and_says_what_differs(dimat: Dimat, tmp_path: Path) -> None:
    from dimat.config import load_config
    from dimat.runfolder import prepare

    prepare(load_config(None, ["seed=4"]), tmp_path / "run")
    code, _, err = dimat("simulate", "--out", str(tmp_path / "run"))
    assert code == 2
    assert "seed is 4 there and 0 here" in err
    assert "--fresh" in err


def test_a_folder_with_other_things_is_left_alone(dimat: Dimat, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear to me")
    for flags in ([], ["--fresh"]):
        code, _, err = dimat("simulate", "--out", str(tmp_path / "mine"), *flags)
        assert code == 2
        assert "is not a run folder" in err
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "dear to me"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rnu"], "Did you mean 'run'"),
        (["run", "--otu", "x"], "--otu"),
        (["report", "nowhere"], "nowhere"),
        (["topology", "show", "rnig"], "Did you mean 'ring'"),
        (["methods", "maen"], "Did you mean 'mean'"),
        (["check", "task", "nowhere.py:Task"], "nowhere.py"),
        (["check", "config", "nowhere.yaml"], "nowhere.yaml"),
        (["agent", "--id", "9", "--coordinator", "127.0.0.1:1"], "--id 9 is not in the run, expected 0 to 4"),
        (["agent", "--id", "0"], "no coordinator was given"),
        (["agent"], "Neither --id nor torchrun's RANK"),
        (["coordinator", "--host", "0.0.0.0"], "--insecure"),
    ],
)
def test_other_commands_answer_as_clearly(dimat: Dimat, words: list[str], expected: str) -> None:
    code, out, err = dimat(*words)
    assert code == 2, out + err
    assert expected in out + err
    assert "Traceback" not in err


def test_a_world_of_another_size_is_refused(dimat: Dimat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    code, _, err = dimat("agent", "--coordinator", "127.0.0.1:1")
    assert code == 2
    assert "torchrun started 4 workers, the config has 5 agents" in err


def test_a_graph_that_falls_apart_later_is_refused_before_anything_starts(dimat: Dimat, tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(
        "import networkx as nx\ndef build(n, *, round=0, seed=0):\n"
        "    return nx.cycle_graph(n) if round < 9 else nx.empty_graph(n)\n"
    )
    code, _, err = dimat("simulate", "-s", "topology.graph=later.py:build", "--out", "run")
    assert code == 2
    assert "round 9" in err
    assert not (tmp_path / "run").exists()


def test_a_graph_that_is_drawn_anew_each_time_is_refused(dimat: Dimat, tmp_path: Path) -> None:
    (tmp_path / "unseeded.py").write_text(
        "import networkx as nx, random\ndef build(n, *, round=0, seed=0):\n"
        "    order = random.SystemRandom().sample(range(n), n)\n"
        "    return nx.relabel_nodes(nx.path_graph(n), dict(enumerate(order)))\n"
    )
    code, _, err = dimat("simulate", "-s", "topology.graph=unseeded.py:build", "-s", "agents=9", "--out", "run")
    assert code == 2
    assert "different graphs" in err or "another graph" in err or "seed" in err


def test_a_column_without_its_scheme_is_not_ignored(dimat: Dimat) -> None:
    code, _, err = dimat("simulate", "-s", "task.partition.column=person")
    assert code == 2
    assert "used by scheme 'column' only" in err


def test_square_floats_could_be_images_or_series(dimat: Dimat, tmp_path: Path) -> None:
    square = arrays(x_train=np.zeros((40, 6, 6), np.float32), x_test=np.zeros((8, 6, 6), np.float32))
    np.savez(tmp_path / "square.npz", **square)  # type: ignore[arg-type]
    code, _, err = dimat("simulate", "-s", "task.name=arrays", "-s", "task.data=square.npz")
    assert code == 2
    assert "task.options.kind=images" in err


def test_a_finished_run_says_so(dimat: Dimat, tmp_path: Path) -> None:
    small = ["-s", "task.model.name=mlp", "-s", "task.model.hidden=[8]", "-s", "train.epochs=1", "-s", "rounds=1"]
    first = dimat("simulate", *small, "-s", "stop.target_accuracy=0.99", "--out", "run")
    again = dimat("simulate", *small, "-s", "stop.target_accuracy=0.99", "--out", "run")
    assert (first[0], again[0]) == (3, 3)
    assert "the target accuracy 0.99 was not reached" in first[2]
    assert "finished: nothing is run" in again[2]
    assert "round 1/1" in first[2]
    assert "round 1/1" not in again[2]
