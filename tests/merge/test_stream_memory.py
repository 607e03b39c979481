"""A limit of memory: kept by the whole process, or refused before a weight is read."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dimat.errors import UsageError
from dimat.merge import Fold, demand, make_fold
from dimat.merge.demand import Kind, demand_of
from dimat.merge.memory import SLACK, SPARE_BYTES, Given, default_plan, largest_kinds, plan_within, state_bytes
from dimat.merge.source import InMemory
from dimat.merge.stream import merge_files
from dimat.modelfile import ModelFile, open_model, write_model

MEBIBYTE = 2**20
CHILD = """
import json, re, sys
from pathlib import Path

import psutil

from dimat.merge import make_fold
from dimat.merge.stream import merge_files
from dimat.modelfile import open_model

folder, method, options, extra_bytes = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
models = [open_model(path) for path in sorted(folder.glob("model-*"))]
limit = psutil.Process().memory_info().rss + extra_bytes
merge_files(
    make_fold(method, options),
    models[1:],
    folder / "out.safetensors",
    base=models[0],
    memory_bytes=limit,
    overwrite=True,
)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"limit": limit, "peak": 1024 * int(peak[1]), "models": sum(model.num_bytes for model in models)}))
"""


def run(folder: Path, method: str, options: dict[str, Any], extra_bytes: int) -> dict[str, int]:
    command = [sys.executable, "-c", CHILD, str(folder), method, json.dumps(options), str(extra_bytes)]
    # Two lanes, whatever the machine; threads that wait sleep, so that others on it do not make them wait for long.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three models of 48 MiB: a large tensor, and many that are smaller than a slice."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    for i in range(4):
        tensors = {f"layers.{n}": torch.randn(300, 800, generator=generator) for n in range(20)}
        tensors["embedding"] = torch.randn(8192, 1000, generator=generator)
        write_model(folder / f"model-{i}.safetensors", tensors)
    return folder


@pytest.mark.parametrize(
    ("method", "options"), [("task_arithmetic", {}), ("ties", {}), ("ties", {"trim": "tensor"}), ("dare", {})]
)
def test_models_several_times_larger_than_the_limit_are_merged_within_it(
    method: str, options: dict[str, Any], models: Path
) -> None:
    found = run(models, method, options, 72 * MEBIBYTE)
    assert found["models"] > 2.5 * 72 * MEBIBYTE
    assert found["peak"] <= found["limit"]


@pytest.mark.parametrize("num_rows", [128, 100])
def test_tensors_that_are_taken_whole_keep_within_it_too(num_rows: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(4):
        tensors = {f"layers.{n}": torch.randn(128, 4096, generator=generator) for n in range(24)}
        for tensor in tensors.values():
            tensor[num_rows:] = 1  # rows that no model has changed: another way to decompose them
        write_model(tmp_path / f"model-{i}.safetensors", tensors)
    found = run(tmp_path, "opcm", {}, 110 * MEBIBYTE)
    assert found["models"] > 1.5 * 110 * MEBIBYTE
    assert found["peak"] <= found["limit"]


def test_large_integers_keep_within_it_too(tmp_path: Path) -> None:
    for i in range(4):
        write_model(tmp_path / f"model-{i}.safetensors", {"ids": torch.arange(8 * MEBIBYTE) + i, "w": torch.ones(3)})
    found = run(tmp_path, "mean", {}, 80 * MEBIBYTE)
    assert found["models"] > 3 * 80 * MEBIBYTE
    assert found["peak"] <= found["limit"]


def test_a_later_model_of_a_wider_dtype_keeps_within_it_too(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for i, dtype in enumerate([torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float64]):
        tensors = {f"layers.{n}": torch.randn(1000, 2000, generator=generator).to(dtype) for n in range(6)}
        write_model(tmp_path / f"model-{i}.safetensors", tensors)
    found = run(tmp_path, "model_stock", {}, 205 * MEBIBYTE)
    assert found["peak"] <= found["limit"]


def test_a_small_square_beside_a_large_strip_keeps_within_it_too(tmp_path: Path) -> None:
    """The strip has more entries, the square takes more memory to decompose."""
    generator = torch.Generator().manual_seed(0)
    for i in range(3):
        tensors = {f"strips.{n}": torch.randn(16, 80_000, generator=generator) for n in range(3)}
        tensors |= {f"squares.{n}": torch.randn(1100, 1100, generator=generator) for n in range(4)}
        write_model(tmp_path / f"model-{i}.safetensors", tensors)
    found = run(tmp_path, "opcm", {}, 190 * MEBIBYTE)
    assert found["peak"] <= found["limit"]


# ---- what does not fit


def small_models(folder: Path, shape: tuple[int, ...] = (2000, 1000)) -> list[ModelFile]:
    paths = [folder / f"model-{i}.safetensors" for i in range(2)]
    for path in paths:
        write_model(path, {"bias": torch.zeros(3), "head.weight": torch.zeros(shape)})
    return [open_model(path) for path in paths]


def test_what_cannot_fit_is_refused_with_the_least_limit_that_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_models(tmp_path)
    monkeypatch.setattr(ModelFile, "read", None)
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match=r"tensor 'head\.weight' \[2000, 1000\] takes \d+MiB") as caught:
        merge_files(make_fold("model_stock"), files[:1], out, base=files[1], memory_bytes=50 * MEBIBYTE)
    assert not out.exists()
    hint = re.search(r"--memory (\d+)MiB", str(caught.value.hint))
    assert hint is not None
    monkeypatch.undo()
    merge_files(make_fold("model_stock"), files[:1], out, base=files[1], memory_bytes=int(hint[1]) * MEBIBYTE)
    assert out.exists()


def given(fold: Fold, *shapes: tuple[int, ...], num_models: int = 2) -> Given:
    source = InMemory("a", {f"t{i}": torch.zeros(shape) for i, shape in enumerate(shapes)})
    dtypes = dict.fromkeys(source.tensors, torch.float32)
    return Given(fold, [fold] * num_models, [source] * num_models, source, [], dtypes)


def test_lanes_are_given_up_before_the_merge_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dimat.merge.memory.torch.get_num_threads", lambda: 2)
    what = given(make_fold("model_stock"), (3000, 1000))
    with pytest.raises(UsageError) as caught:
        plan_within(what, 1)
    hint = re.search(r"--memory (\d+)MiB", str(caught.value.hint))
    assert hint is not None
    least = int(hint[1]) * MEBIBYTE - SPARE_BYTES
    assert plan_within(what, least + 20 * MEBIBYTE).num_lanes == 0
    assert plan_within(what, least + 2000 * MEBIBYTE) == default_plan(2)
    assert [plan_within(what, least + extra * MEBIBYTE).num_lanes for extra in (60, 2000)] == [1, 2]
    assert [plan_within(what, least + extra * MEBIBYTE).tight for extra in (20, 60, 2000)] == [True, True, False]


def test_slices_take_the_same_however_large_the_tensor() -> None:
    mean = make_fold("mean")
    kinds = [given(mean, (2000, size)).kind("t0")[0] for size in (1000, 4000)]
    assert kinds[0].shape == kinds[1].shape
    whole = dataclasses.replace(mean, elementwise=False)
    assert [given(whole, (2000, size)).kind("t0")[0].shape for size in (200, 400)] == [(2000, 200), (2000, 400)]


def test_the_largest_are_found_by_entries_and_by_the_smaller_side() -> None:
    whole = given(make_fold("opcm"), (4, 100), (15, 15), (10, 10), (30,), (40,), (2, 3, 50), (9, 4, 4), ())
    assert {kind.name for kind in largest_kinds(whole)} == {"t0", "t1", "t4", "t5", "t6", "t7"}


@pytest.mark.parametrize("wide", [0, 2, 4])
def test_a_trial_counts_the_widest_dtype_wherever_it_comes(wide: int) -> None:
    mean = make_fold("mean")
    dtypes = [torch.float64 if i == wide else torch.bfloat16 for i in range(5)]
    demand_of(kind(mean, (10,)))  # what is loaded at the first trial is in no later one
    found = demand_of(dataclasses.replace(kind(mean, (50_000,), 5), dtypes=dtypes))
    both = demand_of(dataclasses.replace(kind(mean, (50_000,), 2), dtypes=[torch.float64, torch.bfloat16]))
    for got, least in zip(dataclasses.astuple(found), dataclasses.astuple(both), strict=True):
        # What Python holds beside the tensors differs by 20 kB from trial to trial; a dtype not counted is 100 kB.
        assert least - 40_000 <= got <= 1.5 * least


# ---- trials


def kind(fold: Fold, shape: tuple[int, ...], num_models: int = 2) -> Kind:
    models = [torch.float32] * num_models
    return Kind(fold, [fold] * num_models, "t", models, torch.float32, {}, shape, torch.float32)


def test_a_trial_counts_what_torch_and_numpy_hold_at_once() -> None:
    def finish(state: Any, base: Any, scalars: Any) -> torch.Tensor:
        held = [state["sum"] + i for i in range(10)]  # ten tensors beside the state
        held.append(torch.from_numpy(state["sum"].double().numpy() + 1.0))  # 8 bytes an entry, twice
        return torch.stack([one.float() for one in held]).sum(0)

    fold = make_fold("mean")
    entries = 40_000
    plain = demand_of(kind(fold, (entries,)))
    greedy = demand_of(kind(dataclasses.replace(fold, finish=finish), (entries,)))
    assert plain.state == greedy.state == 4 * entries + 8
    assert greedy.fold - plain.fold >= (10 * 4 + 2 * 8) * entries - plain.fold
    assert 8 * entries <= plain.fold <= 40 * entries
    assert 4 * entries <= plain.look <= 16 * entries


@pytest.mark.parametrize("method", ["mean", "ties", "model_stock", "opcm"])
def test_a_trial_on_small_tensors_tells_what_large_ones_take(method: str) -> None:
    fold = make_fold(method)
    large = kind(fold, (512, 1024))
    estimate, exact = demand_of(large), demand._tried(large, large.shape, 2)
    for got, wanted in ((estimate.fold, exact.fold), (estimate.look, exact.look), (estimate.state, exact.state)):
        assert wanted <= SLACK * got <= 1.7 * wanted


def test_a_trial_counts_the_larger_way_to_decompose() -> None:
    what = kind(make_fold("opcm"), (32, 1024))
    common, low_rank = (demand._try(what, what.shape, 2, untouched=untouched).fold for untouched in (False, True))
    assert min(demand_of(what).fold, low_rank) > 1.2 * common  # a try is repeated to about 10 KB of Python's own


def test_a_state_that_grows_is_counted_for_all_models() -> None:
    def absorb(state: Any, x: torch.Tensor, *_: Any, **__: Any) -> Any:
        return {**state, str(len(state)): x}

    fold = Fold(
        init=lambda base: {},
        absorb=absorb,
        combine=lambda a, b: a,
        finish=lambda state, base, scalars: state["0"],
        memory="linear",
    )
    demand_of(kind(fold, (10,)))  # what is loaded at the first trial is in no later one
    one, many = (demand_of(kind(fold, (50_000,), num_models)) for num_models in (2, 12))
    assert (one.state, many.state) == (2 * 200_000, 12 * 200_000)
    assert many.fold - one.fold >= 10 * 200_000


def test_states_on_disk_are_measured_by_tensor() -> None:
    ties = given(make_fold("ties"), (100, 30), (7,), ())
    per_tensor = 8  # the sum of the weights
    assert abs(state_bytes(ties) - (4 * 4 * (3000 + 7 + 1) + 3 * per_tensor)) <= 100
