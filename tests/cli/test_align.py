"""`dimat align`: a permuted copy comes back exactly, what B computes stays, and bad input is refused by name."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dimat.align import PermutationSpec, permutation_spec
from dimat.cli.app import main
from dimat.plugins import load_object

Dimat = Callable[..., tuple[int, str, str]]

NETS = '''
import torch
import torch.nn.functional as F
from torch import nn


def mlp():
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3))


def wide():
    return nn.Sequential(nn.Linear(6, 25), nn.ReLU(), nn.Linear(25, 16), nn.Tanh(), nn.Linear(16, 3))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.outer = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        x = x + self.outer(F.relu(self.inner_norm(self.inner(x))))
        return self.head(F.relu(x).mean((2, 3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.ln(x))))


class Language(nn.Module):
    """As GPT-2 is built: learned positions, a residual stream, the embedding again as output layer."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50, 16), nn.Embedding(12, 16)
        self.h = nn.ModuleList([Block(), Block()])
        self.ln_f, self.lm_head = nn.LayerNorm(16), nn.Linear(16, 50, bias=False)
        self.lm_head.weight = self.wte.weight
        self.register_buffer("position", torch.arange(12), persistent=False)

    def forward(self, input_ids):
        x = self.wte(input_ids) + self.wpe(self.position[: input_ids.shape[1]])
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class Moody(nn.Module):
    """What it does depends on the data: it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 9), nn.Linear(9, 3)

    def forward(self, x):
        x = self.one(x)
        return self.two(F.relu(x) if x.sum() > 0 else x.tanh())


class Pair(nn.Module):
    """Called by keyword."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 10), nn.Linear(5, 10), nn.Linear(10, 2)

    def forward(self, *, left, right):
        return self.head(F.relu(self.left(left) + self.right(right)))


