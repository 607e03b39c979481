"""A ledger is the fold of the models that were added, whatever was undone, removed or refused in between."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dimat.continual import AlreadyAbsorbed, Ledger
from dimat.continual.manifest import FORMAT
from dimat.continual.state import open_state
from dimat.errors import ConfigError, DimatError, PluginError, SchemaError, UsageError
from dimat.merge import builtin_methods, fold, make_fold
from dimat.merge.digest import digest_of
from dimat.merge.registry import find_method, options_of
from dimat.merge.source import OnDisk
from dimat.modelfile import open_model, write_model

METHODS = [name for name in builtin_methods() if make_fold(name).memory == "constant"]
REMOVABLE = [name for name in METHODS if make_fold(name).remove is not None]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return open_model(path).read_all()


def statistics(fold_name: str, make: Any, number: int) -> tuple[dict[str, Path], dict[str, dict[str, torch.Tensor]]]:
    kinds = make_fold(fold_name).stats
    values = {kind: {key: one.abs() + 0.1 for key, one in tensors(make("s", 90 + number)).items()} for kind in kinds}
    return {kind: make(f"{kind}{number}", one) for kind, one in values.items()}, values


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_fold_of_its_models(method: str, make: Any, base: Path, tmp_path: Path) -> None:
    count = 2 if method == "slerp" else 4
    weights = [1.0, 2.0, 0.5, 1.5][:count]
    ledger, evidence, models = Ledger.create(tmp_path / "ledger", base, method), [], []
    for i in range(count):
        paths, values = statistics(method, make, i)
        path = make(f"m{i}", i + 1)
        entry = Ledger.open(ledger.path).add(path, weight=weights[i], stats=paths, who="me")
        assert (entry.name, entry.order, entry.version, entry.who) == (f"m{i}", i + 1, i + 1, "me")
        assert entry.digest == digest_of(OnDisk(open_model(path)))
        models.append(tensors(path))
        evidence.append(values)
    kept = tensors(base)
    expected = fold(method, models, kept, weights, stats=evidence)
    expected["steps"] = kept["steps"]  # counters are the base's
    assert largest_difference(ledger.merged(), expected) < 1e-6
    assert ledger.verify() == []
    digest = ledger.export(tmp_path / "out.safetensors")
    assert digest == digest_of(OnDisk(open_model(tmp_path / "out.safetensors")))
    assert largest_difference(tensors(tmp_path / "out.safetensors"), expected) < 1e-6


@pytest.mark.parametrize("method", ["task_arithmetic", "opcm", "ties"])
def test_norms_and_cosines_are_those_of_task_vectors(method: str, make: Any, tmp_path: Path) -> None:
    def write(name: str, seed: int) -> Path:
        generator = torch.Generator().manual_seed(seed)
        return make(name, {"w": torch.randn(100, 200, generator=generator), "n": torch.tensor(seed)})

    base = write("base", 0)
    ledger, kept = Ledger.create(tmp_path / "ledger", base, method), tensors(base)
    floats = [name for name in kept if kept[name].is_floating_point()]

    def update(model: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([(model[name].double() - kept[name].double()).reshape(-1) for name in floats])

    for i in range(3):
        path = write(f"m{i}", i + 1)
        entry = ledger.add(path)
        tau, merged = update(tensors(path)), update(ledger.merged())
        assert entry.norm == pytest.approx(float(tau.norm()), rel=1e-12)
        assert entry.cosine == pytest.approx(float(torch.cosine_similarity(tau, merged, dim=0)), abs=1e-6)
    status = ledger.status()
    assert status.update_norm == pytest.approx(float(update(ledger.merged()).norm()), rel=1e-6)
    assert status.models[-1].cosine_now == status.models[-1].entry.cosine
    for i, model in enumerate(status.models):
        now = torch.cosine_similarity(update(tensors(tmp_path / f"m{i}.safetensors")), update(ledger.merged()), dim=0)
        assert model.cosine_now == pytest.approx(float(now), abs=0.06)  # a deviation of 0.02 at most


def test_order_matters_where_the_method_says_so_and_is_kept(make: Any, base: Path, tmp_path: Path) -> None:
    paths = [make(f"m{i}", i + 1) for i in range(3)]
    merged = []
    for order in ([0, 1, 2], [2, 1, 0]):
        ledger = Ledger.create(tmp_path / f"ledger{order[0]}", base, "opcm")
        for i in order:
            ledger.add(paths[i])
        assert [entry.name for entry in ledger.entries()] == [f"m{i}" for i in order]
        merged.append(ledger.merged())
    assert largest_difference(*merged) > 1e-3


@pytest.mark.parametrize("method", REMOVABLE)
def test_after_remove_it_never_saw_the_model(method: str, make: Any, base: Path, tmp_path: Path) -> None:
    whole, without = (Ledger.create(tmp_path / name, base, method) for name in ("whole", "without"))
    for i in range(3):
        paths, _ = statistics(method, make, i)
        path = make(f"m{i}", i + 1)
        whole.add(path, weight=1.0 + i, stats=paths)
        if i != 1:
            without.add(path, weight=1.0 + i, stats=paths)
    paths, _ = statistics(method, make, 1)
    entry = whole.remove("m1", tmp_path / "m1.safetensors", stats=paths)
    assert entry.name == "m1" and [one.name for one in whole.entries()] == ["m0", "m2"]
    largest = max(float(one.abs().max()) for one in without.merged().values() if one.numel())
    assert largest_difference(whole.merged(), without.merged()) < 1e-6 * max(1.0, largest)
    assert whole.verify() == []
    assert whole.status().update_norm == pytest.approx(without.status().update_norm, rel=1e-6)
    assert whole.undo().name == "m1"
    assert [one.name for one in whole.entries()] == ["m0", "m1", "m2"] and whole.verify() == []


def test_removing_the_last_model_leaves_the_empty_state(make: Any, base: Path, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "mean")
    path = make("m", 1)
    ledger.add(path)
    ledger.remove("m", path)
    assert ledger.entries() == () and ledger.verify() == []
    with pytest.raises(UsageError, match="absorbed no model yet"):
        ledger.export(tmp_path / "out.safetensors")
    entry = ledger.add(path)
    assert (entry.order, entry.version) == (2, 3)
    assert largest_difference(ledger.merged(), tensors(path) | {"steps": torch.tensor(0)}) == 0


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_undo_goes_back_as_often_as_states_are_kept(keep: int, make: Any, base: Path, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "opcm", keep=keep)
    exports = []
    for i in range(5):
        ledger.add(make(f"m{i}", i + 1))
        exports.append(ledger.export(tmp_path / "out.safetensors", overwrite=True))
        assert len(list((ledger.path / "states").iterdir())) == min(i + 1, keep + 1)
    for back in range(keep):
        assert ledger.undo().name == f"m{4 - back}"
        assert ledger.export(tmp_path / "out.safetensors", overwrite=True) == exports[3 - back]
        assert ledger.verify() == [] and ledger.status().num_undo == keep - back - 1
    with pytest.raises(UsageError, match="is not kept any more") as caught:
        ledger.undo()
    assert "build a ledger anew" in str(caught.value.hint)
    # What was undone may come again, in the same bits; its version is a new one.
    for i in range(5 - keep, 5):
        assert ledger.add(tmp_path / f"m{i}.safetensors").version == 5 + keep + i - 4
    assert ledger.export(tmp_path / "out.safetensors", overwrite=True) == exports[-1]


def test_an_empty_ledger_has_nothing_to_undo(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is nothing to undo"):
        Ledger.create(tmp_path / "ledger", base, "mean").undo()


# ----------------------------------------------------------------------------------------------------- what is refused


def test_the_same_model_is_known_by_its_digest(make: Any, base: Path, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "mean")
    path = make("m", 1)
    first = ledger.add(path, who="ada")
    shutil.copy(path, tmp_path / "other.safetensors")
    with pytest.raises(AlreadyAbsorbed, match=f"'m', number 1, added {first.time} by ada") as caught:
        ledger.add(tmp_path / "other.safetensors")
    assert caught.value.entry == first and ledger.version == 1
    assert ledger.add(tmp_path / "other.safetensors", again=True).order == 2
    with pytest.raises(UsageError, match="the name 'm' is taken"):
        ledger.add(make("n", 5), name="m")
    with pytest.raises(UsageError, match="the name 'm' is taken in the ledger by the same model"):
        ledger.add(path, again=True)
    assert list(ledger.digests()) == [first.digest] and ledger.digests()[first.digest].name == "m"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a.weight": torch.zeros(4, 6)}, r"'a.weight' is \[6, 4\] in .*base.* and \[4, 6\] in .*bad"),
        ({"more": torch.zeros(2)}, "bad.safetensors has tensor 'more' \\[2\\], .*base.* has not"),
        ({"a.bias": None}, "base.* has tensor 'a.bias' \\[6\\], .*bad.safetensors has not"),
        ({"steps": torch.tensor(1.5)}, "'steps' is torch.int64 in .*base.* and torch.float32 in .*bad"),
        ({"b.weight": torch.full((3, 6), torch.nan)}, "'b.weight' of .*bad.safetensors holds NaN"),
        ({"b.weight": torch.full((3, 6), torch.inf)}, "'b.weight' of .*bad.safetensors holds Inf"),
    ],
)
def test_a_model_that_does_not_fit_changes_nothing(
    change: Mapping[str, Any], words: str, make: Any, base: Path, tmp_path: Path
) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "opcm")
    ledger.add(make("good", 1))
    before = ledger.status()
    state = tensors(make("m", 2)) | change
    bad = make("bad", {name: tensor for name, tensor in state.items() if tensor is not None})
    with pytest.raises((SchemaError, UsageError), match=words):
        ledger.add(bad)
    assert ledger.status() == before and ledger.verify() == []
    assert [file.name for file in (ledger.path / "states").iterdir()] == ["000001.safetensors"]


def test_files_that_are_no_models_are_told(make: Any, base: Path, tmp_path: Path) -> None:
    ledger, path = Ledger.create(tmp_path / "ledger", base, "mean"), make("m", 1)
    short = tmp_path / "short.safetensors"
    short.write_bytes(path.read_bytes()[:-7])
    pickled = tmp_path / "model.pt"
    torch.save({}, pickled)
    (tmp_path / "folder").mkdir()
    for given, words in [
        (short, "damaged"),
        (pickled, "is a pickle"),
        (tmp_path / "folder", "neither model.safetensors nor"),
        (tmp_path / "mm.safetensors", "does not exist. Did you mean"),
    ]:
        with pytest.raises(UsageError, match=words):
            ledger.add(given)
    for weight in (float("nan"), float("inf"), 1e39, -1e300):
        with pytest.raises(UsageError, match="expected a finite number"):
            ledger.add(path, weight=weight)
    for name in ("", " ", "a\nb", "x" * 201):
        with pytest.raises(UsageError, match="cannot name a model"):
            ledger.add(path, name=name)
    assert ledger.version == 0


def test_a_merge_that_is_not_finite_is_not_absorbed(make: Any, base: Path, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "mean")
    ledger.add(make("m", 1))
    with pytest.raises(UsageError, match="gave NaN or Inf"):
        ledger.add(make("n", 2), weight=-1.0)
    assert ledger.version == 1 and len(list((ledger.path / "states").iterdir())) == 2
    ledger.add(make("n", 2))  # clears what was left
    assert [one.name for one in sorted((ledger.path / "states").iterdir())] == [
        "000001.safetensors",
        "000002.safetensors",
    ]


def test_the_base_itself_is_told(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "task_arithmetic")
    entry = ledger.add(base)
    assert (entry.norm, entry.cosine) == (0.0, None) and "equals the base" in caplog.text
    assert ledger.verify() == []


def test_remove_takes_the_same_model_by_a_method_that_can(make: Any, base: Path, tmp_path: Path) -> None:
    paths = [make(f"m{i}", i + 1) for i in range(2)]
    additive, ordered = (Ledger.create(tmp_path / name, base, name) for name in ("mean", "opcm"))
    for ledger in (additive, ordered):
        for path in paths:
            ledger.add(path)
    with pytest.raises(UsageError, match="'opcm' cannot take a model out again") as caught:
        ordered.remove("m0", paths[0])
    assert "undo" in str(caught.value.hint) and "anew" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"unknown model 'm2'. Did you mean 'm[01]'"):
        additive.remove("m2", paths[0])
    with pytest.raises(UsageError, match="only the same model can be taken out") as caught:
        additive.remove("m0", paths[1])
    assert caught.value.hint == "that model is in the ledger as 'm1'"


def test_statistics_that_are_missing_or_not_asked_for(make: Any, base: Path, tmp_path: Path) -> None:
    fisher, mean = (Ledger.create(tmp_path / name, base, name) for name in ("fisher", "mean"))
    path, (stats, _) = make("m", 1), statistics("fisher", make, 1)
    with pytest.raises(UsageError, match="without fisher statistics"):
        fisher.add(path)
    with pytest.raises(UsageError, match="takes none"):
        mean.add(path, stats=stats["fisher"])
    fisher.add(path, stats=stats["fisher"])
    fisher.add(make("n", 2), stats=stats)
    other, _ = statistics("fisher", make, 7)
    with pytest.raises(UsageError, match="only the same can be taken out"):
        fisher.remove("m", path, stats=other)
    assert fisher.remove("m", path, stats=stats).name == "m"


def test_create_refuses_what_cannot_become_a_ledger(make: Any, base: Path, tmp_path: Path) -> None:
    Ledger.create(tmp_path / "there", base, "mean")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    linear = tmp_path / "median.py"
    linear.write_text(
        "from dataclasses import replace\nfrom dimat.merge import make_fold\n"
        "def median():\n    return replace(make_fold('mean'), memory='linear')\n"
    )
    nan = make("nan", {"w": torch.tensor([1.0, torch.nan])})
    for path, start, method, options, error, words in [
        ("there", base, "mean", {}, UsageError, "is a ledger already, of mean"),
        ("full", base, "mean", {}, UsageError, "a folder that is not empty"),
        ("median.py", base, "mean", {}, UsageError, "is a file, expected a name that is free"),
        ("no/where", base, "mean", {}, UsageError, "does not exist"),
        ("new", base, "opcmm", {}, PluginError, "Did you mean 'opcm'"),
        ("new", base, "opcm", {"alfa": 1}, ConfigError, "Did you mean 'alpha'"),
        ("new", base, "opcm", {"alpha": 7}, ConfigError, "alpha"),
        ("new", base, f"{linear}:median", {}, UsageError, "keeps every model it has seen"),
        ("new", nan, "mean", {}, UsageError, "'w' of .*nan.safetensors holds NaN"),
        ("new", make("ints", {"n": torch.tensor(3)}), "mean", {}, UsageError, "no floating-point tensor"),
        ("new", tmp_path / "bse.safetensors", "mean", {}, UsageError, "Did you mean"),
    ]:
        with pytest.raises(error, match=words):
            Ledger.create(tmp_path / path, start, method, **options)
    with pytest.raises(UsageError, match="keep is -1"):
        Ledger.create(tmp_path / "new", base, "mean", keep=-1)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


def test_open_tells_what_is_no_ledger_and_what_is_newer(base: Path, tmp_path: Path) -> None:
    path = Ledger.create(tmp_path / "ledger", base, "mean").path
    with pytest.raises(UsageError, match=r"does not exist. Did you mean '.*/ledger'"):
        Ledger.open(tmp_path / "leger")
    with pytest.raises(UsageError, match=r"is no ledger, but a file. Beside it: ledger"):
        Ledger.open(base)
    told = json.loads((path / "ledger.json").read_text())
    (path / "ledger.json").write_text(json.dumps(told | {"method": "opcm"}))
    with pytest.raises(DimatError, match="was changed since init"):
        Ledger.open(path)
    (path / "ledger.json").write_text(json.dumps(told | {"format": FORMAT + 1, "needs": "0.9.0", "future": True}))
    with pytest.raises(UsageError, match=rf"is of format {FORMAT + 1}, which needs dimat 0.9.0; this is dimat"):
        Ledger.open(path)
    (path / "ledger.json").write_text(json.dumps(told | {"format": FORMAT - 1}))
    with pytest.raises(UsageError, match=r"is of the older format"):
        Ledger.open(path)


def test_a_state_of_another_ledger_is_refused(make: Any, base: Path, tmp_path: Path) -> None:
    one, other = (Ledger.create(tmp_path / name, base, "opcm", alpha=alpha) for name, alpha in (("a", 0.5), ("b", 0.3)))
    for ledger in (one, other):
        ledger.add(make("m", 1))
    shutil.copy(one.path / "states" / "000001.safetensors", other.path / "states")
    with pytest.raises(DimatError, match=r"is of another ledger: its options is \{\"alpha\": 0.5"):
        open_state(other.path / "states" / "000001.safetensors", other.manifest, other.base)
    with pytest.raises(DimatError, match="was changed"):
        other.merged()
    assert len(other.verify()) == 1


def test_defaults_are_those_of_the_release_that_made_the_ledger(make: Any, base: Path, tmp_path: Path) -> None:
    method = tmp_path / "mine.py"
    text = "from dimat.merge import make_fold\ndef mine(*, scale=0.25):\n"
    method.write_text(text + "    return make_fold('task_arithmetic', {'scale': scale})\n")
    path = Ledger.create(tmp_path / "ledger", base, f"{method}:mine").path
    method.write_text(method.read_text().replace("scale=0.25", "scale=4.0"))
    ledger = Ledger.open(path)
    ledger.add(make("m", 1))
    expected = fold("task_arithmetic", [tensors(tmp_path / "m.safetensors")], tensors(base), scale=0.25)
    assert torch.equal(ledger.merged()["a.weight"], expected["a.weight"])


def test_an_option_that_cannot_be_written_down_is_refused(base: Path, tmp_path: Path) -> None:
    method = tmp_path / "odd.py"
    text = "from dimat.merge import make_fold\ndef odd(*, how=print):\n    return make_fold('mean')\n"
    method.write_text(text)
    with pytest.raises(UsageError, match="option how is <built-in function print>, which a ledger cannot write down"):
        Ledger.create(tmp_path / "ledger", base, f"{method}:odd")
    assert not (tmp_path / "ledger").exists()


@contextmanager
def disk_of(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond it: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [0, 1000, 20_000, 60_000])
def test_a_full_disk_leaves_everything_as_it_was(num_bytes: int, make: Any, tmp_path: Path) -> None:
    large = {"w": torch.ones(20_000)}
    start, path = make("large", large), make("m", {"w": torch.zeros(20_000)})
    with disk_of(num_bytes), pytest.raises(DimatError, match=r"cannot be made: .*; nothing was written"):
        Ledger.create(tmp_path / "ledger", start, "mean")
    assert not (tmp_path / "ledger").exists() and not list(tmp_path.glob(".*"))
    ledger = Ledger.create(tmp_path / "ledger", start, "mean")
    with disk_of(num_bytes), pytest.raises(DimatError, match=r"cannot be (written to|used)"):
        ledger.add(path)
    assert ledger.version == 0 and list((ledger.path / "states").iterdir()) == [] and ledger.verify() == []
    ledger.add(path)
    with disk_of(num_bytes), pytest.raises(DimatError, match="cannot be written"):
        ledger.export(tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("*out*"))


# ---------------------------------------------------------------------------------------------------- what it writes


def test_a_folder_stays_a_folder_with_its_files(tmp_path: Path, make: Any) -> None:
    start = tmp_path / "hf"
    start.mkdir()
    (start / "config.json").write_text('{"model_type": "x", "dtype": "float32"}')
    (start / "tokenizer.json").write_text("{}")
    (start / "training.log").write_text("no part of the model")
    write_model(start / "model.safetensors", tensors(make("base", 0)))
    ledger = Ledger.create(tmp_path / "ledger", start, "mean")
    shutil.rmtree(start)  # the ledger is whole by itself
    ledger.add(make("m", 1))
    ledger.export(tmp_path / "out", dtype=torch.bfloat16)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors", "dimat_merge.json"} == found
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {str(one.dtype) for one in tensors(tmp_path / "out").values()} == {"torch.bfloat16", "torch.int64"}
    with pytest.raises(UsageError, match="out"):
        ledger.export(tmp_path / "out")
    ledger.export(tmp_path / "out", overwrite=True)
    assert tensors(tmp_path / "out")["a.bias"].dtype == torch.float32


def test_the_card_names_what_went_in(make: Any, base: Path, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "ties", density=0.5)
    entries = [ledger.add(make(f"m{i}", i + 1), weight=1.0 + i) for i in range(2)]
    digest = ledger.export(tmp_path / "out.safetensors")
    card = json.loads((tmp_path / "out.safetensors.merge.json").read_text())
    assert card["method"] == "ties" and card["digest"] == digest
    # All options: a release with other defaults goes on with those of the one that made the ledger.
    options = {name: option.default for name, option in options_of(find_method("ties")).items()} | {"density": 0.5}
    assert len(options) > 3
    assert card["options"] == ledger.status().as_json()["options"] == ledger.manifest.options == options
    told = [(one["name"], one["digest"], one["weight"]) for one in card["models"]]
    assert told == [(one.name, one.digest, one.weight) for one in entries]
    assert card["base"]["digest"] == digest_of(OnDisk(open_model(base)))
    assert {"dimat", "torch"} <= card["software"].keys()


def test_a_bfloat16_base_gives_bfloat16_and_a_wide_state(make: Any, tmp_path: Path) -> None:
    narrow = {"w": torch.ones(2, dtype=torch.bfloat16)}
    ledger = Ledger.create(tmp_path / "ledger", make("base", narrow), "task_arithmetic", scale=1.0)
    for i in range(4):  # each alone is lost in bfloat16, whose step at one is 2**-8 upwards
        ledger.add(make(f"m{i}", {"w": torch.full((2,), 1.0 + 2.0**-10 + i * 2.0**-20)}))
    assert ledger.merged()["w"].dtype == torch.bfloat16
    ledger.export(tmp_path / "wide.safetensors", dtype=torch.float32)
    assert float(tensors(tmp_path / "wide.safetensors")["w"][0]) == pytest.approx(1 + 4 * 2.0**-10, abs=1e-5)


# ------------------------------------------------------------------------------------------------------ constant size

ABSORB_TWENTY = """
import resource, sys, torch
from pathlib import Path
from dimat.continual import Ledger
from dimat.modelfile import write_model
torch.set_num_threads(1)
home = Path(sys.argv[1])
generator = torch.Generator().manual_seed(0)
def write(name):
    path = home / f"{name}.safetensors"
    tensors = {f"{i}.weight": torch.randn(256, 256, generator=generator) for i in range(8)}
    write_model(path, tensors)
    return path
