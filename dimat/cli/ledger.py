"""What `dimat continual init, add, status, export, undo, remove` and `verify` do, and how they tell it."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimat.cli.continual_remote import is_address, remote_export_command, remote_status
from dimat.cli.secured import open_line, refuse_certificates
from dimat.continual.entry import AlreadyAbsorbed, Entry
from dimat.continual.ledger import Ledger
from dimat.continual.status import ModelStatus, Status
from dimat.errors import EXIT_DONE, EXIT_FAILED, UsageError
from dimat.plugins import unknown

if TYPE_CHECKING:
    import torch

_EXAMPLE_SAMPLES = 64


def init_command(
    path: Path,
    base: Path,
    method: str,
    settings: Sequence[str],
    keep: int,
    align: str | None,
    model: str | None,
    data: Path | None,
    inputs: Sequence[str],
    who: str | None,
    format: str,
    quiet: bool,
) -> int:
    """Make a ledger."""
    from dimat.continual.create import ledger_fold

    options = read_options(settings)
    ledger_fold(method, options)  # before it: an option of the ledger's own name is none of the method's
    if align is None and (model is not None or data is not None or inputs):
        given = "--model" if model is not None else "--data" if data is not None else "--input"
        raise UsageError(f"{given} says what is aligned, and how is missing", hint="--align weights")
    with _working(quiet, "making the ledger"):
        example = _example(align, model, data, inputs)
        ledger = Ledger.create(
            path, base, method, keep=keep, align=align, model=model, example=example, who=_who(who), **options
        )
    manifest = ledger.manifest
    if format == "json":
        told = {"method": manifest.method, "options": dict(manifest.options), "base_digest": manifest.base_digest}
        print(json.dumps({"ledger": str(path), **told, "keep": keep, "align": align}))
    else:
        aligned = ", arrivals are aligned by weights" if align else ""
        print(f"{path} merges by {manifest.method} on {base} (digest {manifest.base_digest[:12]}){aligned}; next:")
        print(f"  dimat continual add {path} MODEL")
    return EXIT_DONE


def add_command(
    path: Path,
    model: Path,
    name: str | None,
    weight: float,
    who: str | None,
    again: bool,
    if_new: bool,
    stats: Sequence[str],
    evaluate: Path | None,
    format: str,
    quiet: bool,
) -> int:
    """Absorb a model, and judge what came of it."""
    if again and if_new:
        raise UsageError("--again absorbs a model once more, --if-new leaves it at once: give one of them")
    ledger = Ledger.open(path)
    if evaluate is not None:
        from dimat.cli.continual_evaluate import prepare_tasks

        prepare_tasks(evaluate)  # a list that cannot be used is told before anything is absorbed
    added = True
    with _working(quiet, f"absorbing {model}"):
        try:
            entry = ledger.add(
                model, name=name, weight=weight, who=_who(who), again=again, stats=_stats_of(ledger, stats)
            )
        except AlreadyAbsorbed as error:
            if not if_new:
                raise
            entry, added = error.entry, False
    if evaluate is not None:
        from dimat.cli.continual_evaluate import evaluate_command

        if format == "json":
            return _add_and_evaluate(ledger, entry, added, evaluate)
        _print_added(ledger, entry, added)
        return evaluate_command(path, evaluate, (entry.version,) if added else (), False, None, format)
    if format == "json":
        print(json.dumps(_change(ledger, entry) | {"added": added}))
    else:
        _print_added(ledger, entry, added)
    return EXIT_DONE


def status_command(
    path: Path, format: str, certs: Path | None = None, identity: str | None = None, insecure: bool = False
) -> int:
    """Tell what is in."""
    if is_address(path):
        status = remote_status(str(path), line=open_line(str(path), certs, identity, insecure))
    else:
        refuse_certificates(path, certs, identity)
        status = Ledger.open(path).status()
    if format == "json":
        print(json.dumps(status.as_json()))
    else:
        _print_status(path, status)
    return EXIT_DONE


def export_command(
    path: Path,
    out: Path,
    dtype: str | None,
    force: bool,
    format: str,
    quiet: bool,
    certs: Path | None = None,
    identity: str | None = None,
    insecure: bool = False,
) -> int:
    """Write the merged model."""
    if is_address(path):
        line = open_line(str(path), certs, identity, insecure)
        return remote_export_command(str(path), out, dtype, force, format, quiet, line=line)
    refuse_certificates(path, certs, identity)
    ledger = Ledger.open(path)
    with _working(quiet, f"writing {out}"):
        exported = ledger.write(out, dtype=_dtype(dtype), overwrite=force)
    if format == "json":
        told = {"out": str(out), "digest": exported.digest, "version": exported.version}
        print(json.dumps(told | {"method": ledger.manifest.method, "num_models": exported.num_models}))
    else:
        print(f"{out} has {_count(exported.num_models)} in it (version {exported.version}, digest {exported.digest})")
    return EXIT_DONE


def undo_command(path: Path, format: str) -> int:
    """Go back by one version."""
    ledger = Ledger.open(path)
    entry = ledger.undo()
    change = _change(ledger, entry)
    back = any(one.order == entry.order for one in ledger.entries())
    if format == "json":
        print(json.dumps(change | {"undone": "remove" if back else "add"}))
    else:
        what = f"{entry.name} is in again" if back else f"{entry.name} is out again"
        print(f"{what}: version {change['current_version']}, with {_count(change['num_models'])}")
    return EXIT_DONE


def remove_command(
    path: Path, name: str, model: Path, who: str | None, stats: Sequence[str], format: str, quiet: bool
) -> int:
    """Take a model out."""
    ledger = Ledger.open(path)
    with _working(quiet, f"taking {name} out"):
        entry = ledger.remove(name, model, who=_who(who), stats=_stats_of(ledger, stats))
    change = _change(ledger, entry)
    if format == "json":
        print(json.dumps(change))
    else:
        print(f"{entry.name} is out: version {change['current_version']}, with {_count(change['num_models'])}")
    return EXIT_DONE


def verify_command(path: Path, format: str, quiet: bool) -> int:
    """Look at every byte again."""
    from dimat.continual.verify import verify

    with _working(quiet, "reading the base and the states"):
        problems = verify(path)
    if format == "json":
        print(json.dumps({"ledger": str(path), "problems": problems}))
    elif problems:
        for problem in problems:
            print(problem)
        print("take what is damaged from a backup, or build the ledger anew from its models")
    else:
        print(f"{path}: the base, every state that is kept and the journal are as they were written")
    return EXIT_FAILED if problems else EXIT_DONE


def read_options(settings: Sequence[str]) -> dict[str, Any]:
    """`-s key=value` of a merge method, values as YAML.

    Raises:
        UsageError: something of another form.

    >>> read_options(["density=0.2", "trim=tensor", "eps=1e-3"])
    {'density': 0.2, 'trim': 'tensor', 'eps': 0.001}
    """
    import yaml

    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"-s {setting!r} is not of the form key=value, such as -s alpha=0.5")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"-s {setting!r}: the value is not valid YAML") from error
        if isinstance(value, str):  # YAML 1.1 takes 1e-3 for text
            with suppress(ValueError):
                value = float(value)
        options[key] = value
    return options


def _example(align: str | None, model: str | None, data: Path | None, inputs: Sequence[str]) -> Any:
    if align is None or model is None:
        return None
    from dimat.cli.examples import find_examples
    from dimat.modelfile import build_model

    examples = find_examples(
        build_model(model), model, data, list(inputs), batch_size=_EXAMPLE_SAMPLES, max_samples=_EXAMPLE_SAMPLES, seed=0
    )
    return examples.example


def _stats_of(ledger: Ledger, given: Sequence[str]) -> Path | Mapping[str, Path] | None:
    """`--stats FILE`, or `--stats KIND=FILE` once for each kind."""
    kinds: dict[str, Path] = {}
    for text in given:
        kind, equals, file = text.partition("=")
        if equals and kind in ledger.fold.stats:
            kinds[kind] = Path(file)
        elif len(given) == 1:
            return Path(text)
        else:
            raise UsageError(
                f"--stats {text!r} does not say of which kind it is; this ledger's method takes "
                f"{', '.join(ledger.fold.stats) or 'none'}",
                hint="--stats KIND=FILE, once for each",
            )
    return kinds or None


def _dtype(name: str | None) -> torch.dtype | None:
    from dimat.continual.export import DTYPES

    if name is None:
        return None
    if name not in DTYPES:
        raise UsageError(f"--dtype: {unknown('dtype', name, DTYPES)}")
    return DTYPES[name]


def _who(given: str | None) -> str:
    if given is not None:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as in a container
        return ""


def _change(ledger: Ledger, entry: Entry) -> dict[str, Any]:
    page = ledger.journal.page()
    return asdict(entry) | {"current_version": page.current.version, "num_models": page.current.num_models}


def _add_and_evaluate(ledger: Ledger, entry: Entry, added: bool, tasks: Path) -> int:
    from dimat.cli.continual_evaluate import as_json
    from dimat.continual.evaluate import evaluate_ledger
    from dimat.continual.tasklist import read_tasks

    # Another process may have added a model since: judged is what this one has made.
    evaluation = evaluate_ledger(ledger, read_tasks(tasks), versions=(entry.version,) if added else None)
    print(json.dumps(_change(ledger, entry) | {"added": added, "evaluation": as_json(evaluation)}))
    return EXIT_DONE


def _print_added(ledger: Ledger, entry: Entry, added: bool) -> None:
    change = _change(ledger, entry)
    if not added:
        print(f"{entry.name} is in already: number {entry.order}, added {entry.time} (digest {entry.digest[:12]})")
        return
    cosine = "" if entry.cosine is None else f", cosine to the merged update {entry.cosine:.3f}"
    print(f"{entry.name} is in: number {entry.order}, norm {entry.norm:.4g}{cosine}")
    print(f"  version {change['current_version']}, with {_count(change['num_models'])}")


def _print_status(path: Path, status: Status) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    options = "".join(f", {key}={value}" for key, value in status.options.items())
    table = Table(title=f"{path}: {status.method}{options}", title_justify="left")
    for heading in ("", "name", "weight", "norm", "cosine\nat add", "cosine\nnow", "added (UTC)", "by"):
        text = heading in ("name", "added (UTC)", "by")
        table.add_column(
            heading, justify="left" if text else "right", overflow="fold", no_wrap=heading not in ("name", "by")
        )
    for model in status.models:
        table.add_row(*_row(model, status.version))
    console.print(table)
    facts = [
        f"version {status.version}, {_count(status.num_models)}",
        f"base {status.base_digest[:12]}{', arrivals are aligned by ' + status.align if status.align else ''}",
        f"state {status.state_bytes:,} bytes, norm of the merged update {status.update_norm:.4g}",
        f"undo can go back {status.num_undo} {'version' if status.num_undo == 1 else 'versions'}",
    ]
    console.print("\n".join(facts))
    if any(model.entry.version != status.version for model in status.models):
        console.print("~ estimated from sketches, to about ±0.02")


def _row(model: ModelStatus, version: int) -> tuple[str, ...]:
    entry = model.entry
    about = "" if entry.version == version or model.cosine_now is None else "~"
    now = "–" if model.cosine_now is None else f"{about}{model.cosine_now:.3f}"
    at_add = "–" if entry.cosine is None else f"{entry.cosine:.3f}"
    added = entry.time[:16].replace("T", " ")
    return str(entry.order), entry.name, f"{entry.weight:g}", f"{entry.norm:.4g}", at_add, now, added, entry.who


def _count(models: int) -> str:
    return f"{models} {'model' if models == 1 else 'models'}"


@contextmanager
def _working(quiet: bool, what: str) -> Iterator[None]:
    """A line on stderr while it lasts, where stderr is a terminal."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
