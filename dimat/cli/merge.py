"""`dimat merge METHOD MODEL...`: models on disk become one, by any registered method.

Everything is checked before a weight is read. The answer is written beside its place and renamed when it is whole, with
a card that says what it was made of; a merge that fails or is stopped leaves nothing behind.
"""

from __future__ import annotations

import gc
import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from dimat.cli.merge_words import Request, Words, read_words
from dimat.errors import EXIT_DONE, Interrupted
from dimat.hashing import HashAhead, HashedFile

if TYPE_CHECKING:
    from dimat.cli.align import Prepared
    from dimat.cli.merge_align import AlignedModel
    from dimat.cli.merge_job import Job
    from dimat.cli.merged import Answer
    from dimat.merge.stream import Merged

logger = logging.getLogger(__name__)
Tell = Callable[[str], None]
Show = Callable[[int, int], None]


def merge_command(request: Request, format: str, quiet: bool) -> int:
    """Merge, write and tell; the exit code."""
    words = read_words(request)  # before torch is loaded, which takes longer than a typo deserves
    with _stoppable(), HashAhead(_read_anyway(words, request)) as ahead:
        with _uncollected():
            from dimat.cli import merged as answers
            from dimat.cli.merge_job import prepare

        started = time.perf_counter()
        job = prepare(words, request)
        hashed = ahead.stop()
        ready = _check_room(job, request.out)
        for remark in job.remarks:
            logger.warning("%s", remark)
        if request.dry_run:
            if format == "json":
                print(json.dumps(answers.plan_as_json(job, request.out)))
            else:
                answers.print_plan(job, request.out)
            return EXIT_DONE
        with _progress(quiet) as (tell, show):
            answer = merge(job, ready, request, started, tell, show, hashed)
    if format == "json":
        print(json.dumps(answers.as_json(answer)))
    else:
        answers.print_answer(answer)
    return EXIT_DONE


def merge(
    job: Job,
    ready: Prepared | None,
    request: Request,
    started: float,
    tell: Tell,
    show: Show,
    hashed: Mapping[Path, HashedFile] | None = None,
) -> Answer:
    """Merge what was checked.

    Args:
        job: what to merge.
        ready: what was checked for aligning; None where nothing is aligned.
        request: what was typed.
        started: when, by `time.perf_counter`.
        tell: hears what is going on.
        show: hears (bytes read, bytes to read).
        hashed: what was hashed already, by file.

    Raises:
        UsageError: what only the weights show, such as NaN; nothing was written.
        DimatError: reading or writing failed; nothing was written.
    """
    from dimat.cli.merge_card import card
    from dimat.cli.merge_job import card_of
    from dimat.cli.merged import Answer
    from dimat.merge.stream import merge_files
    from dimat.modelfile.config import config_in

    is_folder = job.models[0].is_folder
    place = card_of(request.out, is_folder=is_folder)
    with ExitStack() as stack:
        aligned: list[AlignedModel] = []
        if ready is not None:
            from dimat.cli.merge_align import align_models

            parent = request.out.resolve().parent
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(dir=parent, prefix=f".{request.out.name}.aligned.")
            )
            aligned = align_models(job, ready, Path(folder), tell)

        def beside(merged: Merged) -> Mapping[str, bytes]:
            files = {place.name: card(job, merged, request.out, aligned)}
            config = config_in(job.like, str(job.dtype).removeprefix("torch.")) if is_folder and job.dtype else None
            return files | ({} if config is None else {"config.json": config})

        tell(f"merging into {request.out}")
        merged = merge_files(
            job.fold,
            [one.file for one in aligned] or job.models,
            request.out,
            weights=job.weights,
            base=job.base,
            stats=job.stats,
            folds=job.folds,
            weight_of=job.weight_of,
            dtype=job.dtype,
            memory_bytes=job.memory_bytes,
            like=job.like,
            extra_files=beside,
            overwrite=request.force,
            hashed=hashed,
            progress=show,
        )
    units = sum(one.units for one in aligned)
    moved = sum(one.moved for one in aligned) / units if units else None
    return Answer(job, merged, request.out, place, time.perf_counter() - started, moved)


def _read_anyway(words: Words, request: Request) -> tuple[Path, ...]:
    """The models that a merge will hash."""
    if request.dry_run or words.align is not None:
        return ()
    models = list(words.models)
    if words.mergekit is not None:
        models = [Path(one.model) for _, sources in words.mergekit.parts for one in sources]
    base = words.base if words.mergekit is None else words.mergekit.base_model
    return (*models, *([Path(base)] if base else []))


def _check_room(job: Job, out: Path) -> Prepared | None:
    """The last checks, which take a moment: memory, and what aligning needs."""
    from dimat.cli.merge_job import check_memory

    check_memory(job, out)
    if job.align is None:
        return None
    from dimat.cli.merge_align import check_alignment  # a hundred modules that other merges do without

    return check_alignment(job, out)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import without looking for garbage: there is none, and looking takes a tenth of the time torch takes."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the merge cleanly: what is half-written goes, and the exit code is that of a stop."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("the merge was stopped; nothing was written", hint="the same command begins again") from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(quiet: bool) -> Iterator[tuple[Tell, Show]]:
    """A bar on stderr, where stderr is a terminal; the log has the steps with -v."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    if quiet or not console.is_terminal:
        yield logger.info, lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(step: str) -> None:
            logger.info(step)
            bar.update(task, description=step)

        yield tell, lambda done, total: bar.update(task, completed=done, total=total)
