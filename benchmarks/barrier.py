"""What stands between two nets trained apart: loss barrier and midpoint, by how they are aligned and calibrated.

    python benchmarks/barrier.py            two MLPs, two ResNet-20 of width 4: about 25 minutes on two free cores
    python benchmarks/barrier.py --smoke    tiny nets on generated images, no claim
    python benchmarks/barrier.py --data FILE.npz    images of another file

Each pair learns the same images from different initialisations in different orders. The second net is then aligned to
the first: not at all, by weights, by activations, straight through; the line between them is judged as it is, and with
batch norms reset (ResNet-20) or REPAIR (the MLP has no batch norm), on test images and on training images that took
no part in the matching. Checked, for both pairs:

1. each matching lowers the barrier below that of the nets as they are, test and training, calibrated or not.
2. calibrated, the barrier after each matching is lower still. It fails on test images for the MLP matched by weights
   and straight through (docs/alignment.md says why), so the whole run ends with 1.

The table goes to stdout as markdown, the numbers and pictures to benchmarks/results/. Trained nets are kept there and
used again by the same settings, so that what was stopped goes on. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data" / "fashion_mnist.npz"
MATCHINGS = {
    "naive": "as they are",
    "weights": "weight matching",
    "activations": "activation matching",
    "straight_through": "straight-through",
}


@dataclass(frozen=True)
class Pair:
    """Two nets of one architecture: how they are trained, matched and judged."""

    name: str
    model: dict[str, Any]
    calibration: str
    train_limit: int
    epochs: int
    optimizer: str
    lr: float
    num_probe: int
    """Training samples on which activations are compared; 512 of them calibrate."""
    num_ste: int
    """Training samples of straight-through matching, in batches of 100."""
    epochs_ste: int
    num_test: int
    num_points: int


PAIRS = (
    Pair(
        "MLP", {"name": "mlp", "hidden": [512, 512, 512]}, "REPAIR", 60000, 10, "adam", 1e-3, 4096, 5000, 4, 10000, 11
    ),
    Pair("ResNet-20 ×4", {"name": "resnet20", "width": 4}, "reset", 8000, 3, "sgd", 0.05, 1024, 2000, 2, 1000, 5),
)


def smoke(pair: Pair) -> Pair:
    model = {"hidden": [24, 24]} if pair.model["name"] == "mlp" else {"width": 0.25}
    sizes: dict[str, int] = {"train_limit": 400, "epochs": 4, "num_probe": 200, "num_ste": 200, "epochs_ste": 1}
    return replace(pair, model=pair.model | model, num_test=200, num_points=5, lr=pair.lr * 2, **sizes)


def load(pair: Pair, data: str) -> Any:
    from dimat.tasks import load_task

    options = {"train_limit": pair.train_limit, "test_limit": pair.num_test}
    return load_task("arrays", model=pair.model, data=data, partition="iid", batch_size=64, options=options)


def net_path(pair: Pair, data: str, results: Path, seed: int) -> Path:
    """Where a trained net is kept: the name tells all that it depends on."""
    told = [pair.model, pair.train_limit, pair.epochs, pair.optimizer, pair.lr, Path(data).stat().st_size]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]
    return results / "barrier" / f"{pair.model['name']}-{digest}-{seed}.safetensors"


def train(job: tuple[Pair, str, Path, int]) -> float:
    """Train one net, unless it is there; the seconds it took."""
    pair, data, results, seed = job
    import torch
    from safetensors.torch import save_file

    from dimat.agent.train import make_optimizer, train_locally
    from dimat.config import TrainConfig

    path, start = net_path(pair, data, results, seed), time.monotonic()
    if path.exists():
        return 0.0
    torch.set_num_threads(1)
    task = load(pair, data)
    loader = task.data(0, 1, seed)
    torch.manual_seed(seed)
    model = task.model()
    config = TrainConfig(epochs=pair.epochs, batch_size=64, optimizer=pair.optimizer, lr=pair.lr, weight_decay=5e-4)
    train_locally(task, model, loader, make_optimizer(config, model), config, 1, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    return time.monotonic() - start


def measure(job: tuple[Pair, str, Path, str]) -> dict[str, Any]:
    """One matching of one pair: the share of units moved, and both curves."""
    pair, data, results, how = job
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional

    from dimat import align, calibrate

    torch.set_num_threads(1)
    start, task = time.monotonic(), load(pair, data)
    a, b = task.model(), task.model()
    for seed, net in enumerate((a, b)):
        net.load_state_dict(load_file(net_path(pair, data, results, seed)))
        net.eval()
    dataset = task.dataset()

    def batches(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(zip(dataset.scaling.apply(x).split(size), y.split(size), strict=True))

    order = torch.randperm(len(dataset.y_train), generator=torch.Generator().manual_seed(0))
    x, y = dataset.x_train[order], dataset.y_train[order]
    probe = [batch[0] for batch in batches(x[: pair.num_probe], y[: pair.num_probe], 128)]
    spec = align.permutation_spec(a, probe[0][:2])
    spec.verify(a, probe[0][:2])

    def loss(net: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(net(batch[0]), batch[1])

    def judge(net: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = net(batch[0])
        return functional.cross_entropy(logits, batch[1]), (logits.argmax(1) == batch[1]).float().mean()

    perms = spec.identity()
    if how == "weights":
        perms = align.weight_matching(spec, a.state_dict(), b.state_dict())
    elif how == "activations":
        perms = align.activation_matching(spec, a, b, probe)
    elif how == "straight_through":
        labelled = batches(x[: pair.num_ste], y[: pair.num_ste], 100)
        perms = align.straight_through(spec, a, b, labelled, loss, epochs=pair.epochs_ste, lr=0.1)
    b.load_state_dict(spec.apply(b.state_dict(), perms))

    def put_right(net: torch.nn.Module, alpha: float) -> None:
        if pair.calibration == "reset":
            calibrate.recalibrate(net, probe)
        else:
            calibrate.repair(net, [a, b], probe, weights=[1 - alpha, alpha])

    seconds = time.monotonic() - start
    last = slice(-pair.num_test, None)  # neither in the probe nor among the labelled ones
    judged = {"test": batches(dataset.x_test, dataset.y_test, 250), "training": batches(x[last], y[last], 250)}
    answer: dict[str, Any] = {"moved": spec.moved(perms), "seconds": seconds}
    for kind, calibration in (("plain", None), (pair.calibration, put_right)):
        for where, some in judged.items():
            curve = align.barrier(a, b, judge, some, num_points=pair.num_points, calibrate=calibration)
            answer[f"{kind}, {where}"] = asdict(curve)
    return answer


def generate(path: Path) -> None:
    """Images of ten classes: a pattern of their own each, under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 160, size=(10, 12, 12))

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(num) % 10
        return (patterns[labels] + rng.integers(0, 96, size=(num, 12, 12))).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = draw(400), draw(200)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="an .npz of images; default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="tiny nets on generated images, no claim")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.smoke:
        # Elsewhere: a smoke test leaves figures and trained nets alone.
        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder) / "images.npz"
            generate(images)
            run(tuple(smoke(pair) for pair in PAIRS), images, Path(folder), processes=0)
        return 0
    if not arguments.data.exists():
        print(f"{arguments.data} does not exist: name an .npz of images by --data", file=sys.stderr)
        return 2
    checks = run(PAIRS, arguments.data, RESULTS, arguments.processes)
    return 0 if all(checks.values()) else 1


