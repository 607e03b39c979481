"""One suite over every built-in task and the one that `dimat new` writes: what an agent relies on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from dimat.cli.new import new_task
from dimat.tasks import PROBE_LIMIT, Task, check_task, label_histogram, load_task, probe_batches
from dimat.tasks.base import batch_size

NUM_AGENTS = 4

NAMES = ["digits", "digits-mlp", "digits-dirichlet", "images", "series", "table", "table-column", "new"]

Make = Callable[[], Task]


def _file(folder, kind: str) -> str:
    random = np.random.default_rng(0)
    shape, dtype = {"images": ((6, 7, 2), "uint8"), "series": ((3, 9), "float16"), "table": ((5,), "float64")}[kind]
    content = {"person": np.arange(90) % 7}
    for split, size in (("train", 90), ("test", 30)):
        content[f"x_{split}"] = (random.random((size, *shape)) * 200).astype(dtype)
        content[f"y_{split}"] = np.arange(size) % 3
    np.savez(folder / f"{kind}.npz", **content)
    return str(folder / f"{kind}.npz")


@pytest.fixture(params=NAMES)
def arguments(request, tmp_path) -> dict:
    """The arguments of `load_task`."""
    name, _, variant = request.param.partition("-")
    if name == "new":
        module, _ = new_task("scaffolded", tmp_path)
        return {"name": f"{module}:Task"}
    if name == "digits":
        return {
            "name": "digits",
            "model": "mlp" if variant == "mlp" else "cnn",
            "partition": {"scheme": "dirichlet", "alpha": 0.3} if variant == "dirichlet" else "iid",
        }
    model = {"images": {"name": "resnet20", "width": 0.25}, "series": "cnn", "table": "mlp"}[name]
    partition = {"scheme": "column", "column": "person"} if variant else {"scheme": "classes"}
    return {"name": "arrays", "data": _file(tmp_path, name), "model": model, "partition": partition, "batch_size": 8}


@pytest.fixture
def make(arguments) -> Make:
    return partial(load_task, **arguments)


def epoch(loader) -> list[torch.Tensor]:
    return [tensor for batch in loader for tensor in batch]


def rows(tensors) -> list[bytes]:
    return [row.numpy().tobytes() for tensor in tensors for row in tensor]


def test_the_checker_has_nothing_to_say(arguments) -> None:
    reference = arguments.pop("name")
    findings = check_task(reference, **arguments, num_agents=NUM_AGENTS)
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert len(findings) >= 8


def test_it_is_a_task(make) -> None:
    assert isinstance(make(), Task)


def test_shards_are_disjoint_and_depend_on_the_seed_alone(make) -> None:
    shards = [sorted(rows(x for x, _ in make().data(agent, NUM_AGENTS, 7))) for agent in range(NUM_AGENTS)]
    again = [sorted(rows(x for x, _ in make().data(agent, NUM_AGENTS, 7))) for agent in range(NUM_AGENTS)]
    whole = sorted(rows(x for x, _ in make().data(0, 1, 7)))
    assert shards == again
    assert sorted(row for shard in shards for row in shard) == whole


def test_a_saved_generator_continues_the_order_of_batches(make) -> None:
    first = make().data(1, NUM_AGENTS, 0)
    epoch(first)
    state = first.generator.get_state()
    following = epoch(first)
    resumed = make().data(1, NUM_AGENTS, 0)
    resumed.generator.set_state(state)
    assert all(torch.equal(a, b) for a, b in zip(following, epoch(resumed), strict=True))


def test_training_lowers_the_loss(make) -> None:
    task = make()
    torch.manual_seed(0)
    model, loader = task.model(), task.data(0, NUM_AGENTS, 0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def train() -> float:
        losses = []
        for batch in loader:
            optimiser.zero_grad()
            loss = task.loss(model, batch)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    first = train()
    assert min(train() for _ in range(6)) < first


def test_the_probe_is_of_the_own_shard_and_small(make) -> None:
    task = make()
    own = rows(x for x, _ in task.data(2, NUM_AGENTS, 0))
    probe = [x for (x,) in probe_batches(task)]
    assert set(rows(probe)) <= set(own)
    assert sum(map(batch_size, probe)) == min(PROBE_LIMIT, len(own))
    assert min(map(batch_size, probe)) > 1
    assert all(torch.equal(a, b) for (a,), b in zip(probe_batches(task), probe, strict=True))


def test_the_probe_before_the_data_is_refused(make) -> None:
    with pytest.raises(Exception, match="data"):
        make().probe()


def test_the_histogram_counts_the_shard(make) -> None:
    task = make()
    labels = torch.cat([y for _, y in task.data(1, NUM_AGENTS, 0)])
    histogram = label_histogram(task)
    assert list(histogram.values()) == labels.bincount(minlength=len(histogram)).tolist()
    assert getattr(task, "num_samples", len(labels)) == len(labels)


def test_a_shared_probe_is_the_same_for_all_agents(make) -> None:
    tasks = [make() for _ in range(2)]
    for agent, task in enumerate(tasks):
        task.data(agent, NUM_AGENTS, 0)
    if not hasattr(tasks[0], "shared_probe"):
        assert type(tasks[0]).__module__.startswith("dimat_user_")  # only the built-in tasks promise it
        return
    first, second = (probe_batches(task, "shared") for task in tasks)
    assert all(torch.equal(a, b) for (a,), (b,) in zip(first, second, strict=True))
    everything = set(rows(x for x, _ in make().data(0, 1, 0)))
    assert set(rows(x for (x,) in first)) <= everything
    own = [set(rows(x for (x,) in probe_batches(task))) for task in tasks]
    assert not own[0] & own[1]
