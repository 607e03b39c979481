"""What `dimat check topology` tells the author of a plug-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from dimat.topology import check_topology

HEADER = "import itertools\nimport random\nimport networkx as nx\nfrom dimat.errors import TopologyError\n"


def check(tmp_path: Path, body: str, signature: str = "n, *, round=0, seed=0") -> list[str]:
    path = tmp_path / "plug.py"
    path.write_text(f"{HEADER}count = itertools.count()\ndef build({signature}):\n    {body}\n", encoding="utf-8")
    return check_topology(f"{path}:build")


def test_a_good_one_has_no_problems(tmp_path: Path) -> None:
    assert check(tmp_path, "return nx.cycle_graph(n)") == []


def test_a_size_may_be_refused_by_name(tmp_path: Path) -> None:
    refuse = "if n < 5: raise TopologyError('wheels have at least 5 agents')\n    return nx.wheel_graph(n)"
    assert check(tmp_path, refuse) == []


@pytest.mark.parametrize(
    ("body", "problem", "cure"),
    [
        ("return nx.gnp_random_graph(n, 0.5, seed=round)", "not connected", "@dimat.topology.periodic"),
        ("return nx.path_graph(n) if next(count) % 2 else nx.star_graph(n - 1)", "different graphs", "Random(seed)"),
        ("return nx.grid_2d_graph(1, n)", "nodes that are no agents", "convert_node_labels_to_integers"),
        ("return nx.MultiGraph(nx.cycle_graph(n))", "hold an edge twice", "networkx.Graph(graph)"),
        ("return nx.Graph([*nx.cycle_graph(n).edges, (1, 1)])", "to itself", "selfloop_edges"),
        ("return n", "gave a int", "expected a networkx.Graph"),
        (
            "return nx.cycle_graph(n) if n > 4 else nx.nothing()",
            "for 2 agents it raises AttributeError",
            "TopologyError",
        ),
        ("raise TopologyError('only on Sundays')", "no size of 2, 4, 5, 8 agents is accepted", "only on Sundays"),
        ("return nx.path_graph(n - 1)", "has 1 agents, and 2 were asked for", ""),
    ],
)
def test_each_problem_is_named_with_its_cure(tmp_path: Path, body: str, problem: str, cure: str) -> None:
    problems = check(tmp_path, body)
    assert problems and all(isinstance(sentence, str) for sentence in problems)
    assert problem in problems[0] and cure in problems[0]


def test_a_signature_without_the_contracts_keywords(tmp_path: Path) -> None:
    (problem,) = check(tmp_path, "return nx.cycle_graph(n)", signature="n, seed=0")
    assert "does not take the keyword 'round'" in problem and "fn(n, *, round=0, seed=0)" in problem


def test_a_reference_that_leads_nowhere(tmp_path: Path) -> None:
    assert "does not exist" in check_topology(str(tmp_path / "none.py:build"))[0]
    assert "does not exist" in check_topology(str(tmp_path / "none.yaml"))[0]


def test_a_file_is_checked_at_its_own_size(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("edges: [[0, 1], [1, 2]]", encoding="utf-8")
    assert check_topology(str(path)) == []
    path.write_text("edges: [[0, 1], [2, 3]]", encoding="utf-8")
    assert "falls into 2 parts" in check_topology(str(path))[0]
