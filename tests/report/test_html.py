"""The page: self-contained, escaped, written whole; from a real store as a coordinator writes it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dimat.config import RunConfig
from dimat.coordinator.convergence import Outcome
from dimat.coordinator.store import Event, Store, StoredMember
from dimat.errors import UsageError
from dimat.messages import Join
from dimat.report import find_run, html, load_record, summary, write_report
from dimat.report.record import RunRecord, seconds_of

Lose = Callable[[RunRecord, int, int], RunRecord]

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")


class Page(HTMLParser):
    """What a browser would fetch, and the text it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.fetched += [value or "" for key, value in attributes if key in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += f" {data}"


def write_run(folder: Path, record: RunRecord) -> Path:
    """A run folder as the coordinator leaves it."""
    folder.mkdir(parents=True)
    config = RunConfig.model_validate(record.config)
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "environment.json").write_text(json.dumps(record.environment))
    with Store.open(folder) as store, store.transaction():
        for member in record.members:
            join = Join(
                member.agent, "s", member.address, "f", 1000, num_samples=member.num_samples, histogram=member.histogram
            )
            store.put_member(member.agent, StoredMember(join, member.state, 0, ""))
        for report in record.reports:
            store.add_report(replace(report, sketch_before=b"\0" * 64, sketch_after=b"\0" * 64))
        for each in record.summaries:
            store.add_summary(each)
        for event in record.events:
            store.add_event(event)
        if record.outcome is not None:
            store.put_meta("outcome", {"kind": record.outcome.kind, "reason": record.outcome.reason, "round": 20})
    return folder


@pytest.fixture(scope="module")
def folder(record: RunRecord, lose_agent: Lose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "lost", lose_agent(record, 3, 9))


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_record_is_what_was_written(record: RunRecord, lose_agent: Lose, folder: Path) -> None:
    written = lose_agent(record, 3, 9)
    read = load_record(folder)
    key = lambda report: (report.round, report.agent)  # noqa: E731
    assert sorted(read.reports, key=key) == sorted(written.reports, key=key)  # and without their sketches
    assert repr(read.summaries) == repr(written.summaries)  # NaN among them
    assert (read.events, read.environment) == (written.events, written.environment)
    assert (read.name, read.folder, read.config) == ("digits-ring", folder, written.config)
    assert [(m.agent, m.state, m.round, m.num_samples, m.histogram) for m in read.members] == [
        (m.agent, m.state, m.round, m.num_samples, m.histogram) for m in written.members
    ]
    assert read.outcome == Outcome("rounds", "all 20 rounds are done", 20)
    assert read.seconds == 40.0
    assert summary(read)["run"] == str(folder)


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert len(page.fetched) == 7
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", url) for url in page.fetched)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.open == []


def test_the_page_tells_the_numbers(page: Page, folder: Path) -> None:
    result = summary(load_record(folder))
    text = " ".join(page.words.split())
    assert f"mean accuracy {result['mean_accuracy']:.3f}" in text
    assert f"worst agent {result['min_accuracy']:.3f}" in text
    assert "rounds 20 of 20, in 40.0 s" in text
    assert "consensus distance 0.16 26 times smaller than the 4.1 after round 1" in text
    assert "all 20 rounds are done" in text
    assert "agent 3 (11 rounds)" in text  # who was missed, in the table of agents
    assert "scheme: dirichlet" in text
    assert "packages.torch 2.13.0" in text
    assert "all 5 agents have joined" in text


def test_figures_lie_beside_the_page(page: Page, folder: Path) -> None:
    names = sorted(path.name for path in (folder / "figures").iterdir())
    assert names == [
        "accuracy.png",
        "class_histograms.png",
        "consensus_distance.png",
        "contraction.png",
        "time_per_phase.png",
        "topology.png",
        "units_moved.png",
    ]
    inside = [base64.b64decode(url.partition(",")[2]) for url in page.fetched]
    assert sorted(inside) == sorted((folder / "figures" / name).read_bytes() for name in names)
    assert not list(folder.rglob(".*"))


def test_skipped_matchings_are_told_where_there_were_any_to_make(record: RunRecord) -> None:
    """Agent 1 matched in rounds 1 to 5 and skipped the 15 others; agent 0 had nothing to match."""
    reports = [
        replace(report, metrics={**report.metrics, "matchings_skipped": float(report.round > 5)})
        if report.agent == 1
        else report
        for report in record.reports
    ]
    text, plain = (Page(html.render(one, {})).words for one in (replace(record, reports=tuple(reports)), record))
    assert "matchings skipped" in text
    assert "75 %" in text
    assert "matchings skipped" not in plain


