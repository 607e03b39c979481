"""Merge four Llama checkpoints of 134 million float32 parameters on disk: `dimat merge` against `mergekit` 0.1.5.

    python -m venv MERGEKIT && MERGEKIT/bin/pip install mergekit==0.1.5
    python benchmarks/batch.py --mergekit MERGEKIT       three rounds of both sides: about ten minutes, 6 GB of disk
    python benchmarks/batch.py --smoke                   tiny models, one round; mergekit where it is given

The models are a random base plus random noise, as Hugging Face folders. What is timed are whole processes, from the
command line to the merged folder: imports, reading, merging, writing. Both sides find the models in the page cache
(they are read right before) and an idle disk (what an earlier run left to write is written first), and take turns;
medians are compared, and so is the peak of the resident set of each process.

dimat names its inputs and its output by SHA-256 digests and flushes the output to the disk before it ends, within that
time. mergekit does neither.

Values are compared where the method is the same. TIES in mergekit (trim per tensor, weights before the election) breaks
ties of magnitude at the threshold arbitrarily; dimat keeps all of them. The few entries concerned, found by their
magnitudes, are counted apart.
DARE is random. Numbers go to benchmarks/results/batch.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

RESULTS = Path(__file__).parent / "results" / "batch.json"
NUM_MODELS = 4
NUM_ROUNDS = 3
MAX_RSS_BYTES = 700e6
MAX_DIFFERENCE = 1e-5
HOW_TO_GET_MERGEKIT = (
    "mergekit is not there. Get it with\n"
    "    python -m venv MERGEKIT && MERGEKIT/bin/pip install mergekit==0.1.5\n"
    "and say --mergekit MERGEKIT"
)
WEIGHTS = (0.4, 0.3, 0.2, 0.6)
DENSITY = 0.2


@dataclass(frozen=True)
class Method:
    """One merge, as either side is told.

    Attributes:
        dimat: method, and options.
        mergekit: the same in a recipe.
        needs_base: whether the base takes part.
        min_ratio: how many times as fast dimat has to be.
        same: whether both sides compute the same values.
    """

    dimat: tuple[str, ...]
    mergekit: dict[str, Any]
    needs_base: bool
    min_ratio: float
    same: bool


METHODS = {
    "linear": Method(("mean",), {"merge_method": "linear"}, False, 2.0, True),
    "task arithmetic": Method(("task_arithmetic",), {"merge_method": "task_arithmetic"}, True, 2.0, True),
    "ties": Method(
        ("ties", "-s", f"density={DENSITY}", "-s", "trim=tensor"),
        {"merge_method": "ties", "parameters": {"normalize": True}},
        True,
        4.0,
        True,
    ),
    "dare-ties": Method(
        ("dare", "-s", f"density={DENSITY}", "-s", "signs=ties"),
        {"merge_method": "dare_ties", "parameters": {"normalize": True}},
        True,
        3.0,
        False,
    ),
}


# --------------------------------------------------------------------------------------------------------- the models


def llama_config(smoke: bool) -> dict[str, Any]:
    hidden, layers, inner, vocabulary = (32, 2, 64, 128) if smoke else (768, 12, 2048, 32000)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4 if smoke else 12,
        "num_key_value_heads": 4 if smoke else 12,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{one}_proj.weight": (hidden, hidden) for one in "qkvo"}
        shapes |= {f"{name}.mlp.{one}_proj.weight": (inner, hidden) for one in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{name}.{one}_layernorm.weight": (hidden,) for one in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def make_models(folder: Path, smoke: bool) -> list[Path]:
    """The base and the models."""
    config = llama_config(smoke)
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in llama_shapes(config).items()}
    places = [folder / "base", *(folder / f"model-{i}" for i in range(NUM_MODELS))]
    for place in places:
        model = base
        if place.name != "base":
            model = {name: one + torch.randn(one.shape, generator=generator) * 0.002 for name, one in base.items()}
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config, indent=1))
        save_file(model, place / "model.safetensors", metadata={"format": "pt"})
    return places


# ---------------------------------------------------------------------------------------------------------- the sides


def run_dimat(method: Method, base: Path, models: list[Path], out: Path) -> list[str]:
    """The command."""
    command = [sys.executable, "-m", "dimat", "merge", *method.dimat, *map(str, models), "--out", str(out)]
    command += ["--weights", ",".join(map(str, WEIGHTS))]
    return command + (["--base", str(base)] if method.needs_base else [])


def run_mergekit(executable: Path, method: Method, base: Path, models: list[Path], out: Path) -> list[str]:
    """The command; its recipe is written beside the output."""
    given = [
        {"model": str(model), "parameters": {"weight": weight, **({"density": DENSITY} if method.needs_base else {})}}
        for model, weight in zip(models, WEIGHTS, strict=True)
    ]
    recipe: dict[str, Any] = {**method.mergekit, "models": given, "dtype": "float32"}
    if method.needs_base:
        recipe["base_model"] = str(base)
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return [str(executable), str(path), str(out)]


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's answer from a process of its own: what a process once held counts as the peak of its children."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def warm_up(places: list[Path]) -> None:
    """Have the models in the page cache, and nothing left to write.

    mergekit leaves its output to the page cache, and systems take back pages that nobody used for some seconds: whoever
    came next would wait for both.
    """
    os.sync()
    for place in places:
        with _weights(place).open("rb", buffering=0) as file:
            buffer = bytearray(1 << 20)
            while file.readinto(buffer):
                pass


def measure(command: list[str]) -> dict[str, float]:
    """Seconds and peak resident bytes of a whole process.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {output.read().decode(errors='replace')[-3000:]}")
    return {
        "seconds": seconds,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }


