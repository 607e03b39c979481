"""Runs whose merges do not come in every round: when models travel, what is kept, how they are continued."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dimat.agent.checkpoint import rounds_held
from dimat.config import RunConfig, load_config
from dimat.coordinator import Store
from dimat.errors import Interrupted
from dimat.messages import Report, View
from dimat.runfolder import prepare
from dimat.simulate import simulate

SMALL = [
    "task.model.name=mlp", "task.model.hidden=[8]", "train.epochs=1", "train.batch_size=64", "rounds=8", "agents=4",
]  # fmt: skip


def run(config: RunConfig, folder: Path, on_view: Callable[[View], None] | None = None) -> Path:
    simulate(config, prepare(config, folder), on_view)
    return folder


def reports(folder: Path) -> dict[tuple[int, int], Report]:
    with Store.open(folder, read_only=True) as store:
        return {(report.agent, report.round): report for report in store.reports()}


def bits(folder: Path) -> list[bytes]:
    return [(folder / "checkpoints" / str(a) / "8.safetensors").read_bytes() for a in range(4)]


@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_models_travel_in_the_rounds_of_the_schedule_alone(tmp_path: Path, graph: str) -> None:
    settings = [*SMALL, "merge.schedule={name: shrinking, first: 3}", f"topology.graph={graph}"]
    for init, at_the_start in (("same", []), ("different", [1])):  # the one start that all adopt travels, too
        told = reports(run(load_config(None, [*settings, f"init={init}"]), tmp_path / init))
        travelled = [round for round in range(1, 9) if told[2, round].bytes_received]
        assert travelled == [*at_the_start, 3, 5, 6, 7, 8]
        assert not any(report.missing for report in told.values())


def test_a_late_run_continues_to_the_same_bits_from_whatever_all_hold(tmp_path: Path) -> None:
    """Agents may be as far apart as the long time without a merge: so many checkpoints are kept."""
    config = load_config(None, [*SMALL, "merge.schedule={name: late, budget: 2}", "merge.final=complete"])
    whole = run(config, tmp_path / "whole")

    def stop(view: View) -> None:
        if view.newest is not None and view.newest.round == 7:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        run(config, tmp_path / "halves", stop)
    run(config, tmp_path / "halves")
    assert bits(tmp_path / "halves") == bits(whole)
    assert rounds_held(whole / "checkpoints" / "0") == list(range(1, 9)), "7 rounds before the first merge, diameter 2"
    every = run(load_config(None, SMALL), tmp_path / "every")
    assert rounds_held(every / "checkpoints" / "0") == [5, 6, 7, 8]
