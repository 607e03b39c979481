"""`dimat continual`: a durable merge that models arrive at one after another.

What each command does lives in `dimat.cli.ledger` and its neighbours, imported when the command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from dimat.cli.options import As, Certs, Format, Insecure, OutputFormat, Quiet, Verbose, set_up_logging

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Models arrive one after another; a ledger on disk absorbs each, and loses none.",
)


@app.callback()
def continual() -> None:
    """Models arrive one after another; a ledger on disk absorbs each, and loses none."""


Ledger = Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger's folder.")]
Served = Annotated[
    Path, typer.Argument(metavar="LEDGER", help="The ledger's folder, or HOST:PORT where one is served.")
]
Who = Annotated[Optional[str], typer.Option(metavar="WHO", help="Who does it, for the journal; by default your login.")]
Stats = Annotated[
    list[str],
    typer.Option("--stats", metavar="[KIND=]FILE", help="The model's statistics, for methods that need them."),
]


@app.command()
def init(
    ledger: Annotated[Path, typer.Argument(metavar="LEDGER", help="The folder to make.")],
    base: Annotated[Path, typer.Option(metavar="BASE", help="The models' common ancestor; it is copied in.")],
    method: Annotated[str, typer.Option(metavar="METHOD", help="How to merge; dimat methods lists all.")],
    settings: Annotated[
        list[str], typer.Option("--set", "-s", metavar="KEY=VALUE", help="An option of the method, such as alpha=0.5.")
    ] = [],
    keep: Annotated[
        int, typer.Option(min=0, metavar="N", help="States before the current one that undo can go to.")
    ] = 1,
    align: Annotated[
        Optional[str], typer.Option(metavar="WAY", help="weights: permute each arrival into the base's order of units.")
    ] = None,
    model: Annotated[
        Optional[str],
        typer.Option(metavar="MOD:FN", help="With --align: makes the torch module; file.py:function too."),
    ] = None,
    data: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="With --align: example inputs, .npz or .safetensors.")
    ] = None,
    inputs: Annotated[
        list[str],
        typer.Option("--input", metavar="SHAPE[:DTYPE]", help="With --align: random example input, 1x3x32x32."),
    ] = [],
    who: Who = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Make a ledger: a folder that holds the base, the state of the merge and a journal.

    With --align the groups of units that may move are found and proven now; adding needs no module then.

    \b
    Examples:
      dimat continual init merged --base base.safetensors --method opcm -s alpha=0.5
      dimat continual init merged --base base/ --method ties -s density=0.2 --keep 3
      dimat continual init merged --base a.safetensors --method mean --align weights --model net.py:build --input 1x64
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.ledger import init_command

    code = init_command(ledger, base, method, settings, keep, align, model, data, inputs, who, format.value, quiet)
    raise typer.Exit(code)


@app.command()
def add(
    ledger: Ledger,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file or a Hugging Face folder.")],
    name: Annotated[
        Optional[str], typer.Option(metavar="NAME", help="What to call it; by default its file's name.")
    ] = None,
    weight: Annotated[float, typer.Option(metavar="W", help="Its weight.")] = 1.0,
    again: Annotated[bool, typer.Option("--again", help="Absorb it also when it is in already.")] = False,
    if_new: Annotated[bool, typer.Option("--if-new", help="When it is in already say so and end well.")] = False,
    stats: Stats = [],
    evaluate: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Judge the new version by these tasks; see evaluate.")
    ] = None,
    who: Who = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Absorb a model. Killed at any instant, the ledger is as it was before, or the model is in.

    A model that is in already is known by its digest, whatever its file is called, and refused. After a kill or a power
    cut give the same command again, with --if-new where a script does it.

    \b
    Examples:
      dimat continual add merged a.safetensors
      dimat continual add merged checkpoints/b/ --name b --weight 2 --if-new
      dimat continual add merged c.safetensors --evaluate tasks.yaml
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.ledger import add_command

    code = add_command(ledger, model, name, weight, who, again, if_new, stats, evaluate, format.value, quiet)
    raise typer.Exit(code)


@app.command()
def status(
    ledger: Served,
    certs: Certs = None,
    identity: As = None,
    insecure: Insecure = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Which models are in, in what order, and how each lies to what came of them all.

    The cosine is that of model - base and merged - base: exact when a model is added, later estimated from sketches.

    \b
    Examples:
      dimat continual status merged
      dimat continual status merged --format json
      dimat continual status 127.0.0.1:7100
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.ledger import status_command

    raise typer.Exit(status_command(ledger, format.value, certs, identity, insecure))


@app.command()
def export(
    ledger: Served,
    out: Annotated[
        Path, typer.Option(metavar="OUT", help="A file when the base is one, else a folder with config and tokenizer.")
    ],
    dtype: Annotated[
        Optional[str], typer.Option(metavar="DTYPE", help="float32, bfloat16, float16 or float64; else the base's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    certs: Certs = None,
    identity: As = None,
    insecure: Insecure = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Write the merged model, and a card beside it that tells where it comes from.

    \b
    Examples:
      dimat continual export merged --out merged.safetensors
      dimat continual export merged --out merged_hf/ --dtype bfloat16 --force
      dimat continual export 127.0.0.1:7100 --out merged.safetensors
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.ledger import export_command

    raise typer.Exit(export_command(ledger, out, dtype, force, format.value, quiet, certs, identity, insecure))


@app.command()
def undo(ledger: Ledger, format: OutputFormat = Format.text, verbose: Verbose = 0, quiet: Quiet = False) -> None:
    """Go back to the version before, as often as states are kept (init --keep N).

    \b
    Example:
      dimat continual undo merged
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.ledger import undo_command

    raise typer.Exit(undo_command(ledger, format.value))