ledger = Ledger.create(home / "ledger", write("base"), "opcm")
for i in range(20):
    ledger.add(write(f"m{i}"))
    (home / f"m{i}.safetensors").unlink()
    print(ledger.status().state_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_twenty_models_take_the_room_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ABSORB_TWENTY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    sizes, peaks = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert len(sizes) == 20 and len(set(sizes)) == 1
    model_kib = 8 * 256 * 256 * 4 // 1024
    assert peaks[-1] - peaks[2] < model_kib, peaks  # of 17 more models not one is held, nor the state of one (4 ×)


def test_what_cannot_be_cleared_away_fails_nothing(
    make: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "mean", keep=0)
    ledger.add(make("a", 1))

    def busy(path: Path) -> bool:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("dimat.continual.store.clear", busy)
    ledger.add(make("b", 2))  # the model is in when the old state is to be deleted
    assert [entry.name for entry in ledger.entries()] == ["a", "b"]
    monkeypatch.undo()
    ledger.add(make("c", 3))
    assert len(list((ledger.path / "states").iterdir())) == 1


def test_the_journal_keeps_the_sketch_of_the_update_for_kept_versions_alone(
    make: Any, base: Path, tmp_path: Path
) -> None:
    ledger = Ledger.create(tmp_path / "ledger", base, "mean", keep=1)
    for i in range(1, 6):
        ledger.add(make(f"m{i}", i))
    with ledger.journal.reading() as database:
        held = [row[0] for row in database.execute("SELECT version FROM versions WHERE sketch IS NOT NULL")]
    assert held == [4, 5]
    assert ledger.verify() == []
    ledger.undo()
    assert ledger.status().num_models == 4
