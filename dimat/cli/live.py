"""What a person sees of a run while it goes on: one live table, or one plain line a round where there is no terminal.

Everything here goes to stderr, but for `print_result`: stdout is for results. Texts that came from agents are shown as
they are, without control characters and never as markup. rich is imported when a view starts.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from dimat.config import RunConfig
from dimat.messages import Member, View
from dimat.report import words
from dimat.report.lines import Teller, clean, histogram_lines, numbers_of, state_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

_STYLES = {"lost": "red", "failed": "bold red", "done": "green", "absent": "dim"}


class LiveView:
    """Follows a run's views on stderr.

    Args:
        config: the run: how many agents and rounds, its name and its graph's.
        console: where to draw; by default stderr. A live table is drawn when it is a terminal, else plain lines.
        verbose: 1 tells every agent's numbers in each round and every wait.
        quiet: show nothing at all.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        console: Console | None = None,
        verbose: int = 0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.verbose, self.quiet = config, verbose, quiet
        self._console, self._clock = console, clock
        self._live: Live | None = None
        self._view = View(0, "forming")
        self._viewed_at = 0.0
        self._started: tuple[float, int] | None = None  # when the run was first seen to run, and after what round
        self._teller = Teller(config.rounds, verbose=verbose)

    def start(self) -> None:
        """Begin to show; who holds which classes is told once all agents are there."""
        if self.quiet:
            return
        from rich.console import Console
        from rich.live import Live

        self._console = self._console or Console(stderr=True)
        self._viewed_at = self._clock()
        self._teller.now(self._clock())
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # stdout is left alone: a result printed there must not end up in the table's stream.
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=4, redirect_stdout=False
            )
            self._live.start()

    def update(self, view: View) -> None:
        """Show a newer picture of the run."""
        now = self._clock()
        if self._started is None and view.state != "forming":
            self._started = (now, view.newest.round if view.newest else view.start_round)
            self.show_histograms(view.members)
        self._view, self._viewed_at = view, now
        lines = list(self._teller.tell(view, now))
        if self._live is None or self.verbose:
            self._say(lines)

    def show_histograms(self, members: Sequence[Member]) -> None:
        """Print how many samples of each class each agent holds; above the live table, which stays."""
        self._say(histogram_lines(members))

    def close(self) -> None:
        """Leave the last picture standing and stop; a second call does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _say(self, lines: Sequence[str]) -> None:
        if self.quiet or self._console is None:
            return
        for text in lines:
            self._console.print(clean(text), markup=False, highlight=False, soft_wrap=True)

    # ------------------------------------------------------------------------------------------------ on a terminal

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        view = self._view
        lines: list[RenderableType] = [self._progress(view), self._table(view)]
        if view.newest is not None:
            lines.append(Text(clean(numbers_of(view.newest)), style="bold"))
        if state := state_line(view):
            lines.append(Text(clean(state), style="dim"))
        return Group(*lines)

    def _progress(self, view: View) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = view.newest.round if view.newest else view.start_round
        last = view.stop_after if view.stop_after is not None else self.config.rounds
        line = Table.grid(padding=(0, 1))
        heading = f"{self.config.name} · {self.config.agents} agents, {self.config.topology.graph}"
        line.add_row(
            Text(clean(heading), style="bold"),
            ProgressBar(total=max(last, 1), completed=min(done, last), width=28),
            Text(f"round {done}/{last}{self._time_left(done, last)}"),
        )
        return line

    def _time_left(self, done: int, last: int) -> str:
        if self._started is None:
            return ""
        since, first = self._started
        elapsed = self._clock() - since
        left = f", about {_whole(elapsed / (done - first) * (last - done))} left" if first < done < last else ""
        return f" · {_whole(elapsed)}{left}"

    def _table(self, view: View) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for heading in ("agent", "round"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("phase", min_width=9, no_wrap=True)
        for heading in ("loss", "accuracy\nbefore merge", "accuracy\nafter merge"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("waiting", min_width=12, overflow="fold")
        table.add_column("silent", justify="right", no_wrap=True)
        since = self._clock() - self._viewed_at
        room = max(5, self._console.height - 9) if self._console else self.config.agents
        shown = most_telling(with_absent(view.members, self.config.agents), room)
        for member in shown:
            silent = member.silent_s + since if member.state in ("joined", "running", "lost") else 0.0
            texts = (
                str(member.agent),
                str(member.round),
                member.phase if member.state == "running" and member.phase else member.state,
                *(words.accuracy(member.metrics.get(key, math.nan)) for key in ("loss", "accuracy_before", "accuracy")),
                re.sub(r"^(round \d+: )?waiting ", "", member.waiting),
                f"{silent:.0f} s" if silent >= 3 else "",
            )
            style = _STYLES.get(member.state, "yellow" if member.waiting else "")
            table.add_row(*(Text(clean(text)) for text in texts), style=style)
        if len(shown) < self.config.agents:
            table.add_row("…", "", Text(f"and {self.config.agents - len(shown)} more", style="dim"))
        return table


def print_result(
    result: Mapping[str, Any], report: Path | None, format: str = "text", *, file: TextIO | None = None
) -> None:
    """Print a run's result, as `dimat.report.summary` gives it, on stdout.

    Args:
        result: run, reason, rounds, seconds, mean_accuracy, min_accuracy, history.
        report: where the report is, if one was written.
        format: `text`, or `json`: one object on one line.
        file: instead of stdout.
    """
    file = file or sys.stdout
    if format == "json":
        print(json.dumps(result, allow_nan=False), file=file)
        return
    ends = [each for each in result["history"] if each["consensus_distance"] is not None]
    done = f"{words.count(result['rounds'], 'round')} in {words.duration(result['seconds'])}"
    print(clean(" · ".join(filter(None, (done, result["reason"])))), file=file)
    if result["mean_accuracy"] is not None:
        worst = "–" if result["min_accuracy"] is None else words.accuracy(result["min_accuracy"])
        print(f"  accuracy            mean {words.accuracy(result['mean_accuracy'])}, worst agent {worst}", file=file)
    if ends:
        first, last = ends[0], ends[-1]
        distances = [each["consensus_distance"] for each in (first, last)]
        both = first is not last and all(distances)  # of nothing there is no ratio
        change = f", {words.times(*distances)} than after round {first['round']}" if both else ""
        print(f"  consensus distance  {words.plain(distances[1])} after round {last['round']}{change}", file=file)
    if report is not None:
        print(f"  report              {report}", file=file)
    print(f"  run folder          {result['run']}: the same command continues a run that stopped", file=file)


def with_absent(members: Sequence[Member], num_agents: int) -> list[Member]:
    """All agents by id, those not heard of yet among them."""
    known = {member.agent: member for member in members}
    return [known.get(agent, Member(agent)) for agent in sorted({*range(num_agents), *known})]


def most_telling(members: Sequence[Member], most: int) -> list[Member]:
    """At most `most` of the members, by id: failed and lost ones first, then those that wait, then the slowest."""
    if len(members) <= most:
        return list(members)
    weight = {"failed": 0, "lost": 0, "done": 3}
    ranked = sorted(
        members, key=lambda m: (weight.get(m.state, 1 if m.waiting else 2), m.round, m.agent)
    )  # fmt: skip
    return sorted(ranked[:most], key=lambda member: member.agent)


def _whole(seconds: float) -> str:
    return words.duration(seconds) if seconds >= 60 else f"{seconds:.0f} s"
