"""After an agreement whose sweeps were taken back, edges that close a long way round the tree are left out once."""

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimat.agent import sweeps
from dimat.agent.nearby import NEAR, nearby_row
from dimat.config import load_config
from dimat.coordinator import Store
from dimat.messages import Report
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.topology import reading_tree
from dimat.topology.mixing import is_doubly_stochastic
from dimat.topology.tree import steps_apart
from tests.agent.test_sweeps import agents

RUN = ["task.model.name=mlp", "agents=6", "topology.graph=ring", "init=different", "rounds=2"]
RUN += ["merge.basis=agree", "train.epochs=1", "task.partition.scheme=iid"]


def rows_of(tmp_path: Path, *settings: str) -> dict[int, dict[int, dict[int, float]]]:
    """The rows that a run has really used: by round and agent."""
    folder = prepare(load_config(None, [*RUN, *settings]), tmp_path / "run")
    simulate(load_config(folder / "config.yaml"), folder)
    with Store.open(folder, read_only=True) as store:
        reports: list[Report] = store.reports()
    return {number: {one.agent: dict(one.weights) for one in reports if one.round == number} for number in (1, 2)}


@given(st.integers(2, 12), st.floats(0.0, 0.6), st.integers(0, 10**6))
def test_steps_are_counted_along_the_tree_alone(size: int, density: float, seed: int) -> None:
    graph = nx.compose(nx.random_labeled_tree(size, seed=seed), nx.gnp_random_graph(size, density, seed=seed))
    _, parents = reading_tree(graph)
    lengths = dict(nx.all_pairs_shortest_path_length(nx.Graph(parents.items())))
    assert all(steps_apart(parents, one, other) == lengths[one][other] for one in graph for other in graph)


@pytest.mark.parametrize(
    ("graph", "left_out"),
    [("ring", {(4, 5)}), ("complete", set()), ("path", set()), ("grid", None), ("torus", None)],
)
def test_who_is_far_in_the_tree_is_left_out_and_its_weight_stays(
    graph: str, left_out: set[tuple[int, int]] | None
) -> None:
    some = agents(f"topology.graph={graph}", num=8)
    topology = some[0].topology
    root, parents = topology.tree()
    tree = nx.Graph(parents.items())
    matrix = np.zeros((8, 8))
    for one in some:
        whole, row = one.row(1), nearby_row(one, 1)
        for peer, weight in row.items():
            matrix[one.id, peer] = weight
        assert {peer: row[peer] for peer in row if peer != one.id} == {
            peer: whole[peer]
            for peer in whole
            if peer != one.id and nx.shortest_path_length(tree, one.id, peer) <= NEAR
        }
        assert sum(row.values()) == pytest.approx(1.0)
        if one.id != root and parents[one.id] in whole:
            assert parents[one.id] in row
    assert is_doubly_stochastic(matrix)
    if left_out is not None:
        gone = {(i, j) for i, j in topology.graph().edges if matrix[i, j] == 0}
        assert {tuple(sorted(edge)) for edge in gone} == left_out


@pytest.mark.parametrize("graph", ["exponential", "one_peer_exponential"])
def test_on_directed_and_changing_graphs_nobody_is_left_out(graph: str) -> None:
    """There one end alone would leave the other out, or the edge would not come back in the next round."""
    some = agents(f"topology.graph={graph}", num=8)
    assert all(nearby_row(one, 1) == one.row(1) for one in some)
    _, parents = some[0].topology.tree()
    assert any(steps_apart(parents, one.id, peer) > NEAR for one in some for peer in one.row(1)), "some are far"


def test_a_run_leaves_the_far_edge_out_of_its_first_merge_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweeps, "loss_of_mean", lambda agent, total, num_models: 1.0)  # it does not fall
    caplog.set_level("INFO")
    rows = rows_of(tmp_path)
    told = sorted(record.getMessage() for record in caplog.records if record.name == "dimat.agent.nearby")
    assert [text.split(":")[:3] for text in told] == [
        ["agent 3", " round 1", " agent 4 is left out"],
        ["agent 4", " round 1", " agent 3 is left out"],
    ]
    third = pytest.approx(1 / 3)
    assert rows[1][3] == {2: third, 3: pytest.approx(2 / 3)}
    assert rows[1][4] == {4: pytest.approx(2 / 3), 5: third}
    assert rows[1][1] == {0: third, 1: third, 2: third}
    assert rows[2][3] == {2: third, 3: third, 4: third}


def test_where_the_sweeps_have_helped_nobody_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def falls(agent: object, total: object, num_models: int) -> float:
        told.append(num_models)
        return 1.0 / len(told)

    monkeypatch.setattr(sweeps, "loss_of_mean", falls)
    assert {len(row) for row in rows_of(tmp_path)[1].values()} == {3}


def test_the_final_merge_is_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "loss_of_mean", lambda agent, total, num_models: 1.0)
    rows = rows_of(tmp_path, "merge.final=complete", "merge.every=2")
    assert all(len(row) == 6 for row in rows[2].values())
