"""The command `dimat`. Each command's work lives in a module of its own, imported when the command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from dimat.cli import certs, continual, topology
from dimat.cli.options import (
    Certs,
    Config,
    Format,
    Fresh,
    Insecure,
    Out,
    OutputFormat,
    Quiet,
    Seed,
    Set,
    Shape,
    Together,
    Verbose,
    overrides,
    set_up_logging,
)
from dimat.errors import DimatError

# Plain help: rendering it with rich would cost more than the whole command may take (0.3 s).
app = typer.Typer(
    name="dimat",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
check = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Tell the author of a plug-in what is wrong with it."
)
app.add_typer(topology.app, name="topology")
app.add_typer(check, name="check")
app.add_typer(continual.app, name="continual")
app.add_typer(certs.app, name="certs")


def _print_version(asked: bool) -> None:
    if asked:
        from dimat import __version__

        typer.echo(f"dimat {__version__}")
        raise typer.Exit


@app.callback()
def dimat(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Models that were trained apart become one, without moving anybody's data and without a centre.

    Begin with: dimat run
    """
    del version  # its callback has answered


@app.command()
def run(
    config: Config = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    fresh: Fresh = False,
    launch: Annotated[Shape, typer.Option(help="One torchrun for all agents, or one for each.")] = Shape.together,
    certs: Certs = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Run everything on this machine: a coordinator, and the agents by torchrun.

    The same command continues a run that stopped. Certificates that --certs lacks are issued by its authority.

    \b
    Examples:
      dimat run
      dimat run my.yaml -s agents=8 -s topology.graph=torus
      dimat run -s task.partition.scheme=iid --out runs/iid --format json
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.run import run_command

    raise typer.Exit(
        run_command(config, overrides(settings, seed), out, fresh, launch.value, format.value, verbose, quiet, certs)
    )


@app.command()
def simulate(
    config: Config = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    fresh: Fresh = False,
    vectorise: Together = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Run the same rounds in one process, over memory instead of a network; ends with the same bits.

    \b
    Examples:
      dimat simulate -s agents=16 -s topology.graph=exponential
      dimat simulate -s agents=64 -s task.model=mlp --vectorise auto
      dimat simulate my.yaml --seed 3 --format json
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.run import simulate_command

    if vectorise is not None:
        settings = [*settings, f"simulation.vectorise={vectorise.value}"]
    raise typer.Exit(simulate_command(config, overrides(settings, seed), out, fresh, format.value, verbose, quiet))


@app.command()
def agent(
    config: Config = None,
    id: Annotated[
        Optional[int], typer.Option("--id", help="Who this agent is; by default torchrun's RANK.", min=0)
    ] = None,
    coordinator: Annotated[
        Optional[str],
        typer.Option(metavar="HOST:PORT", help="Where the coordinator listens; under torchrun found by itself."),
    ] = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    bind: Annotated[
        str, typer.Option(metavar="HOST", help="Listen at this host; the port is any free one.")
    ] = "127.0.0.1",
    advertise: Annotated[Optional[str], typer.Option(metavar="HOST", help="The host that others dial.")] = None,
    certs: Certs = None,
    insecure: Insecure = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Be one agent, under torchrun or by itself.

    \b
    Examples:
      torchrun --standalone --nproc-per-node 5 -m dimat agent run.yaml
      dimat agent run.yaml --id 3 --coordinator 10.0.0.1:7000 --bind 0.0.0.0 --advertise 10.0.0.4 --certs certs
    """
    set_up_logging(max(verbose, 1), quiet, certs)
    from dimat.cli.agent import agent_command

    code = agent_command(
        config, id, coordinator, overrides(settings, seed), out, bind, advertise, insecure, format.value, certs
    )
    raise typer.Exit(code)


@app.command()
def drain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its coordinator's HOST:PORT.")],
    agent: Annotated[int, typer.Argument(help="Who shall leave.", min=0)],
    certs: Certs = None,
    insecure: Insecure = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Have one agent leave a run in order: the others are told beforehand, and go on without it.

    Where a run has certificates this takes an admin's.

    \b
    Examples:
      dimat drain runs/hospitals-1f2e3d4c 3
      dimat drain 10.0.0.1:7000 3 --certs certs
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.drain import drain_command

    raise typer.Exit(drain_command(run, agent, format.value, certs, insecure))


@app.command()
def coordinator(
    config: Config = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Listen at this host.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Listen at this port; 0 is any free one.", min=0, max=65535)] = 0,
    advertise: Annotated[Optional[str], typer.Option(metavar="HOST", help="The host that agents dial.")] = None,
    parent: Annotated[
        Optional[int], typer.Option(metavar="PID", help="End when this parent process has ended.")
    ] = None,
    owner: Annotated[
        Optional[int], typer.Option(metavar="PID", help="Stop the run in order when this parent process has ended.")
    ] = None,
    certs: Certs = None,
    insecure: Insecure = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Follow a run's membership and convergence; sees numbers, never weights.

    \b
    Example:
      dimat coordinator run.yaml --host 0.0.0.0 --port 7000 --advertise 10.0.0.1 --certs certs
    """
    set_up_logging(max(verbose, 1), quiet, certs)
    from dimat.cli.coordinator import coordinator_command

    code = coordinator_command(
        config, overrides(settings, seed), out, host, port, insecure, format.value, advertise, parent, certs, owner
    )
    raise typer.Exit(code)


@app.command()
def doctor(
    config: Config = None,
    settings: Set = [],
    seed: Seed = None,
    out: Out = None,
    coordinator: Annotated[
        Optional[str], typer.Option(metavar="HOST:PORT", help="Ask it where the agents are that are up.")
    ] = None,
    peers: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Where agents are: {0: HOST:PORT, 1: HOST:PORT, ...}.")
    ] = None,
    bind: Annotated[str, typer.Option(metavar="HOST", help="Where agents of this machine shall listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="A port that must be free; 0 is any.", min=0, max=65535)] = 0,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow plain text beyond this machine.")] = False,
    certs: Annotated[Optional[Path], typer.Option(metavar="DIR", help="Look at these certificates and keys.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for each edge.")] = 10.0,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Dial every edge, look at ports, clocks, disk and certificates; exit code 1 when something has to be done.

    Without --coordinator and --peers stand-ins for all agents are started in this process.

    \b
    Examples:
      dimat doctor run.yaml
      dimat doctor run.yaml --coordinator 10.0.0.1:29401 --certs certs
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.doctor import doctor_command

    raise typer.Exit(
        doctor_command(
            config,
            overrides(settings, seed),
            out,
            coordinator,
            peers,
            bind,
            port,
            insecure,
            certs,
            timeout_s,
            format.value,
        )
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Write a run's report: one HTML file with everything in it, and the pictures as PNGs.

    \b
    Example:
      dimat report runs/demo
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.run import report_command

    raise typer.Exit(report_command(run, format.value))


@app.command()
def methods(
    name: Annotated[Optional[str], typer.Argument(metavar="[NAME]", help="One method, with its options.")] = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """List the merge methods, the algorithms of a run and the schedules of its merges, or describe one.

    \b
    Examples:
      dimat methods
      dimat methods mean
      dimat methods choco
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.methods import methods_command

    methods_command(name, format.value)


@app.command()
def align(
    a: Annotated[Path, typer.Argument(metavar="A", help="The model whose order of units is kept.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The model to bring into that order.")],
    model: Annotated[
        str,
        typer.Option(metavar="MOD:FN", help="Makes the torch module: package.module:function or file.py:function."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="OUT", help="Where the aligned B goes: a file (replaced when there), or a new folder."
        ),
    ],
    by: Annotated[str, typer.Option(metavar="WAY", help="weights, or activations on --data.")] = "weights",
    data: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="Inputs: an .npz with x_train, or .safetensors (several: keywords)."),
    ] = None,
    inputs: Annotated[
        list[str],
        typer.Option("--input", metavar="SHAPE[:DTYPE]", help="Random example input: 1x3x32x32, or 2x16:int64."),
    ] = [],
    spec: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Groups written by hand (JSON), instead of tracing.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of --data in a batch.")] = 64,
    max_samples: Annotated[int, typer.Option(min=2, help="Samples of --data in all, a random choice.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Permute the hidden units of model B into the order of model A; what B computes stays what it was.

    A model is a .safetensors file or a Hugging Face folder. The example input that finds the groups comes from --data
    or --input, else from the model (model.example_inputs, model.dummy_inputs) or a function example_inputs() beside
    the factory.

    \b
    Examples:
      dimat align a.safetensors b.safetensors --model my_model.py:build --input 1x3x32x32 --out b_aligned.safetensors
      dimat align a/ b/ --model my_model.py:build --by activations --data inputs.safetensors --out b_aligned/
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.align import Request, align_command

    request = Request(a, b, model, out, by, data, tuple(inputs), spec, batch_size, max_samples, seed)
    raise typer.Exit(align_command(request, format.value, quiet))


@app.command()
def merge(
    out: Annotated[
        Path, typer.Option("--out", metavar="OUT", help="The merged model: a file, or a folder when the models are.")
    ],
    method: Annotated[Optional[str], typer.Argument(metavar="[METHOD]", help="See: dimat methods")] = None,
    models: Annotated[
        Optional[list[Path]],
        typer.Argument(metavar="[MODEL]...", help=".safetensors files or Hugging Face folders, in order."),
    ] = None,
    base: Annotated[
        Optional[Path], typer.Option(metavar="BASE", help="The models' common ancestor, for methods that need it.")
    ] = None,
    weights: Annotated[
        Optional[str], typer.Option(metavar="1,1,0.5", help="One for each model; by default 1 each.")
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="An option of the method, such as density=0.3."),
    ] = [],
    recipe: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="A YAML recipe (dimat's or mergekit's), instead of METHOD and MODEL."),
    ] = None,
    dtype: Annotated[
        Optional[str],
        typer.Option(metavar="DTYPE", help="float32, bfloat16, float16, float64; else the first model's."),
    ] = None,
    memory: Annotated[
        Optional[str], typer.Option(metavar="SIZE", help="What the process may hold resident, such as 1GiB.")
    ] = None,
    align: Annotated[
        Optional[str],
        typer.Option(metavar="WAY", help="weights: permute every model into the basis of the base (or first) before."),
    ] = None,
    model: Annotated[
        Optional[str],
        typer.Option(
            metavar="MOD:FN", help="With --align: makes the module, package.module:function or file.py:function."
        ),
    ] = None,
    inputs: Annotated[
        list[str],
        typer.Option("--input", metavar="SHAPE[:DTYPE]", help="With --align: random example input, as 1x3x32x32."),
    ] = [],
    stats: Annotated[
        list[Path],
        typer.Option("--stats", metavar="FILE", help="Statistics for methods that need them (fisher), once per model."),
    ] = [],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be done, and stop.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT when it is there.")] = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Merge models on disk into one, tensor by tensor, in little memory.

    A card beside OUT says what it was made of; its recipe gives the same bytes again.

    \b
    Examples:
      dimat merge mean a.safetensors b.safetensors --weights 2,1 --out merged.safetensors
      dimat merge ties math/ code/ chat/ --base ancestor/ -s density=0.3 --memory 1GiB --out merged/
      dimat merge mean a.safetensors b.safetensors --align weights --model nets.py:build --out merged.safetensors
      dimat merge --recipe recipe.yaml --out merged/ --dry-run
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.merge import merge_command
    from dimat.cli.merge_words import Request

    request = Request(
        method, tuple(models or ()), out, base, weights, tuple(settings), recipe, dtype, memory, align, model,
        tuple(inputs), tuple(stats), dry_run, force,
    )  # fmt: skip
    raise typer.Exit(merge_command(request, format.value, quiet))


@app.command("config")
def config_command(verbose: Verbose = 0, quiet: Quiet = False) -> None:
    """Print the default config, every key explained.

    \b
    Example:
      dimat config > run.yaml
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.config import commented_config

    typer.echo(commented_config(), nl=False)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Becomes NAME.py and NAME.yaml in this folder.")],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Write a task module and a config that run as they are.

    \b
    Example:
      dimat new my_task && dimat run my_task.yaml
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.new import new_task, next_commands

    module, written = new_task(name)
    if format is Format.json:
        typer.echo(f'{{"task": "{module}", "config": "{written}"}}')
        return
    typer.echo(f"wrote {module} and {written}; next:")
    for command in next_commands(module, written):
        typer.echo(f"  {command}")


@check.command("task")
def check_task(
    reference: Annotated[str, typer.Argument(metavar="PATH", help="file.py:Class, package.module:Class or a name.")],
    settings: Set = [],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Make a task, deal its data and train a step, and say what is wrong.

    \b
    Examples:
      dimat check task my_task.py:Task
      dimat check task arrays -s task.data=mnist.npz -s task.model=mlp
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.check import check_task_command

    raise typer.Exit(check_task_command(reference, settings, format.value))


@check.command("topology")
def check_topology(
    reference: Annotated[str, typer.Argument(metavar="PATH", help="A file, file.py:function or a name.")],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Build a topology in several sizes, rounds and seeds, and say what is wrong."""
    set_up_logging(verbose, quiet)
    from dimat.cli.check import check_topology_command

    raise typer.Exit(check_topology_command(reference, format.value))


@check.command("merge")
def check_merge(
    reference: Annotated[
        str, typer.Argument(metavar="PATH", help="file.py:function, package.module:function or a name.")
    ],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Fold small models in several orders, and say what is wrong."""
    set_up_logging(verbose, quiet)
    from dimat.cli.check import check_merge_command

    raise typer.Exit(check_merge_command(reference, format.value))


@check.command("config")
def check_config(
    config: Annotated[Path, typer.Argument(metavar="PATH", help="A run's config.")],
    settings: Set = [],
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Try a config as a run would, without starting anything."""
    set_up_logging(verbose, quiet)
    from dimat.cli.check import check_config_command

    raise typer.Exit(check_config_command(config, settings, format.value))


def main() -> None:
    """Run the command line; errors go to stderr, and the exit code tells their kind."""
    try:
        app()
    except DimatError as error:
        typer.echo(f"Error: {error}", err=True)
        if error.hint:
            typer.echo(f"\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)
