"""Attention is really matched: the midpoint of two vision transformers trained apart, before and after matching.

    python benchmarks/attention.py --data mnist.npz    3 pairs on 20 000 images: about eight minutes on one core
    python benchmarks/attention.py                     3 pairs on scikit-learn's digits
    python benchmarks/attention.py --smoke             1 pair on digits, trained for seconds

Two small transformers (2 blocks, 6 heads, width 96) see the same training data in another order from another
initialisation. The midpoint of their weights is evaluated as it is, after matching by weights, after matching by
activations on 1024 training images, and after the latter with all heads left where they were. Checked:

1. matching by activations ends at least 0.20 above the naive midpoint in every pair, and 0.30 above in the mean;
2. matching by weights ends at least 0.10 above it in the mean; a single pair may end in a poor local optimum;
3. without the heads, matching by activations loses at least 0.10 in the mean: they are matched, and it matters.

The table goes to stdout, the numbers to benchmarks/results/attention-DATASET.json, the trained models beside it. Exit
code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dimat.align import match_activations, match_weights, permutation_spec
from dimat.tasks.arrays import ArraysTask
from dimat.tasks.digits import DigitsTask
from dimat.tasks.supervised import Dataset

RESULTS = Path(__file__).parent / "results"
WIDTH, HEADS, HIDDEN, DEPTH, TOKENS = 96, 6, 192, 2, 16
TRAIN_LIMIT, SAMPLES_SEEN, BATCH = 20_000, 80_000, 100
WAYS = ("naive", "weights", "activations", "activations, heads left")
IN_EVERY_PAIR = {"activations": 0.20}
IN_THE_MEAN = {"activations": 0.30, "weights": 0.10}
BY_HEADS = 0.10


class Block(nn.Module):
    """Attention and an MLP on the residual stream, each behind its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The stream (batch, tokens, width) behind the block."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, HEADS, WIDTH // HEADS)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A class token and 4 × 4 patches of an image."""

    def __init__(self, side: int, channels: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, WIDTH, side // 4, stride=side // 4)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, TOKENS + 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images (batch, channels, side, side)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def fresh(data: Dataset) -> ViT:
    return ViT(data.x_train.shape[-1], data.x_train.shape[1], int(data.y_train.max()) + 1)


def trained(data: Dataset, name: str, seed: int, samples: int) -> ViT:
    """A model trained by AdamW under a warmed-up cosine, from the cache when it is there."""
    path = RESULTS / "attention" / f"{name}-{samples}-{seed}.safetensors"
    torch.manual_seed(seed)
    model = fresh(data)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.3)
    per_epoch = len(data.y_train) // BATCH
    steps = max(1, samples // (per_epoch * BATCH)) * per_epoch
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for _ in range(steps // per_epoch):
        for rows in torch.randperm(len(data.y_train), generator=generator).split(BATCH)[:per_epoch]:
            loss = F.cross_entropy(model(data.scaling.apply(data.x_train[rows])), data.y_train[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset) -> float:
    batches = zip(data.x_test.split(500), data.y_test.split(500), strict=True)
    right = sum(int((model(data.scaling.apply(x)).argmax(1) == y).sum()) for x, y in batches)
    return right / len(data.y_test)


def compare(data: Dataset, one: ViT, other: ViT) -> dict[str, float]:
    """Accuracy of both ends, and of the midpoint in every way."""
    spec = permutation_spec(one, data.scaling.apply(data.x_train[:2]))
    spec.verify(one, data.scaling.apply(data.x_train[:2]))
    probe = [data.scaling.apply(rows) for rows in data.x_train[:1024].split(64)]
    a, b = one.state_dict(), other.state_dict()
    by_weights = match_weights(spec, a, b).perms
    by_activations = match_activations(spec, one, other, probe).perms
    plain = {group.name for group in spec.groups if group.structure == "plain"}
    heads_left = {name: perm for name, perm in by_activations.items() if name in plain}
    middle = fresh(data).eval()
    found = {"one": accuracy(one, data), "other": accuracy(other, data)}
    for way, perms in zip(WAYS, ({}, by_weights, by_activations, heads_left), strict=True):
        aligned = spec.apply(b, perms)
        middle.load_state_dict({name: (a[name] + aligned[name]) / 2 for name in a})
        found[way] = accuracy(middle, data)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="an .npz of images with x_train, y_train, x_test, y_test")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of models")
    parser.add_argument("--smoke", action="store_true", help="one pair trained for seconds, no claim")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = "digits" if arguments.data is None else arguments.data.stem
    task = DigitsTask() if arguments.data is None else ArraysTask(data=str(arguments.data), train_limit=TRAIN_LIMIT)
    data, samples = task.dataset(), 8_000 if arguments.smoke else SAMPLES_SEEN

    columns = ("one", "other", *WAYS)
    pairs = []
    print(f"accuracy on the test images of {name}: both models, and the midpoint of their weights")
    print(f"{'pair':6}" + "".join(f"{column:>{len(column) + 3}}" for column in columns))
    for seed in range(1 if arguments.smoke else arguments.seeds):
        one, other = (trained(data, name, 2 * seed + i, samples) for i in range(2))
        pairs.append(compare(data, one, other))
        print(f"{seed:<6}" + "".join(f"{pairs[-1][column]:>{len(column) + 3}.3f}" for column in columns), flush=True)
    mean = {column: sum(pair[column] for pair in pairs) / len(pairs) for column in columns}
    print(f"{'mean':6}" + "".join(f"{mean[column]:>{len(column) + 3}.3f}" for column in columns))

    checks: dict[str, bool] = {}
    for way, wanted in IN_EVERY_PAIR.items():
        least = min(pair[way] - pair["naive"] for pair in pairs)
        checks[f"{way}: {least:+.3f} over naive in the worst pair, at least +{wanted}"] = least >= wanted
    for way, wanted in IN_THE_MEAN.items():
        gain = mean[way] - mean["naive"]
        checks[f"{way}: {gain:+.3f} over naive in the mean, at least +{wanted}"] = gain >= wanted
    by_heads = mean["activations"] - mean["activations, heads left"]
    checks[f"heads: {by_heads:+.3f} by matching them too, at least +{BY_HEADS}"] = by_heads >= BY_HEADS
    print()
    for check, holds in checks.items():
        print(f"{'holds ' if holds else 'FAILS '} {check}")
    if arguments.smoke:
        return 0  # a smoke test claims nothing and leaves the figures alone
    RESULTS.mkdir(exist_ok=True)
    answer = {"samples": samples, "pairs": pairs, "mean": mean, "checks": checks}
    (RESULTS / f"attention-{name}.json").write_text(json.dumps(answer, indent=1))
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
