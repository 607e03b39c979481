"""Graphs from files, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from dimat.errors import PluginError, TopologyError, UsageError
from dimat.topology import build, load_topology, mixing_matrix

TRIANGLE_TAIL = {(0, 1), (1, 2), (0, 2), (2, 3)}


def written(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def plain(graph: nx.Graph) -> set[tuple[int, int]]:
    return set(graph.edges)


def test_yaml_with_edges(tmp_path: Path) -> None:
    file = written(tmp_path, "g.yaml", "edges: [[0, 1], [1, 2], [0, 2], [2, 3]]\n")
    assert plain(build(file)) == plain(build(file, 4)) == TRIANGLE_TAIL


def test_yaml_with_direction_names_and_weights(tmp_path: Path) -> None:
    text = "names: [Oslo, Bergen]\ndirected: true\nedges: [[Bergen, Oslo], [Oslo, Bergen]]\nweights: [0.25, 0.5]\n"
    file = written(tmp_path, "g.yml", text)
    graph = build(file)
    assert graph.is_directed() and dict(graph.nodes(data="name")) == {0: "Oslo", 1: "Bergen"}
    assert load_topology(file, mixing="edge_weights").matrix().tolist() == [[0.75, 0.25], [0.5, 0.5]]
    inline = written(tmp_path, "h.yml", "names: [Oslo, Bergen]\nedges: [[0, 1, 0.5]]\n")
    assert build(inline).edges[0, 1]["weight"] == 0.5 and build(inline).nodes[1]["name"] == "Bergen"


def test_names_without_a_list_number_agents_in_the_order_of_the_file(tmp_path: Path) -> None:
    graph = build(written(tmp_path, "g.yaml", "edges: [[Lund, Oslo], [Oslo, Bergen]]\n"))
    assert dict(graph.nodes(data="name")) == {0: "Lund", 1: "Oslo", 2: "Bergen"}
    assert plain(graph) == {(0, 1), (1, 2)}


def test_yaml_with_a_generator_options_and_size(tmp_path: Path) -> None:
    file = written(tmp_path, "g.yaml", "generator: torus\nagents: 12\noptions: {rows: 2}\n")
    assert nx.utils.graphs_equal(build(file), build("torus", 12, rows=2))
    assert nx.utils.graphs_equal(build(file, rows=3), build("torus", 12, rows=3))
    open_size = written(tmp_path, "h.yaml", "generator: ring\n")
    assert build(open_size, 7).number_of_nodes() == 7
    with pytest.raises(TopologyError, match="say how many"):
        build(open_size)


def test_a_generator_beside_the_yaml_file_is_found_from_anywhere(tmp_path: Path) -> None:
    code = "import networkx as nx\ndef build(n, *, round=0, seed=0):\n    return nx.wheel_graph(n)\n"
    written(tmp_path, "wheel.py", code)
    file = written(tmp_path, "wheel.yaml", "generator: wheel.py:build\n")
    assert plain(build(file, 5)) == set(nx.wheel_graph(5).edges)


def test_graphml_with_and_without_names(tmp_path: Path) -> None:
    graph = nx.Graph()
    graph.add_edge("n0", "n1", weight=0.5)
    graph.add_edge("n1", "n2", weight=0.25)
    graph.nodes["n2"]["label"] = "Charité"
    nx.write_graphml(graph, tmp_path / "named.graphml")
    named = build(str(tmp_path / "named.graphml"))
    assert dict(named.nodes(data="name")) == {0: "n0", 1: "n1", 2: "Charité"}
    assert {(u, v): w for u, v, w in named.edges(data="weight")} == {(0, 1): 0.5, (1, 2): 0.25}
    directed = nx.cycle_graph(4, create_using=nx.DiGraph)
    nx.write_graphml(directed, tmp_path / "cycle.graphml")
    assert nx.utils.graphs_equal(build(str(tmp_path / "cycle.graphml"), 4), directed)


@pytest.mark.parametrize("key", ["links", "edges"])
def test_node_link_json(tmp_path: Path, key: str) -> None:
    nodes = [{"id": i} for i in range(3)]
    links = [{"source": 0, "target": 1}, {"source": 1, "target": 2, "weight": 0.5}, {"source": 2, "target": 0}]
    content = {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, key: links}
    graph = build(written(tmp_path, "g.json", json.dumps(content)))
    assert graph.is_directed() and plain(graph) == {(0, 1), (1, 2), (2, 0)} and graph.edges[1, 2]["weight"] == 0.5


def test_edge_lists_by_hand_and_by_networkx(tmp_path: Path) -> None:
    text = "# who reads whom\n0 1\n1 2 0.5  # strong\n\n0,2\n2 3\n"
    by_hand = build(written(tmp_path, "g.txt", text))
    assert plain(by_hand) == TRIANGLE_TAIL and by_hand.edges[1, 2]["weight"] == 0.5
    nx.write_edgelist(by_hand, tmp_path / "g.edgelist")
    assert plain(build(str(tmp_path / "g.edgelist"))) == TRIANGLE_TAIL
    assert build(str(tmp_path / "g.edgelist")).edges[1, 2]["weight"] == 0.5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("g.yaml", "edges: [[0, 1], [1", "not a valid yaml file"),
        ("g.yaml", "", "either `generator:` or `edges:`"),
        ("g.yaml", "generator: ring\nedges: [[0, 1]]", "either `generator:` or `edges:`"),
        ("g.yaml", "generater: ring\nedges: []", "unknown key 'generater'. Did you mean 'generator'"),
        ("g.yaml", "edges: 5", "`edges:` must be a list of pairs"),
        ("g.yaml", "edges: [[0]]", r"an edge is \[from, to\]"),
        ("g.yaml", "edges: [[0, 1.5]]", r"an edge is \[from, to\]"),
        ("g.yaml", "edges: [[0, true]]", r"an edge is \[from, to\]"),
        ("g.yaml", "edges: [[0, 1, heavy]]", "a weight must be a number, not 'heavy'"),
        ("g.yaml", "edges: [[0, 1, .nan]]", "a weight must be a number"),
        ("g.yaml", "edges: [[0, 1]]\nweights: [1, 2]", "one number for each of the 1 edges"),
        ("g.yaml", "edges: [[0, 1], [1, 0]]", "edge 1 - 0 is listed twice"),
        ("g.yaml", "edges: [[1, 2], [2, 3]]", "numbered from 0, and the lowest number in the file is 1"),
        ("g.yaml", "edges: [[0, 1], [-1, 0]]", "numbered from 0, and the lowest number in the file is -1"),
        ("g.yaml", "edges: [[0, 1], [1, 5]]\nagents: 3", "names agent 5, and the agents are 0 to 2"),
        ("g.yaml", "edges: [[0, 1], [1, 3]]", r"not connected: it falls into 2 parts, \{0, 1, 3\}, \{2\}"),
        ("g.yaml", "edges: [[0, 1], [1, 1]]", "from an agent to itself"),
        ("g.yaml", "edges: []\n", "at least 2 agents, not 0"),
        ("g.yaml", "edges: [[0, 1]]\nagents: 1", "at least 2 agents, not 1"),
        ("g.yaml", "edges: [[0, 1]]\nagents: many", "at least 2 agents, not 'many'"),
        ("g.yaml", "edges: [[0, 1]]\ndirected: 1", "must be true or false"),
        ("g.yaml", "edges: [[0, 1]]\ndirected: true", "not strongly connected"),
        ("g.yaml", "edges: [[0, 1]]\noptions: {p: 1}", "`options:` belong to a generator"),
        ("g.yaml", "names: [a, a]\nedges: [[0, 1]]", "different names"),
        ("g.yaml", "names: [a, b]\nedges: [[a, c]]", "unknown agent 'c'"),
        ("g.yaml", "names: [a, b]\nagents: 3\nedges: [[a, b]]", "2 names were given for 3 agents"),
        ("g.yaml", "generator: other.yaml", "must be a topology's name"),
        ("g.yaml", "generator: ring\nweights: [1]", "`weights:` belongs to a list of edges"),
        ("g.yaml", "generator: ring\noptions: [1]", "`options:` must be a mapping"),
        ("g.yaml", "generator: torus\nagents: 8\noptions: {row: 2}", "Did you mean 'rows'"),
        ("g.graphml", "<graphml><graph", "not a valid graphml file"),
        ("g.graphml", "not xml", "not a valid graphml file"),
        ("g.graphml", '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"></graphml>', "not a valid graphml file"),
        ("g.json", "[1, 2]", "expected node-link JSON"),
        ("g.json", "{", "not a valid json file"),
        ("g.json", '{"nodes": [{"name": "a"}], "links": []}', "not a valid json file: KeyError"),
        ("g.json", '{"nodes": [], "links": [], "directed": "yes"}', "must be true or false"),
        ("g.txt", "0 1\n0\n", "line 2 is not of the form"),
        ("g.txt", "0 1 heavy", "a weight must be a number, not 'heavy'"),
        ("g.edgelist", "0 1\n1 0", "listed twice"),
        ("g.edgelist", "0 1 {'weight': }", "not a valid edgelist file"),
        ("g.csv", "0,1", "of no known kind"),
    ],
)
def test_what_a_wrong_file_gets(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message) as caught:
        build(written(tmp_path, name, text))
    assert name in str(caught.value) or "unknown option of torus" in str(caught.value)


def test_a_size_that_differs_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "g.yaml", "edges: [[0, 1], [1, 2]]\n")
    with pytest.raises(TopologyError, match="has 3 agents, and 5 were asked for"):
        load_topology(file, 5)


def test_options_for_a_fixed_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"fixed graph without options, and \['p'\] were given"):
        build(written(tmp_path, "g.yaml", "edges: [[0, 1]]\n"), p=0.5)


def test_a_missing_file_names_the_closest_one_there(tmp_path: Path) -> None:
    written(tmp_path, "hospitals.yaml", "")
    with pytest.raises(TopologyError, match=r"does not exist. Did you mean '.*hospitals.yaml'"):
        build(str(tmp_path / "hospital.yaml"), 5)
    with pytest.raises(TopologyError, match=r"does not exist; nor does its folder"):
        build(str(tmp_path / "nowhere" / "ring.yaml"), 5)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("bytes.json", "folder.yaml"):
        with pytest.raises(TopologyError, match="cannot be read"):
            build(str(tmp_path / name))


def test_python_files(tmp_path: Path) -> None:
    file = written(tmp_path, "mine.py", "def build(n, *, round=0, seed=0):\n    return 3\n\ndef _hidden(): ...\n")
    with pytest.raises(TopologyError, match=r"name a function in it, as .*mine.py:build \(it defines build\)"):
        build(file, 4)
    with pytest.raises(TopologyError, match="gave a int"):
        build(f"{file}:build", 4)
    with pytest.raises(PluginError, match="Did you mean 'build'"):
        build(f"{file}:biuld", 4)
    broken = written(tmp_path, "broken.py", "1 / 0\n")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        build(f"{broken}:build", 4)


def test_a_module_that_raises_when_imported_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "raising_topology.py", "raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match="does not import: RuntimeError: no licence"):
        build("raising_topology:build", 4)


def test_entry_points_are_found_by_name_and_a_broken_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "wheels-1.0.dist-info"
    package.mkdir()
    entries = "[dimat.topologies]\nwheel = wheel_topology:build\nflat = flat_topology:build\n"
    (package / "entry_points.txt").write_text(entries)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: wheels\nVersion: 1.0\n")
    code = "import networkx as nx\ndef build(n, *, round=0, seed=0):\n    return nx.wheel_graph(n)\n"
    written(tmp_path, "wheel_topology.py", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plain(build("wheel", 5)) == set(nx.wheel_graph(5).edges)
    with pytest.raises(PluginError, match=r"'flat' .* does not import: ModuleNotFoundError"):
        build("flat", 5)
    with pytest.raises(PluginError, match="Did you mean 'wheel'"):
        build("wheell", 5)


def test_the_two_sites_are_joined_in_every_nth_round() -> None:
    name = f"{Path(__file__).parents[2] / 'topologies' / 'two_sites.py'}:build"
    joined = [build(name, 6, round=round, every=3).has_edge(2, 3) for round in range(7)]
    assert joined == [True, False, False, True, False, False, True]
    with pytest.raises(TopologyError, match="every must be 1, 2, 3 or 4, not 5"):
        build(name, 6, every=5)


def test_the_bipartite_graph_has_the_weights_of_the_publication() -> None:
    """The matrices that DIMAT's experiments use: a = 1/(n - 1), b = 1 - (n - 2) a, c = 1 - 2 a."""
    name = f"{Path(__file__).parents[2] / 'topologies' / 'bipartite.py'}:build"
    for n in (5, 10):
        a = 1 / (n - 1)
        expected = np.zeros((n, n))
        expected[:2, 2:] = expected[2:, :2] = a
        np.fill_diagonal(expected, [1 - (n - 2) * a] * 2 + [1 - 2 * a] * (n - 2))
        np.testing.assert_allclose(load_topology(name, n).matrix(), expected, atol=1e-12)
    with pytest.raises(TopologyError, match="at least 4 agents, not 3"):
        build(name, 3)


def test_a_slip_of_the_finger_does_not_build_a_hundred_million_agents(tmp_path: Path) -> None:
    written(tmp_path, "slip.yaml", "edges: [[0, 1], [1, 99999999]]\n")
    with pytest.raises(TopologyError, match="agent 2 has no edge, though the edges name agent 99999999"):
        build(str(tmp_path / "slip.yaml"), 5)


@pytest.mark.parametrize("n", [3, 5])
def test_max_degree_by_hand(n: int) -> None:
    matrix = mixing_matrix(nx.path_graph(n), "max_degree")
    for i in range(n):
        for j in range(n):
            if i != j:
                assert matrix[i, j] == pytest.approx(1 / 3 if abs(i - j) == 1 else 0.0)
