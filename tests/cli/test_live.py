"""What a person sees while a run goes on: exact lines without a terminal, a table of all agents with one."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dimat.cli.live import LiveView, most_telling, print_result
from dimat.config import RunConfig
from dimat.messages import Member, RoundSummary, View
from dimat.report.lines import histogram_lines

CONFIG = RunConfig(agents=4)
SUMMARY = RoundSummary(7, 0.934, 0.901, 0.882, 1.23)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A view, where it draws, and its clock."""

    def __init__(self, config: RunConfig = CONFIG, *, terminal: bool = False, height: int = 40, **options: Any) -> None:
        self.file, self.clock = io.StringIO(), Clock()
        console = Console(
            file=self.file,
            force_terminal=terminal,
            width=120,
            height=height,
            color_system=None,
            _environ={"TERM": "xterm"},
        )
        self.view = LiveView(config, console=console, clock=self.clock, **options)
        self.view.start()

    def show(self, view: View, *, after: float = 0.0) -> None:
        self.clock.now += after
        self.view.update(view)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


def members(**changes: Any) -> tuple[Member, ...]:
    """Four agents at work; `three` replaces what agent 3 is."""
    at_work = [
        Member(
            agent,
            state="running",
            round=7,
            phase="train",
            metrics={"loss": 0.25, "accuracy_before": 0.88, "accuracy": 0.9 + agent / 100},
        )
        for agent in range(4)
    ]
    return (*at_work[:3], replace(at_work[3], **changes))


def test_one_plain_line_a_round() -> None:
    screen = Screen()
    screen.show(View(1, "running", members=members()), after=1.0)
    screen.show(View(2, "running", members=members(), newest=SUMMARY), after=3.14)
    screen.show(View(3, "running", members=members(), newest=SUMMARY), after=1.0)  # nothing new: nothing said
    unmerged, two_edges_less = RoundSummary(8, 0.95, 0.94, math.nan, math.nan), replace(SUMMARY, round=9, num_missing=2)
    screen.show(View(4, "running", members=members(), newest=unmerged), after=61.0)
    screen.show(View(5, "running", members=members(), newest=two_edges_less), after=0.5)
    assert screen.lines == [
        "round 7/20 · mean accuracy 0.93 (min 0.90, before merge 0.88) · consensus distance 1.2 · 4.1 s",
        "round 8/20 · mean accuracy 0.95 (min 0.94) · 1 min 2 s",
        "round 9/20 · mean accuracy 0.93 (min 0.90, before merge 0.88) · consensus distance 1.2 · 2 edges unused"
        " · 0.5 s",
    ]


def test_one_line_for_every_changed_reason() -> None:
    screen = Screen()
    screen.show(View(1, "forming", reason="waiting for agent 3", members=members(state="absent")))
    screen.show(View(2, "running", start_round=6, members=members()))
    screen.show(View(3, "running", start_round=6, members=members(state="lost", silent_s=14.2)))
    screen.show(View(4, "running", start_round=6, members=members(state="lost", silent_s=15.2)), after=1.0)
    screen.show(View(5, "running", start_round=6, members=members()))
    reached = "mean accuracy 0.95 is reached"
    for number in (6, 7):
        screen.show(View(number, "stopping", start_round=6, stop_after=9, reason=reached, members=members()))
    failed = members(state="failed", waiting="out of memory")
    screen.show(View(8, "stopping", start_round=6, stop_after=9, reason=reached, members=failed))
    assert screen.lines == [
        "waiting for agent 3",
        "going on after round 6",
        "agent 3 is lost, last heard 14 s ago",
        "agent 3 is back",
        "stopping after round 9: mean accuracy 0.95 is reached",
        "agent 3 has failed: out of memory",
    ]


def test_what_the_result_will_tell_is_not_told_before() -> None:
    screen, reason = Screen(), "all 20 rounds are done"
    last = replace(SUMMARY, round=20)
    screen.show(View(1, "stopping", stop_after=20, reason=reason, members=members(), newest=last), after=2.0)
    screen.show(View(2, "done", stop_after=20, reason=reason, members=members(), newest=last))
    assert len(screen.lines) == 1


