"""Nothing that dimat is given is ever unpickled: not as a model, data, a checkpoint, a graph, a config or a ledger.

The gadget leaves a mark when anything unpickles it; the positive control shows that it does.
"""

from __future__ import annotations

import ast
import io
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dimat.cli.app import main
from dimat.continual import Ledger
from dimat.errors import DimatError
from dimat.modelfile import write_model

sys.path.insert(0, str(Path(__file__).parents[1]))

from gadget import ARRAYS, forms

ROOT = Path(__file__).parents[2]
NETS = """
import torch
def build():
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
"""

READERS: dict[str, Callable[[bytes], object]] = {
    "pickle, protocol 0": pickle.loads,
    "pickle, protocol 2": pickle.loads,
    "pickle, protocol 5": pickle.loads,
    "torch.save": lambda raw: torch.load(io.BytesIO(raw), weights_only=False),
    "torch.save, before zip": lambda raw: torch.load(io.BytesIO(raw), weights_only=False),
    "npy of objects": lambda raw: np.load(io.BytesIO(raw), allow_pickle=True),
    "npz of objects": lambda raw: np.load(io.BytesIO(raw), allow_pickle=True)["x_train"],
    "yaml": yaml.unsafe_load,
}


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """Where a gadget that was unpickled shows."""
    yield tmp_path / "unpickled"
    assert not (tmp_path / "unpickled").exists(), "a gadget was unpickled"


@pytest.mark.parametrize("form", READERS)
def test_the_gadget_works(tmp_path: Path, form: str) -> None:
    """The positive control: whoever unpickles it leaves the mark, in every form."""
    mark = tmp_path / "unpickled"
    raw = forms(mark)[form]
    assert set(forms(mark)) == set(READERS)
    assert not mark.exists(), "making it is harmless"
    READERS[form](raw)
    assert mark.is_dir()


# ------------------------------------------------------------------------------------------------------- file arguments

