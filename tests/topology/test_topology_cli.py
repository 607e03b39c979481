"""`dimat topology list | show`, and its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from dimat.cli.topology import app
from dimat.errors import TopologyError, UsageError
from dimat.topology import BUILTIN, draw, load_topology, mixing_matrix, save_png
from dimat.topology.picture import layout

READY = Path(__file__).parents[2] / "topologies"


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, terminal_width=160)
    assert result.exit_code == 0, result.output
    return result.stdout


def shown(*arguments: str) -> dict[str, object]:
    summary = json.loads(output("show", *arguments, "--format", "json").splitlines()[-1])
    assert isinstance(summary, dict)
    return summary


def error(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, UsageError) and result.exception.exit_code == 2
    assert result.stdout == ""
    return str(result.exception)


def test_list_names_every_topology_with_its_options() -> None:
    listed = output("list", "-q")
    assert all(name in listed for name in BUILTIN)
    entries = {entry["name"]: entry for entry in json.loads(output("list", "--format", "json"))["topologies"]}
    assert set(entries) >= set(BUILTIN)
    assert entries["watts_strogatz"]["options"] == {"k": None, "p": 0.2}
    assert entries["random_matching"]["changes"] and not entries["ring"]["changes"]


def test_show_as_json_is_the_summary() -> None:
    assert shown("ring", "-n", "5") == load_topology("ring", 5).summary()
    assert shown("ring")["num_agents"] == 8
    assert shown("star", "-n", "6", "--mixing", "uniform", "-v")["doubly_stochastic"] is False
    assert shown("erdos-renyi", "-n", "9", "-s", "p=1.0", "--seed", "4")["num_edges"] == 36
    assert shown("one_peer_exponential", "-n", "4", "--round", "1")["mixing"][0] == [0.5, 0, 0.5, 0]  # type: ignore[index]


def test_model_bytes_add_the_traffic() -> None:
    assert shown("ring", "-n", "5", "--model-bytes", "1000")["bytes_per_round"] == 10_000
    assert "bytes_per_round" not in shown("ring", "-n", "5")
    assert "10,000" in output("show", "ring", "-n", "5", "--model-bytes", "1000")


def test_show_as_text_says_what_matters() -> None:
    text = output("show", "ring", "-n", "16")
    assert "0.0507" in text and "45" in text and "doubly stochastic" in text and "15:0.333" in text
    assert "not doubly stochastic" in output("show", "star", "--mixing", "uniform")
    assert "over 3 rounds together" in output("show", "one_peer_exponential")
    assert "8 more agents" in output("show", "ring", "-n", "40")


def test_agents_that_never_agree_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "swap.yaml"
    path.write_text("edges: [[0, 1, 1.0]]", encoding="utf-8")
    assert "never" in output("show", str(path), "--mixing", "edge_weights")
    assert shown(str(path), "--mixing", "edge_weights")["rounds_per_tenfold"] is None


@pytest.mark.parametrize(
    "name",
    ["ring.yaml", "torus.yaml", "exponential.yaml", "hospitals.yaml", "two_sites.py:build", "bipartite.py:build"],
)
def test_every_ready_topology_is_shown_with_a_picture(name: str, tmp_path: Path) -> None:
    text = output("show", str(READY / name), "--png", str(tmp_path / "picture.png"))
    assert "spectral gap" in text
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    source = (READY / name.partition(":")[0]).read_text(encoding="utf-8")
    assert "Use " in source[:400]  # each says when to use it


def test_names_of_agents_are_shown() -> None:
    assert "5 Clinic" in output("show", str(READY / "hospitals.yaml"))


def test_wrong_input_is_an_error_of_usage(tmp_path: Path) -> None:
    assert "Did you mean 'ring'" in error("show", "rnig")
    assert "power of two" in error("show", "hypercube", "-n", "6")
    assert "at least 2 agents" in error("show", "ring", "-n", "1")
    assert "not of the form key=value" in error("show", "ring", "-s", "p")
    assert "not valid YAML" in error("show", "erdos_renyi", "-s", "p=[")
    assert "has 6 agents, and 5 were asked for" in error("show", str(READY / "hospitals.yaml"), "-n", "5")
    assert "cannot be written" in error("show", "ring", "--png", str(tmp_path / "no" / "p.png"))


@pytest.mark.parametrize("name", ["ring", "grid", "exponential", "one_peer_exponential", "random_matching", "barbell"])
def test_a_picture_depends_on_the_topology_alone(name: str, tmp_path: Path) -> None:
    for number in (1, 2):
        save_png(load_topology(name, 6), tmp_path / f"{number}.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    save_png(load_topology("path", 6), tmp_path / "other.png")
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_draw_writes_agents_and_labels_and_widens_heavy_edges() -> None:
    graph = nx.star_graph(3)
    graph.add_edge(1, 2)
    ax = Figure().add_subplot()
    draw(graph, ax, edge_labels={(0, 3): "1.2 MB", (2, 0): "3.4 MB"}, weights=mixing_matrix(graph, "uniform"))
    texts = {text.get_text() for text in ax.texts}
    assert texts == {"0", "1", "2", "3", "1.2 MB", "3.4 MB"}
    widths = dict(zip(graph.edges, ax.collections[0].get_linewidths(), strict=True))
    assert widths[0, 3] > widths[0, 1] == widths[1, 2]  # 1/2 against 1/3 at the heavier end


def test_agents_have_places_of_their_own() -> None:
    for name in ("ring", "grid", "star", "barbell", "exponential", "random_matching"):
        places = layout(load_topology(name, 12).graph())
        assert len({(round(x, 3), round(y, 3)) for x, y in places.values()}) == 12
    assert layout(load_topology("grid", 12).graph())[5] == (1.0, -1.0)


def test_a_picture_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="cannot be written"):
        save_png(load_topology("ring", 4), tmp_path)