def test_a_stop_that_names_its_round_is_told_as_it_is() -> None:
    screen, reason = Screen(), "asked by the user: stopping after round 9 of 20"
    screen.show(View(1, "stopping", stop_after=9, reason=reason, members=members(), newest=SUMMARY), after=2.0)
    assert screen.lines[1:] == [reason]


def test_a_wait_is_told_once_and_only_when_it_lasts() -> None:
    screen = Screen()
    for second in range(1, 12):
        waiting = f"waiting {second} s for agent 1, last heard {second + 2} s ago"
        screen.show(View(second, "running", members=members(waiting=waiting)), after=1.0)
    screen.show(View(12, "running", members=members()))
    screen.show(View(13, "running", members=members(waiting="waiting 1 s for agent 2")))
    assert screen.lines == ["agent 3: waiting 6 s for agent 1, last heard 8 s ago"]


def test_verbose_tells_every_agent_and_every_wait() -> None:
    screen = Screen(verbose=1)
    screen.show(View(1, "running", members=members(waiting="waiting for agent 1", round=8)[2:]))
    screen.show(View(2, "running", members=members(waiting="waiting for agent 1", round=8)[2:]))
    assert screen.lines == [
        "  agent 2 · round 7 · loss 0.250 · accuracy 0.880 → 0.920",
        "  agent 3 · round 8 · loss 0.250 · accuracy 0.880 → 0.930",
        "agent 3: waiting for agent 1",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_says_nothing(terminal: bool) -> None:
    screen = Screen(quiet=True, terminal=terminal)
    screen.view.show_histograms([Member(0, histogram={"a": 3})])
    screen.show(View(1, "running", members=members(state="lost"), newest=SUMMARY))
    screen.view.close()
    assert screen.lines == []


def test_the_table_shows_all_agents() -> None:
    screen = Screen(terminal=True)
    three = members(waiting="round 8: waiting 12 s for agent 1 (last heard 14 s ago)", phase="wait", silent_s=5.0)
    screen.show(View(1, "running", members=three[1:], newest=SUMMARY))
    screen.view.close()
    screen.view.close()
    last = screen.file.getvalue()
    assert "digits-ring · 4 agents, ring" in last
    assert "round 7/20" in last
    assert "mean accuracy 0.93 (min 0.90, before merge 0.88) · consensus distance 1.2" in last
    rows = [re.split(r"\s{2,}", line.strip()) for line in screen.lines]
    assert ["0", "0", "absent", "–", "–", "–"] in rows
    assert ["1", "7", "train", "0.250", "0.880", "0.910"] in rows
    assert ["3", "7", "wait", "0.250", "0.880", "0.930", "12 s for agent 1 (last heard 14 s ago)", "5 s"] in rows


def test_a_small_terminal_shows_those_who_need_a_look() -> None:
    screen = Screen(CONFIG.model_copy(update={"agents": 64}), terminal=True, height=14)
    crowd = [Member(agent, state="running", round=9) for agent in range(64)]
    crowd[40], crowd[50] = replace(crowd[40], state="lost"), replace(crowd[50], waiting="waiting for agent 40")
    crowd[60] = replace(crowd[60], round=8)
    assert [member.agent for member in most_telling(crowd, 5)] == [0, 1, 40, 50, 60]
    screen.show(View(1, "running", members=tuple(crowd), newest=SUMMARY))
    screen.view.close()
    assert "… and 59 more" in " ".join(screen.file.getvalue().split())


def test_no_agent_steers_the_terminal() -> None:
    for terminal in (True, False):
        screen = Screen(terminal=terminal, verbose=1)
        evil = "[bold]x[/bold]\x1b]0;owned\x07"
        screen.show(View(1, "running", members=members(waiting=evil)))
        screen.view.close()
        assert "\x1b]0" not in screen.file.getvalue()
        assert "[bold]x[/bold]�]0;owned�" in screen.file.getvalue()


def test_a_dumb_terminal_gets_plain_lines() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, _environ={"TERM": "dumb"})
    with LiveView(CONFIG, console=console, clock=Clock()) as view:
        view.update(View(1, "running", members=members(), newest=SUMMARY))
    assert file.getvalue() == (
        "round 7/20 · mean accuracy 0.93 (min 0.90, before merge 0.88) · consensus distance 1.2 · 0.0 s\n"
    )