def compare(a: Path, b: Path, base: Path, models: list[Path]) -> dict[str, float]:
    """How far two merged models are apart.

    `difference` is the largest one, relative to the largest entry of its tensor. Entries of magnitude exactly that of
    the threshold of TIES in one of the models are counted instead: `apart` is the share of all entries that differ by
    more than `MAX_DIFFERENCE` and are at a threshold.
    """
    largest, num_apart, num_entries = 0.0, 0, 0
    with safe_open(_weights(a), "pt") as one, safe_open(_weights(b), "pt") as other:
        assert sorted(one.keys()) == sorted(other.keys()), "the merged models have different tensors"
        for name in one.keys():  # noqa: SIM118 - not a mapping
            x, y = one.get_tensor(name), other.get_tensor(name)
            assert (x.dtype, x.shape) == (y.dtype, y.shape), f"{name} differs in dtype or shape"
            difference = (x - y).abs_() / y.abs().max()
            places = torch.nonzero(difference.view(-1) > MAX_DIFFERENCE)[:, 0]
            num_entries += x.numel()
            if len(places):
                at_threshold = places[_at_threshold(name, places, base, models)]
                num_apart += len(at_threshold)
                difference.view(-1)[at_threshold] = 0
            largest = max(largest, float(difference.max()))
    return {"difference": largest, "apart": num_apart / num_entries}


def _at_threshold(name: str, places: torch.Tensor, base: Path, models: list[Path]) -> torch.Tensor:
    """Which of the entries `places` have, in one of the models, the smallest magnitude that is kept."""
    found = torch.zeros(len(places), dtype=torch.bool)
    with safe_open(_weights(base), "pt") as file:
        anchor = file.get_tensor(name).view(-1)
    for model in models:
        with safe_open(_weights(model), "pt") as file:
            magnitudes = (file.get_tensor(name).view(-1) - anchor).abs_()
        rank = len(magnitudes) - max(1, int(DENSITY * len(magnitudes))) + 1
        found |= magnitudes[places] == magnitudes.kthvalue(rank).values
    return found


