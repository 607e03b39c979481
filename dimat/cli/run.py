"""`dimat run`, `dimat simulate`, `dimat report`: from a config to results on stdout and a report in the run folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dimat.config import RunConfig, load_config
from dimat.errors import EXIT_DONE, EXIT_FAILED, DimatError
from dimat.messages import View

Runner = Callable[[RunConfig, Path, Callable[[View], None]], None]


def run_command(
    config: Path | None,
    settings: list[str],
    out: Path | None,
    fresh: bool,
    shape: str,
    format: str,
    verbose: int,
    quiet: bool,
) -> int:
    """A coordinator and agents as processes of this machine; returns the exit code."""

    def runner(loaded: RunConfig, folder: Path, on_view: Callable[[View], None]) -> None:
        from dimat.launch.local import LocalRun

        LocalRun(loaded, folder, "per-agent" if shape == "per-agent" else "together", on_view).run()

    return _carry_out(runner, config, settings, out, fresh, format, verbose, quiet)


def simulate_command(
    config: Path | None, settings: list[str], out: Path | None, fresh: bool, format: str, verbose: int, quiet: bool
) -> int:
    """All agents in this process; returns the exit code."""

    def runner(loaded: RunConfig, folder: Path, on_view: Callable[[View], None]) -> None:
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
) -> int:
    config = load_config(config_path, settings)
    # Everything that can be wrong is found here, before a folder is made or a process started.
    from dimat.agent.preflight import check_run

    check_run(config)
    from dimat.cli.live import LiveView, print_result
    from dimat.report import load_record, summary, write_report
    from dimat.runfolder import prepare

    folder = prepare(config, out, fresh=fresh)
    live = LiveView(config, quiet=quiet, verbose=verbose)
    live.start()
    try:
        runner(config, folder, live.update)
    except DimatError:
        # The rounds that were done are worth a picture all the same; the error is what the user must see.
        with suppress(DimatError, OSError):
            write_report(folder)
        raise
    finally:
        live.close()
    page = write_report(folder)
    record = load_record(folder)
    print_result(summary(record), page, format)
    return EXIT_FAILED if record.outcome is None else record.outcome.exit_code


def report_command(run: Path, format: str) -> int:
    """Write the report of a run folder."""
    from dimat.cli.live import print_result
    from dimat.report import load_record, summary, write_report

    page = write_report(run)
    print_result(summary(load_record(run)), page, format)
    return EXIT_DONE