A, B, G = "a.safetensors", "b.safetensors", "g.safetensors"
MODEL = ("--model", "nets.py:build")
OUT = ("--out", "out.safetensors")
RUN = ("--out", "run")
TABLE = ("-s", "task.name=arrays", "-s", "task.model=mlp", "-s", "task.data=g.npz")
TWO = ("-s", "agents=2", "-s", "topology.graph=path")
CASES: dict[str, tuple[str, list[str]]] = {
    "merge MODEL": (G, ["merge", "mean", A, G, *OUT]),
    "merge MODEL .bin": ("g.bin", ["merge", "mean", A, "g.bin", *OUT]),
    "merge MODEL folder": ("hf/model.safetensors", ["merge", "mean", "hf", "hf", "--out", "o"]),
    "merge --base": (
        G,
        ["merge", "ties", A, B, "--base", G, *OUT],
    ),
    "merge --stats": (
        G,
        [
            "merge",
            "fisher",
            A,
            B,
            "--stats",
            G,
            "--stats",
            G,
            *OUT,
        ],
    ),
    "merge --recipe": ("g.yaml", ["merge", "--recipe", "g.yaml", *OUT]),
    "align A": (G, ["align", G, B, *MODEL, "--input", "2x4", *OUT]),
    "align B": (G, ["align", A, G, *MODEL, "--input", "2x4", *OUT]),
    "align --data .npz": (
        "g.npz",
        ["align", A, B, *MODEL, "--by", "activations", "--data", "g.npz", *OUT],
    ),
    "align --data .safetensors": (
        G,
        ["align", A, B, *MODEL, "--by", "activations", "--data", G, *OUT],
    ),
    "align --spec": ("g.json", ["align", A, B, *MODEL, "--spec", "g.json", *OUT]),
    "continual init --base": (
        G,
        ["continual", "init", "new", "--base", G, "--method", "mean"],
    ),
    "continual add MODEL": (G, ["continual", "add", "ledger", G]),
    "continual evaluate --tasks": ("g.yaml", ["continual", "evaluate", "ledger", "--tasks", "g.yaml"]),
    "run CONFIG": ("g.yaml", ["simulate", "g.yaml", *RUN]),
    "check config": ("g.yaml", ["check", "config", "g.yaml"]),
    "init folder": (
        "init/0.safetensors",
        ["simulate", *TWO, "-s", "task.model=mlp", "-s", "init=init", *RUN],
    ),
    "task.data": (
        "g.npz",
        ["simulate", *TABLE, *RUN],
    ),
    "check task data": ("g.npz", ["check", "task", "arrays", *TABLE]),
    **{
        f"graph {end}": (f"g.{end}", ["simulate", "-s", f"topology.graph=g.{end}", *RUN])
        for end in ("yaml", "json", "graphml", "edgelist")
    },
    **{f"topology show {end}": (f"g.{end}", ["topology", "show", f"g.{end}"]) for end in ("yaml", "json", "graphml")},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with good models, a ledger and a factory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    torch.manual_seed(0)
    for name in ("a", "b", "base"):
        net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
        write_model(tmp_path / f"{name}.safetensors", net.state_dict())
    Ledger.create(tmp_path / "ledger", tmp_path / "base.safetensors", "mean").add(tmp_path / "a.safetensors")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    return tmp_path


def type_it(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["dimat", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("case", CASES)
def test_no_file_argument_is_unpickled(
    folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, words = CASES[case]
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    for form, raw in forms(mark).items():
        target.write_bytes(raw)
        code = type_it(monkeypatch, words)
        error = capsys.readouterr().err
        assert code in (1, 2), f"{form}: {error}"
        assert "Traceback" not in error, f"{form}: {error}"
        assert not mark.exists(), f"{form} was unpickled"
        assert not (folder / "out.safetensors").exists()
        assert not (folder / "run").exists()


def test_a_watched_folder_is_not_unpickled(folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "in").mkdir()
    for number, raw in enumerate(forms(mark).values()):
        (folder / "in" / f"{number}.safetensors").write_bytes(raw)
    assert type_it(monkeypatch, ["continual", "watch", "ledger", "in", "--once"]) == 1
    assert Ledger.open(folder / "ledger").status().version == 1


def test_an_array_of_objects_among_good_ones_is_not_unpickled(
    folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rest of the file is right, the bad array alone would be met late."""
    from gadget import Gadget

    good = {"x_train": np.zeros((40, 6), np.float32), "y_train": np.arange(40) % 4}
    good |= {"x_test": np.zeros((8, 6), np.float32), "y_test": np.arange(8) % 4}
    for name in (*ARRAYS, "unasked"):
        objects = np.array([Gadget(mark)] * 40, dtype=object)
        np.savez(folder / "g.npz", **(good | {name: objects}))  # type: ignore[arg-type]
        code = type_it(
            monkeypatch,
            [
                "check",
                "task",
                "arrays",
                "-s",
                "task.data=g.npz",
                "-s",
                "task.model=mlp",
                "-s",
                "task.partition.scheme=iid",
            ],
        )
        assert code == (0 if name == "unasked" else 2)
        assert not mark.exists(), name


def test_no_file_of_a_ledger_is_unpickled(
    folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [path.relative_to(folder / "ledger") for path in (folder / "ledger").rglob("*") if path.is_file()]
    assert len(files) >= 4
    raw = forms(mark)["pickle, protocol 5"]
    for number, file in enumerate(files):
        copy = shutil.copytree(folder / "ledger", folder / f"copy-{number}")
        (copy / file).write_bytes(raw)
        for words in (
            ["status"],
            ["verify"],
            ["add", "b.safetensors"],
            ["export", "--out", "out.safetensors", "--force"],
        ):
            type_it(monkeypatch, ["continual", words[0], copy.name, *words[1:]])
            assert "Traceback" not in capsys.readouterr().err
            assert not mark.exists(), f"{words[0]} unpickled {file}"


def test_no_checkpoint_is_unpickled(tmp_path: Path, mark: Path) -> None:
    from dimat.agent.checkpoint import load_checkpoint

    for raw in forms(mark).values():
        (tmp_path / "3.safetensors").write_bytes(raw)
        with pytest.raises(DimatError):
            load_checkpoint(tmp_path, 3)
        assert not mark.exists()


# ---------------------------------------------------------------------------------------------------------- in the code

UNPICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
OBJECTS = {"broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list"}
"""Collectives of torch.distributed that pickle what they carry."""


def unpickles(tree: ast.AST) -> list[str]:
    """Everything in a module that could unpickle."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNPICKLING]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLING:
            found.append(str(node.module))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            whose = ast.unparse(node.func.value)
            flags = {key.arg: ast.unparse(key.value) for key in node.keywords}
            if (
                (whose, node.func.attr) in (("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"))
                or (whose in ("np", "numpy") and node.func.attr == "load" and flags.get("allow_pickle") != "False")
                or node.func.attr in OBJECTS
            ):
                found.append(ast.unparse(node))
    return found


def test_no_module_could_unpickle() -> None:
    control = "import pickle\nfrom joblib import load\ntorch.load(p)\nnp.load(p)\nyaml.load(t)\ndist.gather_object(x)\n"
    assert len(unpickles(ast.parse(control))) == 6
    for path in sorted((ROOT / "dimat").rglob("*.py")):
        assert unpickles(ast.parse(path.read_text(encoding="utf-8"))) == [], path