def run(pairs: tuple[Pair, ...], data: Path, results: Path, processes: int) -> dict[str, bool]:
    """Train, match, judge, tell; the checks and whether they hold."""
    from dimat.align import Barrier, plot_barriers

    start, source = time.monotonic(), str(data)
    trainings = [(pair, source, results, seed) for pair in reversed(pairs) for seed in (0, 1)]  # the longest first
    measures = [(pair, source, results, how) for pair in reversed(pairs) for how in reversed(MATCHINGS)]
    if processes:
        # Spawn: torch's threads do not survive a fork.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            trained = list(pool.map(train, trainings))
            told = dict(zip([(pair.name, how) for pair, *_, how in measures], pool.map(measure, measures), strict=True))
    else:
        trained = [train(job) for job in trainings]
        told = {(job[0].name, job[-1]): measure(job) for job in measures}
    seconds = time.monotonic() - start

    checks: dict[str, bool] = {}
    print("| net | alignment | calibration | barrier, training | barrier, test | midpoint loss | midpoint accuracy |")
    print("|---|---|---|---|---|---|---|")
    for pair in pairs:
        kinds = ("plain", pair.calibration)
        curves = {
            (how, kind, where): Barrier(**told[pair.name, how][f"{kind}, {where}"])
            for how in MATCHINGS
            for kind in kinds
            for where in ("training", "test")
        }
        first = curves["naive", "plain", "test"]
        print(f"| {pair.name} | the two nets | | | | {ends(first.losses)} | {ends(first.metrics)} |")
        for how in MATCHINGS:
            for kind in kinds:
                training, test = (curves[how, kind, where] for where in ("training", "test"))
                print(
                    f"| | {MATCHINGS[how]} | {'none' if kind == 'plain' else kind} | {training.height:.3f} "
                    f"| {test.height:.3f} | {test.losses[test.middle]:.3f} | {test.metrics[test.middle]:.3f} |"
                )
        for how in list(MATCHINGS)[1:]:
            for kind in kinds:
                for where in ("training", "test"):
                    one, naive = (curves[each, kind, where].height for each in (how, "naive"))
                    words = f"{pair.name}, {kind}, {where}: {MATCHINGS[how]} {one:.3f} below {naive:.3f}"
                    checks[words] = one < naive
            for where in ("training", "test"):
                plain, right = (curves[how, kind, where].height for kind in kinds)
                words = f"{pair.name}, {where}, {MATCHINGS[how]}: {pair.calibration} {right:.3f} below {plain:.3f}"
                checks[words] = right < plain
        plot_barriers(
            {
                f"{MATCHINGS[how]}{'' if kind == 'plain' else ', ' + kind}": curves[how, kind, "test"]
                for how in MATCHINGS
                for kind in kinds
            },
            results / f"barrier_{pair.model['name']}.png",
            title=f"{pair.name}: two nets trained apart, on test images",
        )
    print()
    for check, holds in checks.items():
        print(f"{'holds ' if holds else 'FAILS '} {check}")
    print(f"{seconds:.0f} s, of these {sum(trained):.0f} s of training on one core")
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    answer = {
        "machine": machine,
        "data": data.name,
        "seconds": seconds,
        "seconds_training": trained,
        "pairs": [asdict(pair) for pair in pairs],
        "curves": {f"{name} | {how}": one for (name, how), one in told.items()},
        "checks": checks,
    }
    (results / "barrier.json").write_text(json.dumps(answer, indent=1))
    return checks


def ends(values: tuple[float, ...]) -> str:
    return f"{values[0]:.3f}, {values[-1]:.3f}"


if __name__ == "__main__":
    sys.exit(main())