class Choice(nn.Module):
    """Says only which class it is."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x).argmax(1)


class OwnExample(nn.Sequential):
    def __init__(self):
        super().__init__(*mlp())

    def example_inputs(self):
        return torch.ones(2, 6)


class DummyExample(nn.Sequential):
    def __init__(self):
        super().__init__(*mlp())

    @property
    def dummy_inputs(self):
        return {"input": torch.ones(2, 6)}


def failing():
    raise RuntimeError("no weights today")
'''
INPUT = {"mlp": ["--input", "4x6"], "Residual": ["--input", "2x3x8x8"], "Language": ["--input", "3x8:int64"]}


@pytest.fixture
def dimat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Dimat]:
    """Type a command in a folder that holds nets.py; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the current folder is added to it
    Path("nets.py").write_text(NETS)

    def type_it(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dimat", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield type_it
    for name in ("nets", "more"):
        sys.modules.pop(name, None)


def net(name: str, seed: int) -> nn.Module:
    """A net of nets.py whose norms are not the ones and zeros of a fresh one."""
    torch.manual_seed(seed)
    model = load_object("net", f"nets.py:{name}")()
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        tensor.data += 0.1 * torch.rand_like(tensor)
    return model.eval()


def save(path: str, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """A state dict as a file, or as a folder when the name has no ending; what is tied is stored once."""
    kept = {name: tensor.clone() for name, tensor in state.items() if name != "lm_head.weight"}
    file = Path(path)
    if not file.suffix:
        file.mkdir()
        (file / "config.json").write_text('{"model_type": "toy"}')
        (file / "tokenizer.json").write_text("{}")
        file = file / "model.safetensors"
    save_file(kept, file, metadata)
    return path


def load(path: str) -> dict[str, Tensor]:
    return load_file(path if path.endswith(".safetensors") else f"{path}/model.safetensors")


def example(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if name == "Language":
        return torch.randint(0, 50, (40, 10), generator=generator)
    return torch.randn(*{"mlp": (200, 6), "Residual": (40, 3, 8, 8)}[name], generator=generator)


def outputs(name: str, state: dict[str, Tensor]) -> Tensor:
    model = net(name, 0)
    model.load_state_dict(state, strict=False)  # what is tied has one name in the file
    with torch.no_grad():
        return model(example(name))


def permuted_copy(name: str, a: str, b: str) -> PermutationSpec:
    model = net(name, 0)
    spec = permutation_spec(model, example(name)[:3])
    save(a, model.state_dict())
    save(b, spec.apply(model.state_dict(), spec.random(seed=3)))
    return spec


# ---- a permuted copy comes back


@pytest.mark.parametrize("ending", [".safetensors", ""], ids=["file", "folder"])
@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("name", INPUT)
def test_a_permuted_copy_is_brought_back_exactly(dimat: Dimat, name: str, by: str, ending: str) -> None:
    a, b, out = (f"{word}{ending}" for word in ("a", "b", "out"))
    spec = permuted_copy(name, a, b)
    how = INPUT[name]
    if by == "activations":
        save_file({"inputs": example(name)}, "data.safetensors")
        how = ["--data", "data.safetensors"]
    code, stdout, stderr = dimat(
        "align", a, b, "--model", f"nets.py:{name}", "--by", by, *how, "--out", out, "--format", "json"
    )
    assert code == 0, stderr
    found, expected, before = load(out), load(a), load(b)
    assert found.keys() == before.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not all(torch.equal(before[key], expected[key]) for key in expected)  # there was something to do
    torch.testing.assert_close(outputs(name, found), outputs(name, before), rtol=1e-4, atol=1e-5)

    answer = json.loads(stdout.splitlines()[-1])
    keys = {"groups", "moved", "objective_before", "objective_after", "distance_before", "distance_after", "out"}
    assert answer.keys() == keys
    assert [group["name"] for group in answer["groups"]] == [group.name for group in spec.groups]
    assert [group["size"] for group in answer["groups"]] == [group.size for group in spec.groups]
    units = sum(group["size"] * group["moved"] for group in answer["groups"])
    assert answer["moved"] == pytest.approx(units / sum(group.size for group in spec.groups))
    assert answer["moved"] > 0.8
    assert answer["objective_after"] > answer["objective_before"]
    trained = [key for key in expected if "running" not in key and "num_batches" not in key]
    distance = sum(float((expected[key].double() - before[key].double()).square().sum()) for key in trained) ** 0.5
    assert answer["distance_before"] == pytest.approx(distance)
    assert answer["distance_after"] == 0
    assert answer["out"] == out
    if not ending:
        assert sorted(path.name for path in Path(out).iterdir()) == [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        ]


def test_models_trained_apart_come_closer_and_compute_what_they_did(dimat: Dimat) -> None:
    save("a.safetensors", net("Residual", 1).state_dict())
    save("b.safetensors", net("Residual", 2).state_dict())
    words = ["align", "a.safetensors", "b.safetensors", "--model", "nets.py:Residual", "--input", "2x3x8x8"]
    code, out, _ = dimat(*words, "--out", "c.safetensors", "--format", "json")
    answer = json.loads(out)
    assert code == 0
    assert answer["distance_after"] < answer["distance_before"]
    assert answer["objective_after"] > answer["objective_before"]
    b, c = load("b.safetensors"), load("c.safetensors")
    torch.testing.assert_close(outputs("Residual", c), outputs("Residual", b), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(b[key].flatten().sort().values, c[key].flatten().sort().values) for key in b)
    dimat(*words, "--out", "d.safetensors")
    assert Path("c.safetensors").read_bytes() == Path("d.safetensors").read_bytes()


def test_dtypes_metadata_and_what_is_no_parameter_are_kept(dimat: Dimat) -> None:
    model = net("Residual", 0)
    spec = permutation_spec(model, example("Residual")[:2])
    halves = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    halves["stem_norm.num_batches_tracked"] = torch.tensor(17)
    save("a.safetensors", halves)
    save("b.safetensors", spec.apply(halves, spec.random(seed=1)), {"format": "pt", "by": "somebody"})
    code, _, err = dimat(
        "align", "a.safetensors", "b.safetensors", "--model", "nets.py:Residual", "--input", "2x3x8x8",
        "--out", "c.safetensors",
    )  # fmt: skip
    assert code == 0, err
    found = load("c.safetensors")
    assert {key: tensor.dtype for key, tensor in found.items()} == {key: t.dtype for key, t in halves.items()}
    assert all(torch.equal(found[key], halves[key]) for key in halves)
    with safe_open("c.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "somebody"}


def test_a_folder_and_a_file_give_a_folder(dimat: Dimat) -> None:
    permuted_copy("mlp", "a", "b.safetensors")
    code, _, err = dimat("align", "a", "b.safetensors", "--model", "nets.py:mlp", "--input", "2x6", "--out", "out")
    assert code == 0, err
    assert Path("out/config.json").exists()
    assert torch.equal(load("out")["0.weight"], load("a")["0.weight"])


def test_the_table_tells_groups_totals_and_proofs(dimat: Dimat) -> None:
    permuted_copy("Residual", "a.safetensors", "b.safetensors")
    code, out, err = dimat(
        "align", "a.safetensors", "b.safetensors", "--model", "nets.py:Residual", "--input", "2x3x8x8",
        "--out", "c.safetensors", "-q",
    )  # fmt: skip
    assert (code, err) == (0, "")
    words = ("stem.weight:0", "plain", "inner product", "20 units in 2 groups", "coverage", "proven", "c.safetensors")
    for word in words:
        assert word in out


# ---- where the example input comes from


def test_the_model_or_its_module_may_offer_an_example(dimat: Dimat) -> None:
    for name in ("OwnExample", "DummyExample"):
        save("a.safetensors", net(name, 0).state_dict())
        save("b.safetensors", net(name, 1).state_dict())
        code, out, err = dimat(
            "align", "a.safetensors", "b.safetensors", "--model", f"nets.py:{name}", "--out", f"{name}.safetensors"
        )
        assert code == 0, err
        assert "2 groups" in out
    Path("more.py").write_text(
        "import torch\nfrom nets import mlp\ndef example_inputs():\n    return (torch.ones(3, 6),)\n"
    )
    code, _, err = dimat(
        "align", "a.safetensors", "b.safetensors", "--model", "more:mlp", "--out", "c.safetensors", "-v"
    )
    assert code == 0, err
    assert "more:example_inputs" in err
    assert load("c.safetensors").keys() == load("b.safetensors").keys()


def test_several_tensors_of_a_data_file_are_keyword_arguments(dimat: Dimat) -> None:
    model = net("Pair", 0)
    data = {"left": torch.randn(60, 4), "right": torch.randn(60, 5)}
    spec = permutation_spec(model, **data)
    save("a.safetensors", model.state_dict())
    save("b.safetensors", spec.apply(model.state_dict(), spec.random(seed=1)))
    save_file(data, "data.safetensors")
    code, _, err = dimat(
        "align", "a.safetensors", "b.safetensors", "--model", "nets.py:Pair", "--out", "c.safetensors",
        "--by", "activations", "--data", "data.safetensors", "--batch-size", "16", "--max-samples", "50", "-v",
    )  # fmt: skip
    assert code == 0, err
    assert "batch 4 of 4" in err  # 50 samples by 16
    assert all(torch.equal(load("c.safetensors")[key], tensor) for key, tensor in model.state_dict().items())


def test_arrays_serve_as_a_probe(dimat: Dimat) -> None:
    permuted_copy("mlp", "a.safetensors", "b.safetensors")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 6)).astype(np.float32), np.arange(80) % 3
    np.savez("data.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    code, _, err = dimat(
        "align", "a.safetensors", "b.safetensors", "--model", "nets.py:mlp", "--out", "c.safetensors",
        "--by", "activations", "--data", "data.npz",
    )  # fmt: skip
    assert code == 0, err
    assert all(torch.equal(load("c.safetensors")[key], tensor) for key, tensor in load("a.safetensors").items())


# ---- groups written by hand

HIDDEN: dict[str, Any] = {"name": "hidden", "size": 9, "axes": [["one.weight", 0], ["one.bias", 0], ["two.weight", 1]]}
MOODY = ["align", "a.safetensors", "b.safetensors", "--model", "nets.py:Moody", "--input", "4x6"]
MOODY += ["--out", "c.safetensors"]


def by_hand(**changes: object) -> None:
    Path("spec.json").write_text(json.dumps({"groups": [HIDDEN | changes]}))


def moody_pair() -> None:
    model = net("Moody", 0)
    save("a.safetensors", model.state_dict())
    order = torch.randperm(9)
    state = model.state_dict()
    moved = {"one.weight": state["one.weight"][order], "one.bias": state["one.bias"][order]}
    save("b.safetensors", state | moved | {"two.weight": state["two.weight"][:, order]})


def test_a_model_that_cannot_be_traced_is_aligned_by_a_spec(dimat: Dimat) -> None:
    moody_pair()
    code, _, err = dimat(*MOODY)
    assert code == 2
    assert "cannot be traced" in err
    assert "nets.py:" in err  # the line
    assert "--spec" in err
    by_hand()
    code, out, err = dimat(*MOODY, "--spec", "spec.json")
    assert code == 0, err
    assert "96.8% of 93 parameters" in out  # all but the 3 output biases
    assert all(torch.equal(load("c.safetensors")[key], tensor) for key, tensor in load("a.safetensors").items())


WRONG_SPECS: dict[str, tuple[dict[str, object], list[str]]] = {
    "an axis forgotten": ({"axes": HIDDEN["axes"][:2]}, ["change what the model computes", "'hidden'", "never used"]),
    "an unknown tensor": ({"axes": [["one.wieght", 0]]}, ["'one.wieght'", "Did you mean 'one.weight'"]),
    "no such dimension": ({"axes": [["one.bias", 1]]}, ["'one.bias' of shape (9,) has no dimension 1"]),
    "a wrong size": ({"size": 8}, ["'hidden'", "'one.weight' with shape (9, 6) does not carry 8 units"]),
    "an unknown structure": ({"structure": "plian"}, ["unknown structure 'plian'", "Did you mean 'plain'"]),
}


@pytest.mark.parametrize("case", WRONG_SPECS)
def test_a_spec_that_does_not_verify_is_never_used(dimat: Dimat, case: str) -> None:
    changes, words = WRONG_SPECS[case]
    moody_pair()
    by_hand(**changes)
    code, out, err = dimat(*MOODY, "--spec", "spec.json")
    assert (code, out) == (2, "")
    for word in ["spec spec.json", *words]:
        assert word in err
    assert not Path("c.safetensors").exists()


# ---- bad input

GOOD = {
    "A": "a.safetensors",
    "B": "b.safetensors",
    "--model": "nets.py:mlp",
    "--out": "c.safetensors",
    "--input": "4x6",
}
CASES: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "missing model": ({"A": "aa.safetensors"}, ["aa.safetensors does not exist", "Did you mean 'a.safetensors'"]),
    "a pickle": ({"B": "b.pt"}, ["b.pt is a pickle", "safetensors.torch.save_file"]),
    "a pickle that Lightning wrote": ({"B": "b.ckpt"}, ["b.ckpt is a pickle"]),
    "a folder with a pickle": ({"B": "pickled", "--out": "c"}, ["pytorch_model.bin", "save_pretrained"]),
    "a damaged file": ({"B": "cut.safetensors"}, ["cut.safetensors is damaged"]),
    "another architecture": (
        {"B": "wide.safetensors"},
        ["not of one architecture", "'0.bias'", "(24,) in a.safetensors", "(25,) in wide.safetensors"],
    ),
    "a tensor too many": ({"B": "more.safetensors"}, ["'5.weight' of shape (2,) is in more.safetensors, not in a."]),
    "another factory": ({"--model": "nets.py:wide"}, ["'0.weight' has shape (24, 6) in a.safetensors", "(25, 6)"]),
    "factory of other names": ({"--model": "nets.py:Residual"}, ["a.safetensors has no tensor 'stem.weight'"]),
    "misspelt factory": ({"--model": "nets.py:mpl"}, ["'mpl'", "Did you mean 'mlp'"]),
    "factory without a colon": ({"--model": "mlp"}, ["'mlp' is not of the form package.module:object"]),
    "factory in no file": ({"--model": "nots.py:mlp"}, ["'nots.py' does not exist"]),
    "factory that fails": ({"--model": "nets.py:failing"}, ["nets.py:failing", "no weights today"]),
    "NaN": ({"B": "nan.safetensors"}, ["nan.safetensors", "'2.weight' holds NaN"]),
    "misspelt way": ({"--by": "activation"}, ["'activation'", "Did you mean 'activations'"]),
    "activations without data": ({"--by": "activations"}, ["no --data FILE was given", "--by weights needs none"]),
    "no example": ({"--input": None}, ["example input is needed", "--input SHAPE", "--data FILE", "example_inputs()"]),
    "two examples": ({"--data": "data.safetensors"}, ["--data and --input"]),
    "an input that is no shape": ({"--input": "4xx6"}, ["'4xx6' is not of the form SHAPE[:dtype]"]),
    "an input of length zero": ({"--input": "0x6"}, ["'0x6' is not of the form"]),
    "misspelt dtype": ({"--input": "4x6:flaot32"}, ["'flaot32'", "Did you mean 'float32'"]),
    "an input too large": ({"--input": "99999999x99999999"}, ["99999999x99999999", "bytes, at most"]),
    "an input of another shape": ({"--input": "4x7"}, ["fails on the example input (4, 7) float32", "--input 4x7"]),
    "missing data": ({"--input": None, "--data": "dota.npz"}, ["dota.npz does not exist", "'data.npz'"]),
    "data of another kind": ({"--input": None, "--data": "nets.py"}, ["nets.py is neither an .npz nor"]),
    "data without samples": ({"--input": None, "--data": "odd.safetensors"}, ["odd.safetensors", "x (3, 6), y (4, 6)"]),
    "data that is NaN": ({"--input": None, "--data": "nan_x.safetensors"}, ["nan_x.safetensors", "'x' holds NaN"]),
    "arrays without labels": ({"--input": None, "--data": "data.npz"}, ["data.npz", "y_train", ".safetensors"]),
    "out is A": ({"--out": "a.safetensors"}, ["a.safetensors is the model a.safetensors itself"]),
    "out is B": ({"--out": "./b.safetensors"}, ["is the model b.safetensors itself"]),
    "out in no folder": ({"--out": "nowhere/c.safetensors"}, ["nowhere", "does not exist", "mkdir"]),
    "out of another kind": ({"--out": "c.pt"}, ["c.pt is not named *.safetensors"]),
    "out is a folder": ({"--out": "pickled"}, ["pickled is a folder; the models are files"]),
    "missing spec": ({"--spec": "spac.json"}, ["spac.json does not exist", "'spec.json'"]),
    "spec that is none": ({"--spec": "nets.py"}, ["nets.py", "not a permutation spec"]),
    "spec without taps": (
        {"--spec": "spec.json", "--by": "activations", "--input": None, "--data": "data.safetensors"},
        ["spec.json does not say where activations are read", "--by weights"],
    ),
    "classes alone": (
        {"A": "ca.safetensors", "B": "cb.safetensors", "--model": "nets.py:Choice"},
        ["nets.py:Choice returns no floating-point tensor"],
    ),
    "misspelt option": ({"--modle": "x"}, ["--modle", "--model"]),
    "misspelt format": ({"--format": "jsn"}, ["'jsn'", "json"]),
    "negative seed": ({"--seed": "-1"}, ["--seed"]),
    "no samples in a batch": ({"--batch-size": "0"}, ["--batch-size"]),
}  # fmt: skip


def bad_inputs() -> None:
    """Every file that the cases name."""
    state = net("mlp", 1).state_dict()
    save("a.safetensors", net("mlp", 0).state_dict())
    save("b.safetensors", state)
    save("wide.safetensors", net("wide", 0).state_dict())
    save("more.safetensors", state | {"5.weight": torch.zeros(2)})
    save("nan.safetensors", state | {"2.weight": torch.full((16, 24), torch.nan)})
    for name in ("ca", "cb"):
        save(f"{name}.safetensors", net("Choice", 0).state_dict())
    for name in ("b.pt", "b.ckpt"):
        torch.save(state, name)
    Path("cut.safetensors").write_bytes(Path("b.safetensors").read_bytes()[:-100])
    Path("pickled").mkdir()
    Path("pickled/config.json").write_text("{}")
    Path("pickled/pytorch_model.bin").write_bytes(Path("b.pt").read_bytes())
    save_file({"x": torch.randn(9, 6)}, "data.safetensors")
    save_file({"x": torch.randn(3, 6), "y": torch.randn(4, 6)}, "odd.safetensors")
    save_file({"x": torch.full((3, 6), torch.nan)}, "nan_x.safetensors")
    np.savez("data.npz", x_train=np.zeros((9, 6), np.float32))
    axes = [["0.weight", 0], ["0.bias", 0], ["2.weight", 1]]
    Path("spec.json").write_text(json.dumps({"groups": [{"name": "hidden", "size": 24, "axes": axes}]}))


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_anything_is_written(dimat: Dimat, tmp_path: Path, case: str) -> None:
    changes, words = CASES[case]
    bad_inputs()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    options = {name: value for name, value in (GOOD | changes).items() if value is not None}
    typed = [word for pair in options.items() for word in pair if word not in ("A", "B")]
    code, out, err = dimat("align", *typed)
    err = re.sub(r"\s+", " ", err)
    assert (code, out) == (2, ""), err
    for word in words:
        assert word in err
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


def test_the_good_input_of_the_cases_is_good(dimat: Dimat) -> None:
    bad_inputs()
    code, _, err = dimat("align", *[word for pair in GOOD.items() for word in pair if word not in ("A", "B")])
    assert code == 0, err


def test_a_changed_function_is_never_written(dimat: Dimat, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_inputs()

    def half_applied(spec: PermutationSpec, state: dict[str, Tensor], perms: Any, ties: Any) -> dict[str, Tensor]:
        return state | {"0.weight": spec.apply(state, spec.random(0))["0.weight"]}

    monkeypatch.setattr("dimat.cli.align.apply_tied", half_applied)
    code, out, err = dimat("align", *[word for pair in GOOD.items() for word in pair if word not in ("A", "B")])
    assert (code, out) == (1, "")
    assert "would not compute what b.safetensors does" in err
    assert not Path("c.safetensors").exists()
