"""`dimat run`, `dimat simulate`, `dimat report`: from a config to results on stdout and a report in the run folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dimat.config import RunConfig, load_config
from dimat.errors import EXIT_DONE, EXIT_FAILED, EXIT_TARGET_MISSED, DimatError
from dimat.messages import View

if TYPE_CHECKING:
    from dimat.cli.live import LiveView

Runner = Callable[[RunConfig, Path, Callable[[View], None], int], None]
"""Runs a config in a folder, tells of every view, and hands the folder's lock to whatever it starts."""


def run_command(
    config: Path | None,
    settings: list[str],
    out: Path | None,
    fresh: bool,
    shape: str,
    format: str,
    verbose: int,
    quiet: bool,
    certs: Path | None = None,
) -> int:
    """A coordinator and agents as processes of this machine; returns the exit code."""

    def check(loaded: RunConfig) -> None:
        from dimat.cli.secured import issue_for_run, refuse_without_certificates

        refuse_without_certificates(loaded, certs)
        if certs is not None:
            issue_for_run(certs, loaded)

    def runner(loaded: RunConfig, folder: Path, on_view: Callable[[View], None], lock: int) -> None:
        from dimat.launch.local import LocalRun, Shape

        launched: Shape = "per-agent" if shape == "per-agent" else "together"
        LocalRun(loaded, folder, launched, on_view, lock, certs).run()

    return _carry_out(runner, config, settings, out, fresh, format, verbose, quiet, check)


def simulate_command(
    config: Path | None, settings: list[str], out: Path | None, fresh: bool, format: str, verbose: int, quiet: bool
) -> int:
    """All agents in this process; returns the exit code."""

    def runner(loaded: RunConfig, folder: Path, on_view: Callable[[View], None], lock: int) -> None:
        del lock  # everything happens in this process, which has it
        from dimat.simulate import simulate

        simulate(loaded, folder, on_view)

    return _carry_out(runner, config, settings, out, fresh, format, verbose, quiet)


def _carry_out(
    runner: Runner,
    config_path: Path | None,
    settings: list[str],
    out: Path | None,
    fresh: bool,
    format: str,
    verbose: int,
    quiet: bool,
    check: Callable[[RunConfig], None] | None = None,
) -> int:
    config = load_config(config_path, settings)
    # Everything that can be wrong is found here, before a folder is made or a process started.
    from dimat.agent.preflight import check_run

    check_run(config)
    if check is not None:
        check(config)
    from dimat.cli.live import LiveView, print_result
    from dimat.report import load_record, summary, write_report
    from dimat.runfolder import held, prepare

    folder = prepare(config, out, fresh=fresh)
    with held(folder) as lock:
        if is_over(folder):
            tell(f"{folder} holds a run that is finished: nothing is run, --fresh starts over", quiet)
        else:
            tell(f"starting {config.agents} agents; each loads torch first", quiet)
            _follow(runner, config, folder, LiveView(config, quiet=quiet, verbose=verbose), lock)
        page = write_report(folder)
    record = load_record(folder)
    print_result(summary(record), page, format)
    code = EXIT_FAILED if record.outcome is None else record.outcome.exit_code
    if code == EXIT_TARGET_MISSED:
        tell(f"the target accuracy {config.stop.target_accuracy} was not reached", quiet=False)
    return code


def tell(text: str, quiet: bool) -> None:
    """A line for people, on stderr."""
    if not quiet:
        print(text, file=sys.stderr)


def is_over(folder: Path) -> bool:
    """Whether the run in `folder` has come to its own end: then there is nothing to continue, only to tell."""
    from dimat.coordinator import Store

    if not (folder / "coordinator.sqlite").is_file():
        return False
    with Store.open(folder, read_only=True) as store:
        outcome = store.outcome()
    return outcome is not None and outcome.kind in ("rounds", "target", "plateau")


def _follow(runner: Runner, config: RunConfig, folder: Path, live: LiveView, lock: int) -> None:
    """Run, showing how it goes; what was done before a failure still gets its report."""
    from dimat.report import write_report

    live.start()
    try:
        runner(config, folder, live.update, lock)
    except DimatError:
        with suppress(DimatError, OSError):
            write_report(folder)
        raise
    finally:
        live.close()


def report_command(run: Path, format: str) -> int:
    """Write the report of a run folder."""
    from dimat.cli.live import print_result
    from dimat.report import load_record, summary, write_report

    page = write_report(run)
    print_result(summary(load_record(run)), page, format)
    return EXIT_DONE
