"""Weight matching of two ResNet-50 with random weights: dimat against `rebasin` 0.0.47, on two threads.

    pip install --no-deps --target REBASIN rebasin==0.0.47 torchview graphviz tqdm
    python benchmarks/weight_matching.py --rebasin REBASIN    three seeds, a process for each side: about six minutes
    python benchmarks/weight_matching.py --smoke              a narrow net, one seed; rebasin where importable

Both sides get the same two models and an example input, find out what may be permuted, search, and permute the second
model; the seconds of all of that count. The objective is ⟨A, π(B)⟩ over all parameters, summed up in float64 from the
state dicts that either side leaves. Its part beyond the identity is shown as well: most of the rest are norms of ones.

Extra memory is the peak of the resident set beyond what the process had before the two models were made (after imports,
and after a small net went the same way); the models count. Checked: at least 5 times as fast in total; a mean objective
at most 0.5 % below; extra memory at most 4 models; tracing in at most 5 s; outputs unchanged. The numbers go to
benchmarks/results/weight_matching.json; exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "weight_matching.json"
NUM_THREADS = 2
MIN_SPEEDUP = 5.0
MAX_SHORTFALL = 0.005
MAX_MODELS = 4.0
MAX_TRACE_S = 5.0
HOW_TO_GET_REBASIN = (
    "rebasin cannot be imported. Get it with\n"
    "    pip install --no-deps --target REBASIN rebasin==0.0.47 torchview graphviz tqdm\n"
    "and say --rebasin REBASIN"
)


# --------------------------------------------------------------------------------------------------------- the models


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, and a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, 4 · width, ...)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Bottleneck ResNet for images; widths 64 and blocks 3, 4, 6, 3 make a ResNet-50 (He et al. 2015)."""

    def __init__(self, width: int, num_blocks: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], width
        for stage, num in enumerate(num_blocks):
            blocks = []
            for block in range(num):
                blocks.append(Bottleneck(channels, width << stage, 2 if stage and not block else 1))
                channels = 4 * (width << stage)
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, num_classes)."""
        x = self.layers(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def make(seed: int, small: bool) -> nn.Module:
    """A net with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    net = ResNet(8, (1, 2), 10) if small else ResNet(64, (3, 4, 6, 3), 1000)
    return net.eval()


# ------------------------------------------------------------------------------------------------- one side, one seed


def align_by_dimat(a: nn.Module, b: nn.Module, x: Tensor, seed: int) -> dict[str, float]:
    """Permute `b` in place; the seconds of each step."""
    from dimat.align import match_weights, permutation_spec

    start = time.perf_counter()
    spec = permutation_spec(b, x)
    traced = time.perf_counter()
    perms = match_weights(spec, a.state_dict(), b.state_dict(), seed=seed).perms
    solved = time.perf_counter()
    b.load_state_dict(spec.apply(b.state_dict(), perms))
    return {"trace_s": traced - start, "solve_s": solved - traced, "total_s": time.perf_counter() - start}


def align_by_rebasin(a: nn.Module, b: nn.Module, x: Tensor, seed: int) -> dict[str, float]:
    """The same by the other package."""
    from rebasin import PermutationCoordinateDescent

    torch.manual_seed(seed)
    start = time.perf_counter()
    descent = PermutationCoordinateDescent(a, b, x)
    traced = time.perf_counter()
    descent.calculate_permutations()
    solved = time.perf_counter()
    descent.apply_permutations()
    return {"trace_s": traced - start, "solve_s": solved - traced, "total_s": time.perf_counter() - start}


SIDES = {"dimat": align_by_dimat, "rebasin": align_by_rebasin}


def inner(a: nn.Module, b: nn.Module) -> float:
    """⟨A, B⟩ over the parameters."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return sum(float(torch.sum(x.double() * y.double())) for one, two in pairs for x, y in zip(one, two, strict=True))


def resident(field: str) -> int:
    """Bytes of the resident set: now (VmRSS), or at the peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


