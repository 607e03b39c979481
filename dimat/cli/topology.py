"""`dimat topology list | show`: which graphs there are, and what one of them would do to a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimat.cli.options import Format, OutputFormat, Quiet, Verbose, set_up_logging
from dimat.errors import TopologyError

if TYPE_CHECKING:
    from dimat.topology import Topology

_DEFAULT_AGENTS = 8
_SHOWN_AGENTS = 32

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Graphs of agents: which there are, and how fast agents agree on one.",
)


@app.command("list")
def list_topologies(format: OutputFormat = Format.text, verbose: Verbose = 0, quiet: Quiet = False) -> None:
    """Every topology by name: what it is, its options, when to use it."""
    set_up_logging(verbose, quiet)
    entries = _entries()
    if format is Format.json:
        print(json.dumps({"topologies": entries}, ensure_ascii=False))
        return
    from rich.table import Table

    table = Table(title="Topologies", title_justify="left", show_lines=True)
    for heading, style in (("name", "bold"), ("what it is", ""), ("options", ""), ("when to use it", "")):
        table.add_column(heading, style=style, overflow="fold", no_wrap=heading == "name")
    for entry in entries:
        options = "\n".join(key if value is None else f"{key}={value}" for key, value in entry["options"].items())
        table.add_row(entry["name"], entry["what"], options, entry["when"])
    _console().print(table)
    _console().print("A file (.yaml .graphml .json .edgelist) or a function (package.module:function) is one too.")


@app.command("show")
def show_topology(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="A name, a file, or a function as file.py:name.")],
    agents: Annotated[
        int | None, typer.Option("-n", "--agents", help="Number of agents; default 8, or the file's.")
    ] = None,
    mixing: Annotated[
        str | None, typer.Option("--mixing", help="metropolis, uniform, max_degree, lazy, edge_weights.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="An option of the graph.")
    ] = None,
    model_bytes: Annotated[
        int | None, typer.Option("--model-bytes", min=0, help="Bytes of one model, for the traffic.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Write a picture.")] = None,
    round: Annotated[int, typer.Option("--round", min=0, help="The round, for graphs that change.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what is random in the graph.")] = 0,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Degrees, diameter, spectral gap, rounds per tenfold and mixing weights of one topology."""
    set_up_logging(verbose, quiet)
    from dimat.topology import bytes_per_round, load_topology, save_png
    from dimat.topology.source import find_source

    options = _options(settings or [])
    if agents is None and find_source(name, seed=seed, options=options).size is None:
        agents = _DEFAULT_AGENTS
    topology = load_topology(name, agents, mixing, seed, options)
    summary = topology.summary(round)
    if model_bytes is not None:
        summary = {"bytes_per_round": bytes_per_round(topology.graph(round), model_bytes)} | summary
    if png is not None:
        save_png(topology, png, round=round)
    if format is Format.json:
        print(json.dumps(summary))
        return
    _print_summary(topology, summary, round)


def _entries() -> list[dict[str, Any]]:
    import importlib.metadata

    from dimat.topology import BUILTIN
    from dimat.topology.source import GROUP

    entries = [
        {"name": name, "what": named.what, "options": named.options, "when": named.when, "changes": named.changes}
        for name, named in BUILTIN.items()
    ]
    for entry in importlib.metadata.entry_points(group=GROUP):  # not loaded: a broken plug-in must not break the list
        entries.append(
            {"name": entry.name, "what": f"plug-in {entry.value}", "options": {}, "when": "", "changes": None}
        )
    return entries


def _options(settings: list[str]) -> dict[str, Any]:
    import yaml

    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise TopologyError(f"-s {setting!r} is not of the form key=value, such as -s p=0.3")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise TopologyError(f"-s {setting!r}: the value is not valid YAML") from error
    return options


def _print_summary(topology: Topology, summary: dict[str, Any], round: int) -> None:
    from rich.table import Table

    graph, report = topology.graph(round), topology.mixing_report(round)
    kind = "directed" if graph.is_directed() else "undirected"
    when = "the same every round" if topology.static else f"round {round} of a graph that changes"
    degrees = f"{summary['min_degree']}" + (
        f" to {summary['max_degree']}" if summary["max_degree"] > summary["min_degree"] else ""
    )
    speed = summary["rounds_per_tenfold"]
    together = f" (over {topology.period} rounds together)" if topology.period > 1 else ""
    facts = Table(title=f"{topology.name}: {topology.num_agents} agents", title_justify="left", show_header=False)
    facts.add_row("graph", f"{kind}, {when}")
    facts.add_row("edges", str(summary["num_edges"]))
    facts.add_row("reads per agent", degrees)
    facts.add_row("diameter", f"{summary['diameter']}")
    facts.add_row(
        "mixing", f"{topology.mixing}, " + ("doubly stochastic: the plain average" if not report.bias else report.bias)
    )
    facts.add_row("spectral gap", f"{summary['spectral_gap']:.4f}{together}")
    facts.add_row("rounds per tenfold", "never: the agents do not agree" if speed is None else str(speed))
    if "bytes_per_round" in summary:
        facts.add_row("bytes per round", f"{summary['bytes_per_round']:,}")
    weights = Table(title="Mixing weights", title_justify="left")
    for heading in ("agent", "itself", "reads agent:weight", "counts in the end"):
        weights.add_column(heading)
    names = graph.nodes(data="name")
    for agent in range(min(topology.num_agents, _SHOWN_AGENTS)):
        row = topology.weights(agent, round)
        reads = "  ".join(f"{j}:{weight:.3g}" for j, weight in row.items() if j != agent)
        label = f"{agent} {names[agent]}" if names[agent] else str(agent)
        weights.add_row(label, f"{row[agent]:.3g}", reads, f"{report.influence[agent]:.3g}")
    console = _console()
    console.print(facts)
    console.print(weights)
    if topology.num_agents > _SHOWN_AGENTS:
        console.print(f"… and {topology.num_agents - _SHOWN_AGENTS} more agents; --format json has all of them")


def _console() -> Any:
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)
