"""Graphs from files: YAML, GraphML, node-link JSON and edge lists.

YAML holds either a generator or the edges:

    generator: torus                   a built-in name, module:function, or file.py:function beside the YAML file
    options: {rows: 4}                 the generator's own
    agents: 16                         fixes the size; without it any number of agents may be asked for

    edges: [[0, 1], [1, 2]]            each [from, to] or [from, to, weight]; or by name: [[Oslo, Bergen]]
    agents: 3                          default: as many as the edges mention
    names: [Oslo, Bergen, Lund]        of the agents 0, 1, 2, for pictures; then `edges` may use them
    directed: true                     default false; [a, b] lets b read a
    weights: [0.3, 0.2]                one per edge, where the edges do not carry them (mixing `edge_weights`)

What ids and names mean is the same in all formats: `dimat.topology.edges`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from dimat import plugins
from dimat.errors import TopologyError
from dimat.topology.edges import WrongContent, graph_from_rows
from dimat.topology.validate import check_count

_KEYS = ("generator", "options", "agents", "edges", "names", "directed", "weights", "description")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A YAML file that names a generator instead of listing edges."""

    generator: str
    options: dict[str, Any]
    num_agents: int | None


def is_file_reference(reference: str) -> bool:
    """Whether a reference means a graph file, by how it ends; `file.py:function` is a function, not a file.

    >>> is_file_reference("topologies/ring.yaml"), is_file_reference("ring"), is_file_reference("two.py:build")
    (True, False, False)
    """
    return Path(reference).suffix.lower() in (*_READERS, ".py") or ("/" in reference and ":" not in reference)


