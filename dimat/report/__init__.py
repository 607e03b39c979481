"""What a run has to show: `write_report` makes one HTML file and the PNGs, `summary` the object that JSON users get.

    record   everything in a run's folder, read once            numbers  pure functions of it
    figures  one function per figure                            html     the page
    style    the look that figures share                        words    numbers as people read them

matplotlib and jinja2 are imported by the first report that is written.
"""

from __future__ import annotations

from pathlib import Path

from dimat.report.numbers import summary
from dimat.report.record import RunRecord, find_run, load_record

__all__ = ["RunRecord", "find_run", "load_record", "summary", "write_report"]


def write_report(run_folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` into a run's folder; returns the path of the page.

    Raises:
        UsageError: `run_folder` is neither a run nor the name of one in `./runs`; the message lists the runs there are.
    """
    from dimat.report import html

    return html.write_report(run_folder)
