"""The commands about models on disk: align one to another, merge many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from dimat.cli.options import Format, OutputFormat, Quiet, Verbose, set_up_logging

app = typer.Typer()


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