def read(path: Path) -> nx.Graph[int] | Recipe:
    """The graph or recipe in a file; its nodes are 0..n-1, the rest is validated where every graph is.

    Raises:
        TopologyError: the file is missing, unreadable, of an unknown kind, or does not hold a graph.
    """
    reader = _READERS.get(path.suffix.lower())
    if path.suffix.lower() == ".py":
        raise TopologyError(f"topology file {str(path)!r} is Python: {_functions_in(path)}")
    if reader is None:
        kinds = ", ".join(_READERS)
        raise TopologyError(
            f"topology file {str(path)!r} is of no known kind; a file ends in one of {kinds}, .py:function"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TopologyError(f"topology file {str(path)!r} does not exist{_neighbours_of(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(f"topology file {str(path)!r} cannot be read: {error}") from error
    try:
        return reader(text, path)
    except WrongContent as error:
        raise TopologyError(f"topology file {str(path)!r}: {error}") from error
    except TopologyError:
        raise
    except Exception as error:  # parsers of foreign formats raise KeyError, SyntaxError, ExpatError and more
        kind = path.suffix.lower().lstrip(".")
        raise TopologyError(
            f"topology file {str(path)!r} is not a valid {kind} file: {type(error).__name__}: {error}"
        ) from error


def _read_yaml(text: str, path: Path) -> nx.Graph[int] | Recipe:
    import yaml

    content = yaml.safe_load(text)
    if not isinstance(content, dict) or not ("generator" in content) ^ ("edges" in content):
        raise WrongContent("expected a mapping with either `generator:` or `edges:`")
    for key in content:
        if key not in _KEYS:
            raise WrongContent(plugins.unknown("key", str(key), _KEYS))
    if content.get("agents") is not None:
        check_count(content["agents"], f"topology file {str(path)!r}")
    if "generator" in content:
        return _recipe(content, path)
    if "options" in content:
        raise WrongContent("`options:` belong to a generator, and this file lists its edges")
    names = content.get("names") or []
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise WrongContent("`names:` must be a list of different names")
    directed = _flag(content.get("directed", False))
    return graph_from_rows(_weighted_rows(content), directed=directed, num_agents=content.get("agents"), names=names)


def _recipe(content: dict[str, Any], path: Path) -> Recipe:
    extra = sorted({"names", "directed", "weights"} & content.keys())
    if extra:
        raise WrongContent(f"`{extra[0]}:` belongs to a list of edges, and this file names a generator")
    generator, options = content["generator"], content.get("options") or {}
    if not isinstance(generator, str) or is_file_reference(generator):
        raise WrongContent(
            f"`generator:` must be a topology's name, module:function or file.py:function, not {generator!r}"
        )
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise WrongContent(f"`options:` must be a mapping of names to values, not {options!r}")
    where, _, function = generator.rpartition(":")
    if where.endswith(".py") and (path.parent / where).is_file():
        generator = f"{path.parent / where}:{function}"
    return Recipe(generator, options, content.get("agents"))


def _weighted_rows(content: dict[str, Any]) -> list[list[Any]]:
    rows, weights = content["edges"], content.get("weights")
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise WrongContent("`edges:` must be a list of pairs such as [0, 1]")
    if weights is None:
        return rows
    if not isinstance(weights, list) or len(weights) != len(rows) or any(len(row) != 2 for row in rows):
        raise WrongContent(
            f"`weights:` must hold one number for each of the {len(rows)} edges, and the edges then none"
        )
    return [[*row, weight] for row, weight in zip(rows, weights, strict=True)]


def _read_edge_list(text: str, path: Path) -> nx.Graph[int]:
    del path  # named by the caller
    rows: list[list[Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        plain = line.partition("#")[0].strip()
        if not plain:
            continue
        if "{" in plain:  # as networkx writes it: `0 1 {'weight': 0.5}`
            ends, _, data = plain.partition("{")
            weight = ast.literal_eval("{" + data).get("weight")
            row: list[Any] = ends.split() + ([] if weight is None else [weight])
        else:
            row = [*plain.replace(",", " ").split()]
        if len(row) not in (2, 3):
            raise WrongContent(f"line {number} is not of the form `from to` or `from to weight`: {line.strip()!r}")
        rows.append(row)
    return graph_from_rows(rows)


def _read_json(text: str, path: Path) -> nx.Graph[int]:
    del path  # named by the caller
    content = json.loads(text)
    key = "links" if isinstance(content, dict) and "links" in content else "edges"
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("nodes"), list)
        or not isinstance(content.get(key), list)
    ):
        raise WrongContent("expected node-link JSON: an object with lists `nodes` and `links` (or `edges`)")
    rows = [[e["source"], e["target"], *([e["weight"]] if "weight" in e else [])] for e in content[key]]
    nodes = {node["id"]: node.get("name") for node in content["nodes"]}
    return graph_from_rows(rows, directed=_flag(content.get("directed", False)), nodes=nodes, titles=_given(nodes))


def _read_graphml(text: str, path: Path) -> nx.Graph[int]:
    del path  # named by the caller
    graph = nx.parse_graphml(text, force_multigraph=True)
    rows = [[u, v, *([data["weight"]] if "weight" in data else [])] for u, v, data in graph.edges(data=True)]
    nodes = {node: data.get("name", data.get("label")) for node, data in graph.nodes(data=True)}
    return graph_from_rows(rows, directed=graph.is_directed(), nodes=nodes, titles=_given(nodes))


def _given(names: dict[Any, Any]) -> dict[Any, str]:
    return {node: str(name) for node, name in names.items() if name is not None}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise WrongContent(f"`directed` must be true or false, not {value!r}")
    return value


def _functions_in(path: Path) -> str:
    """What to type for a Python file, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return f"name a function in it, as {path}:build"
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return f"name a function in it, as {path}:{names[0] if names else 'build'}" + (
        f" (it defines {', '.join(names)})" if names else " (it defines none)"
    )


def _neighbours_of(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; nor does its folder {str(path.parent)!r}"
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in _READERS)
    near = plugins.closest(path.name, names)
    return (
        f". Did you mean {str(path.parent / near)!r}?"
        if near
        else f"; topology files there: {', '.join(names) or 'none'}"
    )


_READERS: dict[str, Callable[[str, Path], nx.Graph[int] | Recipe]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".graphml": _read_graphml,
    ".json": _read_json,
    ".edgelist": _read_edge_list,
    ".txt": _read_edge_list,
}