@torch.no_grad()
def measure(side: str, seed: int, small: bool) -> dict[str, float]:
    torch.set_num_threads(NUM_THREADS)
    align = SIDES[side]
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    align(make(0, True), make(1, True), x, seed)  # imports
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    a, b = make(1000 + seed, small), make(2000 + seed, small)
    found = {"identity": inner(a, b)}
    expected = b(x)
    found |= align(a, b, x, seed)
    found["extra_bytes"] = resident("VmHWM") - before
    found["objective"] = inner(a, b)
    found["model_bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in a.state_dict().values())
    found["output_error"] = float((b(x) - expected).norm() / expected.norm())
    return found


# ------------------------------------------------------------------------------------------------------ the comparison


def run(side: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--seed", str(seed)]
    command += ["--smoke"] if arguments.smoke else []
    command += ["--rebasin", str(arguments.rebasin)] if arguments.rebasin else []
    threads = {"OMP_NUM_THREADS": str(NUM_THREADS), "MKL_NUM_THREADS": str(NUM_THREADS)}
    threads["MALLOC_TRIM_THRESHOLD_"] = "1000000"  # for both sides: what was freed is not counted as held
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads})
    return json.loads(done.stdout.splitlines()[-1])


def report(table: dict[str, list[dict[str, float]]]) -> dict[str, bool]:
    """Print what was found; name -> whether a check holds."""
    print(
        "side      seed   trace s   solve s   total s   objective   beyond identity   memory in models   output error"
    )
    for side, rows in table.items():
        for seed, row in enumerate(rows):
            print(
                f"{side:<10}{seed:>4}{row['trace_s']:>10.2f}{row['solve_s']:>10.2f}{row['total_s']:>10.2f}"
                f"{row['objective']:>12.1f}{row['objective'] - row['identity']:>18.1f}"
                f"{row['extra_bytes'] / row['model_bytes']:>19.2f}{row['output_error']:>15.1e}"
            )
    ours = table["dimat"]
    memory = max(row["extra_bytes"] / row["model_bytes"] for row in ours)
    trace = max(row["trace_s"] for row in ours)
    error = max(row["output_error"] for row in ours)
    checks = {
        f"outputs of dimat's model are what they were, to {error:.1e} (at most 1e-4)": error <= 1e-4,
        f"tracing takes {trace:.2f} s (at most {MAX_TRACE_S:.0f})": trace <= MAX_TRACE_S,
        f"extra memory of {memory:.2f} models (at most {MAX_MODELS:.0f})": memory <= MAX_MODELS,
    }
    if "rebasin" in table:
        seconds = {side: sum(row["total_s"] for row in rows) for side, rows in table.items()}
        means = {side: statistics.mean(row["objective"] for row in rows) for side, rows in table.items()}
        speedup, above = seconds["rebasin"] / seconds["dimat"], means["dimat"] / means["rebasin"] - 1
        checks[f"{speedup:.1f} times as fast as rebasin (at least {MIN_SPEEDUP:.0f})"] = speedup >= MIN_SPEEDUP
        name = f"mean objective {above:+.2%} of rebasin's (at least {-MAX_SHORTFALL:.1%})"
        checks[name] = above >= -MAX_SHORTFALL
    return checks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a narrow net, one seed, no claim")
    parser.add_argument("--rebasin", type=Path, help="folder into which rebasin was installed (pip --target)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rebasin:
        sys.path.append(str(arguments.rebasin))
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.seed, arguments.smoke)))
        return 0

    has_rebasin = importlib.util.find_spec("rebasin") is not None
    if not has_rebasin and not arguments.smoke:
        print(HOW_TO_GET_REBASIN, file=sys.stderr)
        return 2
    sides = ["dimat", *(["rebasin"] if has_rebasin else [])]
    num_seeds = 1 if arguments.smoke else 3
    table: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(num_seeds):
        for side in sides:
            table[side].append(run(side, seed, arguments))
    checks = report(table)
    if not has_rebasin:
        print("rebasin: absent, not compared")
    if arguments.smoke:
        return 0  # a smoke test claims nothing and leaves the figures alone
    for name, holds in checks.items():
        print(f"{'holds ' if holds else 'FAILS '} {name}")
    machine = {"cpu": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__, "threads": NUM_THREADS}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "runs": table, "checks": checks}, indent=1))
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