def _weights(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    assert len(found) == 1, f"{folder} has {len(found)} files of weights, expected one"
    return found[0]


# ------------------------------------------------------------------------------------------------------ the comparison


def run(name: str, folder: Path, places: list[Path], num_rounds: int, mergekit: Path | None) -> dict[str, Any]:
    """One method on both sides, in turns."""
    method, (base, *models) = METHODS[name], places
    sides: dict[str, Callable[[Path], list[str]]] = {"dimat": lambda out: run_dimat(method, base, models, out)}
    if mergekit is not None:
        executable = mergekit / "bin" / "mergekit-yaml"
        sides["mergekit"] = lambda out: run_mergekit(executable, method, base, models, out)
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    outs = {side: folder / f"by-{side}" for side in sides}
    for _ in range(num_rounds):
        for side, command in sides.items():
            shutil.rmtree(outs[side], ignore_errors=True)
            warm_up([base, *models])
            rows[side].append(measure(command(outs[side])))
    found: dict[str, Any] = {side: _medians(row) for side, row in rows.items()} | {"runs": rows}
    if mergekit is not None:
        found["ratio"] = found["mergekit"]["seconds"] / found["dimat"]["seconds"]
        if method.same:
            found |= apart(compare, outs["dimat"], outs["mergekit"], base, models)
    for out in outs.values():
        shutil.rmtree(out)
    return found


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def show(name: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    line = f"{name:<16}{row['dimat']['seconds']:>10.2f}{row['dimat']['peak_rss_bytes'] / 1e6:>10.0f}"
    if "mergekit" in row:
        line += f"{row['mergekit']['seconds']:>13.2f}{row['mergekit']['peak_rss_bytes'] / 1e6:>10.0f}"
        line += f"{row['ratio']:>8.1f}"
        line += f"{row['difference']:>13.1e}{row['apart']:>16.1e}" if "difference" in row else ""
    print(line, flush=True)


def judge(table: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """What is checked -> whether it holds."""
    checks: dict[str, bool] = {}
    for name, row in table.items():
        peak = max(one["peak_rss_bytes"] for one in row["runs"]["dimat"])
        checks[f"{name}: peak of {peak / 1e6:.0f} MB (at most {MAX_RSS_BYTES / 1e6:.0f})"] = peak <= MAX_RSS_BYTES
        if "ratio" in row:
            wanted = METHODS[name].min_ratio
            checks[f"{name}: {row['ratio']:.1f} times as fast (at least {wanted:.0f})"] = row["ratio"] >= wanted
        if "difference" in row:
            words = f"{name}: values differ by {row['difference']:.1e} (at most {MAX_DIFFERENCE:.0e})"
            checks[words] = row["difference"] <= MAX_DIFFERENCE
    return checks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny models, one round, no claim")
    parser.add_argument("--mergekit", type=Path, help="virtual environment into which mergekit was installed")
    parser.add_argument("--only", action="append", choices=METHODS, help="this method alone (repeatable)")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    arguments = parser.parse_args()
    if arguments.mergekit is None and not arguments.smoke:
        print(HOW_TO_GET_MERGEKIT, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="batch-") as folder:
        places = apart(make_models, Path(folder), arguments.smoke)
        num_rounds = 1 if arguments.smoke else arguments.rounds
        table = {}
        print("method             dimat s   MB peak   mergekit s   MB peak   ratio   difference   entries apart")
        for name in arguments.only or METHODS:
            table[name] = run(name, Path(folder), places, num_rounds, arguments.mergekit)
            show(name, table[name])
    checks = judge(table)
    if arguments.mergekit is None:
        print("mergekit: absent, not compared")
    if arguments.smoke:
        return 0  # a smoke test claims nothing and leaves the figures alone
    for name, holds in checks.items():
        print(f"{'holds ' if holds else 'FAILS '} {name}")
    if table.keys() != METHODS.keys():
        return 0 if all(checks.values()) else 1
    machine = {"cpu": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "methods": table, "checks": checks}, indent=1))
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