def test_nothing_of_it_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView(CONFIG) as view:
        view.update(View(1, "running", members=members(), newest=SUMMARY))
        view.show_histograms([Member(0, histogram={"a": 3})])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("round 7/20 · mean accuracy 0.93")


def test_histograms_are_shown_once_when_all_agents_are_there() -> None:
    screen = Screen()
    holding = members(histogram={"a": 3})
    screen.show(View(1, "forming", members=holding))
    screen.show(View(2, "running", members=holding))
    screen.show(View(3, "running", members=holding))
    assert screen.lines == ["samples by class  a  all", "agent 3           3    3"]


def test_histograms_as_a_table() -> None:
    told = [Member(0, histogram={"10": 4, "2": 120}), Member(1, histogram={"2": 7, "cat": 1}), Member(2)]
    assert histogram_lines(told) == [
        "samples by class    2  10  cat  all",
        "agent 0           120   4    ·  124",
        "agent 1             7   ·    1    8",
    ]
    assert histogram_lines([Member(2)]) == []


def test_histograms_of_many_in_two_sentences() -> None:
    told = [Member(agent, histogram={"0": 10, "1": agent}) for agent in range(64)]
    assert histogram_lines(told) == [
        "64 agents hold 2656 samples: 10 to 73 each, median 42; 1 to 2 of 2 classes each",
        "the most uneven is agent 0: 100 % of its samples are of class 0",
    ]
    many_classes = [Member(agent, histogram={str(label): 1 for label in range(100)}) for agent in range(3)]
    assert len(histogram_lines(many_classes)) == 2


def entry(number: int, mean: float, worst: float, before: float | None, distance: float) -> dict[str, float | None]:
    keys = ("round", "mean_accuracy", "min_accuracy", "mean_accuracy_before_merge", "consensus_distance")
    return dict(zip(keys, (number, mean, worst, before, distance), strict=True))


RESULT = {
    "run": "runs/demo",
    "reason": "all 2 rounds are done",
    "rounds": 2,
    "seconds": 61.7,
    "mean_accuracy": 0.9754,
    "min_accuracy": 0.9611,
    "history": [entry(1, 0.5, 0.4, 0.3, 12.0), entry(2, 0.9754, 0.9611, None, 0.4)],
}


def test_result_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(RESULT, Path("runs/demo/report.html"))
    assert capsys.readouterr().out.splitlines() == [
        "2 rounds in 1 min 2 s · all 2 rounds are done",
        "  accuracy            mean 0.975, worst agent 0.961",
        "  consensus distance  0.40 after round 2, 30 times smaller than after round 1",
        "  report              runs/demo/report.html",
        "  run folder          runs/demo: the same command continues a run that stopped",
    ]


def test_result_of_a_run_that_got_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {**RESULT, "rounds": 0, "seconds": 0.0, "mean_accuracy": None, "min_accuracy": None, "history": []}
    print_result({**nothing, "reason": "agent 3 did not come"}, None)
    assert capsys.readouterr().out.splitlines() == [
        "0 rounds in 0.0 s · agent 3 did not come",
        "  run folder          runs/demo: the same command continues a run that stopped",
    ]


def test_result_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(RESULT, Path("report.html"), "json")
    out = capsys.readouterr().out
    assert json.loads(out) == RESULT
    assert out.count("\n") == 1


def test_importing_loads_nothing_heavy() -> None:
    heavy = {"torch", "matplotlib", "rich", "jinja2", "networkx"}
    code = f"import dimat.cli.live, dimat.report, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