def test_everything_is_escaped(record: RunRecord) -> None:
    evil = "<script>alert('x')</script>\"&"
    member = replace(record.members[0], state=evil)
    hostile = replace(
        record,
        name=evil,
        config={**record.config, "name": evil},
        members=(member, *record.members[1:]),
        events=(Event(0.0, evil, evil), *record.events),
        environment={evil: {evil: evil}},
        outcome=Outcome("rounds", evil, 20),
    )
    text = html.render(hostile, {"accuracy": PIXEL})
    page = Page(text)
    assert "script" not in page.tags
    assert page.words.count("<script>alert('x')</script>") >= 8
    assert page.fetched == ["data:image/png;base64," + base64.b64encode(PIXEL).decode()]


def test_what_there_is_not_is_said(record: RunRecord) -> None:
    empty = replace(record, reports=(), summaries=(), members=(), events=(), environment={}, outcome=None)
    text = " ".join(Page(html.render(empty, html.draw_all(empty))).words.split())
    assert "The run has not ended: this is how far it has come." in text
    assert "Nothing was aligned in this run." in text
    assert "No agent has merged with a neighbour." in text
    assert "Nothing out of the ordinary was recorded." in text
    assert "nan" not in text


def test_rounds_are_no_events_and_of_many_events_the_newest_stay(record: RunRecord) -> None:
    events = [Event(float(n), "round" if n % 2 else "lost", f"number {n}") for n in range(1, 2 * html.MOST_EVENTS + 7)]
    text = Page(html.render(replace(record, events=tuple(events)), {})).words
    assert "3 earlier events left out" in text
    assert "number 405" not in text
    assert "number 406" in text
    assert "number 6 " not in text
    assert "number 8 " in text


def test_a_run_that_has_only_begun_can_be_reported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(RunConfig().to_yaml())
    text = write_report(tmp_path).read_text()
    assert "digits-ring" in text
    assert summary(load_record(tmp_path))["rounds"] == 0


def test_a_run_that_goes_on_can_be_reported(record: RunRecord, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", replace(record, outcome=None))
    with Store.open(folder) as store, store.transaction():
        store.add_summary(replace(record.summaries[-1], round=21))
        assert summary(load_record(folder))["rounds"] == 20  # what is not committed is not seen, and nobody waits


def test_a_failed_report_leaves_the_old_one(record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", replace(record, reports=record.reports[:5]))
    (folder / "report.html").write_text("old")

    def fail(record: RunRecord, drawn: object) -> str:
        raise RuntimeError("no page today")

    monkeypatch.setattr(html, "render", fail)
    with pytest.raises(RuntimeError, match="no page today"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "old"


def test_a_run_is_found_by_its_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_run(Path("lost"), runs=folder.parent) == folder
    monkeypatch.chdir(folder.parent.parent)
    assert find_run(folder) == folder


@pytest.mark.parametrize("given", ["digits-rnig-12345678", "file", "empty"])
def test_what_is_no_run_is_refused_with_the_runs_there_are(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits-ring-12345678", "other-87654321"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    (tmp_path / "runs" / "no-run").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as caught:
        write_report(Path(given))
    message = str(caught.value)
    assert message.startswith(f"'{given}' is not a run: it ")
    assert "a run's folder holds config.yaml and coordinator.sqlite" in message
    assert message.endswith("Runs in 'runs': digits-ring-12345678, other-87654321")
    assert ("Did you mean 'runs/digits-ring-12345678'?" in message) == given.startswith("digits")
    assert not (tmp_path / "empty" / "report.html").exists()


def test_no_runs_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"does not exist.*There are no runs in 'runs'"):
        find_run(Path("gone"))


@pytest.mark.parametrize("text", ["- a\n- list\n", "a: [\n"])
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=re.escape("config.yaml")):
        load_record(tmp_path)


def test_a_broken_environment_ends_no_report(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(RunConfig().to_yaml())
    (tmp_path / "environment.json").write_text("{")
    assert "cannot be read" in load_record(tmp_path).environment["environment.json"]


def test_pauses_do_not_count_as_run_time() -> None:
    kinds = [(10.0, "joined"), (20.0, "round"), (25.0, "ended"), (1000.0, "joined"), (1007.0, "ended")]
    assert seconds_of([Event(time_s, kind, "") for time_s, kind in kinds]) == 22.0