@app.command()
def remove(
    ledger: Ledger,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What status calls it.")],
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The same model again; its digest is compared.")],
    stats: Stats = [],
    who: Who = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Take a model out again, for methods that add up (dimat methods). The ledger is then as if it never saw it.

    \b
    Example:
      dimat continual remove merged b checkpoints/b.safetensors
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.ledger import remove_command

    raise typer.Exit(remove_command(ledger, name, model, who, stats, format.value, quiet))


@app.command()
def verify(ledger: Ledger, format: OutputFormat = Format.text, verbose: Verbose = 0, quiet: Quiet = False) -> None:
    """Read everything again and compare it with what the journal says; exit code 1 when something is damaged.

    \b
    Example:
      dimat continual verify merged
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.ledger import verify_command

    raise typer.Exit(verify_command(ledger, format.value, quiet))


@app.command()
def evaluate(
    ledger: Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger's folder.")],
    tasks: Annotated[Path, typer.Option(metavar="FILE", help="The tasks to judge by, in the order of their models.")],
    version: Annotated[
        list[int], typer.Option(metavar="N", help="Which version (several: once each); by default the current one.")
    ] = [],
    again: Annotated[bool, typer.Option("--again", help="Measure also what was measured already.")] = False,
    picture: Annotated[
        Optional[Path],
        typer.Option(metavar="OUT.png", help="Draw the accuracy by task and step."),
    ] = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Judge a version by tasks: accuracy, what later models did to earlier tasks (BWT), which samples broke.

    FILE lists tasks as YAML or one name a line: built-in, package.module:object, or path/to/file.py:object beside it.
    What is found goes into the ledger's journal; BWT needs it after each add (add --evaluate FILE).

    \b
    Examples:
      dimat continual evaluate merged --tasks tasks.yaml
      dimat continual evaluate merged --tasks tasks.yaml --version 1 --version 2 --picture accuracy.png
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.continual_evaluate import evaluate_command

    raise typer.Exit(evaluate_command(ledger, tasks, version, again, picture, format.value))


@app.command()
def watch(
    ledger: Ledger,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where models appear: files, or folders of one.")],
    once: Annotated[bool, typer.Option("--once", help="Absorb what is there, and end.")] = False,
    interval_s: Annotated[
        float, typer.Option(metavar="S", help="Seconds between two looks; what rests for that long is complete.")
    ] = 2.0,
    pattern: Annotated[str, typer.Option(metavar="GLOB", help="Which names to look at.")] = "*",
    who: Who = None,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Absorb the models that appear in a folder, complete ones only, until a signal comes.

    Names that begin with a dot or end with .partial or .tmp are left alone; what is refused is told once. SIGINT and
    SIGTERM let the model that is being absorbed be finished. With --once the exit code is 1 when a model was refused
    or is not complete.

    \b
    Examples:
      dimat continual watch merged incoming/
      dimat continual watch merged incoming/ --once --pattern 'client-*.safetensors' --format json
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.continual_serve import watch_command

    raise typer.Exit(watch_command(ledger, folder, once, interval_s, pattern, who, format.value))


@app.command()
def serve(
    ledger: Ledger,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 is any free one.")
    ] = "127.0.0.1:7100",
    advertise: Annotated[Optional[str], typer.Option(metavar="HOST", help="The host that clients dial.")] = None,
    certs: Certs = None,
    insecure: Insecure = False,
    max_upload_bytes: Annotated[
        Optional[int],
        typer.Option(metavar="BYTES", min=1, help="Disk for models on their way; by default eight of the largest."),
    ] = None,
    expire_hours: Annotated[
        float, typer.Option(metavar="H", min=0.0, help="Forget broken uploads that nobody goes on with for so long.")
    ] = 24.0,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Take models in over the network, absorb them in the order in which they are complete, hand the merged one out.

    SIGTERM and SIGINT let the model that is being absorbed be finished; the exit codes are 0 and 130. What has arrived
    whole is never lost, and broken uploads go on where they stopped, also after the server was killed.

    \b
    Examples:
      dimat continual serve merged
      dimat continual serve merged --listen 0.0.0.0:7100 --advertise merge.example.org --certs certs
    """
    set_up_logging(max(verbose, 1), quiet, certs)
    from dimat.cli.continual_serve import serve_command

    code = serve_command(ledger, listen, advertise, insecure, max_upload_bytes, expire_hours, format.value, certs)
    raise typer.Exit(code)


@app.command()
def submit(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where a ledger is served.")],
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file or a Hugging Face folder.")],
    name: Annotated[Optional[str], typer.Option(help="What to call it; by default its file's name.")] = None,
    weight: Annotated[float, typer.Option(help="Its weight.")] = 1.0,
    who: Annotated[
        Optional[str], typer.Option(metavar="WHO", help="Who sends it: a claim that the journal notes as such.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(metavar="S", min=0.1, help="Seconds without a sign of the server before it is given up.")
    ] = 60.0,
    certs: Certs = None,
    identity: As = None,
    insecure: Insecure = False,
    format: OutputFormat = Format.text,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Send a model to a ledger that is served; when this returns it is in.

    The same model twice is in once. A connection that breaks is made again, and goes on where it stopped.

    \b
    Examples:
      dimat continual submit 127.0.0.1:7100 fine_tuned.safetensors
      dimat continual submit 127.0.0.1:7100 fine_tuned/ --name ward-7 --weight 2 --format json
    """
    set_up_logging(verbose, quiet)
    from dimat.cli.continual_serve import submit_command

    raise typer.Exit(
        submit_command(address, model, name, weight, who, timeout_s, format.value, quiet, certs, identity, insecure)
    )
