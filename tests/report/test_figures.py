"""Every figure is drawn for every kind of run, and shows the numbers of that run."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from dimat.messages import Report
from dimat.report import figures, numbers
from dimat.report.figures import FIGURES
from dimat.report.record import RunRecord
from dimat.report.style import heat_map, new_figure, png, styled

NAN = math.nan
Make = Callable[..., RunRecord]
Lose = Callable[[RunRecord, int, int], RunRecord]


def without_merges(record: RunRecord) -> RunRecord:
    reports = tuple(
        replace(report, weights={}, bytes_received={}, moved={}, seconds={"train": 1.0}) for report in record.reports
    )
    summaries = tuple(
        replace(
            each,
            consensus_distance=NAN,
            consensus_distance_before=NAN,
            predicted_contraction=NAN,
            observed_contraction=NAN,
            mean_accuracy_before_merge=NAN,
        )
        for each in record.summaries
    )
    return replace(record, reports=reports, summaries=summaries)


def with_nan(record: RunRecord) -> RunRecord:
    """A run that diverged: from round 12 on everything that agent 1 tells is NaN or infinite."""
    reports = tuple(
        replace(report, metrics={"accuracy": NAN, "loss": math.inf}, seconds={"train": NAN}, moved={"conv1": NAN})
        if report.agent == 1 and report.round >= 12
        else report
        for report in record.reports
    )
    summaries = tuple(
        replace(each, mean_accuracy=NAN, min_accuracy=NAN, consensus_distance=NAN, observed_contraction=NAN)
        if each.round >= 12
        else replace(each, predicted_contraction=math.inf)
        for each in record.summaries
    )
    return replace(record, reports=reports, summaries=summaries)


def every_other_round(record: RunRecord) -> RunRecord:
    quiet = without_merges(record)
    reports = tuple(a if a.round % 2 else b for a, b in zip(record.reports, quiet.reports, strict=True))
    summaries = tuple(a if a.round % 2 else b for a, b in zip(record.summaries, quiet.summaries, strict=True))
    return replace(record, reports=reports, summaries=summaries)


def in_full_agreement(record: RunRecord) -> RunRecord:
    summaries = tuple(
        replace(each, consensus_distance=0.0, observed_contraction=0.0, predicted_contraction=0.0)
        for each in record.summaries
    )
    return replace(record, summaries=summaries)


def strange_names(record: RunRecord) -> RunRecord:
    moved = {f"a$b_{index}$^<&>" + "x" * 50: 0.5 for index in range(30)}
    histogram = {"$1$": 3, "猫": 4, "<b>": 5, "12": 1}
    return replace(
        record,
        reports=tuple(
            replace(report, moved=moved, seconds={**report.seconds, "odd $phase$": 0.1}) for report in record.reports
        ),
        members=tuple(replace(member, histogram=histogram) for member in record.members),
    )


RUNS: dict[str, Callable[[Make, Lose], RunRecord]] = {
    "five": lambda make, _: make(),
    "one round": lambda make, _: make(3, 1),
    "two agents": lambda make, lose: lose(make(3), 2, 0),
    "64 agents": lambda make, _: make(64, 8, aligned="each_round"),
    "300 rounds": lambda make, _: make(3, 300, aligned="none"),
    "lost": lambda make, lose: lose(make(), 3, 7),
    "NaN": lambda make, _: with_nan(make()),
    "every other": lambda make, _: every_other_round(make()),
    "no merges": lambda make, _: without_merges(make()),
    "agreement": lambda make, _: in_full_agreement(make()),
    "names": lambda make, _: strange_names(make(3, 2)),
    "no histograms": lambda make, _: replace(
        make(), members=tuple(replace(member, histogram={}) for member in make().members)
    ),
    "100 classes": lambda make, _: replace(
        make(),
        members=tuple(replace(m, histogram={str(i): i for i in range(100)}) for m in make().members),
    ),
    "no summaries": lambda make, _: replace(make(), summaries=()),
    "nothing": lambda make, _: replace(make(), reports=(), summaries=(), members=()),
}
ABSENT = {
    "no merges": {"consensus_distance", "contraction", "topology", "units_moved"},
    "300 rounds": {"units_moved"},
    "no histograms": {"class_histograms"},
    "no summaries": {"consensus_distance", "contraction"},
    "nothing": {entry.name for entry in FIGURES},
}


@pytest.mark.parametrize("run", RUNS)
def test_every_figure_of_every_run(run: str, make_record: Make, lose_agent: Lose) -> None:
    record = RUNS[run](make_record, lose_agent)
    drawn = {entry.name: entry.draw(record) for entry in FIGURES}
    assert {name for name, figure in drawn.items() if figure is None} == ABSENT.get(run, set())
    for name, figure in drawn.items():
        if figure is not None:
            image = png(figure)
            width, height = image_size(image)
            assert width == 1350, name
            assert 300 <= height <= 2000, name


def image_size(image: bytes) -> tuple[int, int]:
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(image[16:20], "big"), int.from_bytes(image[20:24], "big")


def lines(figure: Figure | None) -> dict[str, np.ndarray]:
    assert figure is not None
    return {str(line.get_label()): np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[0].get_lines()}


def title(figure: Figure | None) -> str:
    assert figure is not None
    return figure.get_suptitle()


def test_accuracy_shows_every_agent_and_the_means(record: RunRecord) -> None:
    figure = figures.accuracy(record)
    drawn = lines(figure)
    np.testing.assert_allclose(drawn["mean after the merge"], [each.mean_accuracy for each in record.summaries])
    np.testing.assert_allclose(
        drawn["mean before the merge"], [each.mean_accuracy_before_merge for each in record.summaries]
    )
    assert figure is not None
    assert (
        len(figure.axes[0].get_lines()) == 5 + 1 + 5 + 1 + 1
    )  # agents and mean, before and after, the legend's sample
    last = record.summaries[-1]
    assert title(figure) == (
        f"Mean accuracy {last.mean_accuracy:.3f} after the merge of round 20, worst agent {last.min_accuracy:.3f}"
    )


def test_a_round_that_is_not_whole_does_not_bend_the_mean(record: RunRecord) -> None:
    early = replace(record, reports=(*record.reports, Report(0, "s", 21, {"accuracy": 0.0})))
    assert len(lines(figures.accuracy(early))["mean after the merge"]) == 20


def test_consensus_distance_is_logarithmic_with_prediction_and_bound(record: RunRecord) -> None:
    figure = figures.consensus_distance(record)
    assert figure is not None
    assert figure.axes[0].get_yscale() == "log"
    drawn = lines(figure)
    before = np.array([each.consensus_distance_before for each in record.summaries])
    np.testing.assert_allclose(drawn["after the merge"], [each.consensus_distance for each in record.summaries])
    np.testing.assert_allclose(drawn["before the merge"], before)
    np.testing.assert_allclose(drawn["predicted"], before * [each.predicted_contraction for each in record.summaries])
    np.testing.assert_allclose(
        drawn["no higher than (bound)"], before * numbers.contraction_bound(numbers.by_round(record)[1])
    )
    factor = record.summaries[0].consensus_distance / record.summaries[-1].consensus_distance
    assert title(figure) == f"Agents are {factor:.0f} times closer after round 20 than after round 1"


def test_agents_that_drift_apart_are_said_to(record: RunRecord) -> None:
    first, last = record.summaries[0], record.summaries[-1]
    apart = replace(record, summaries=(replace(last, round=1), replace(first, round=2)))
    assert "farther apart" in title(figures.consensus_distance(apart))


def test_agents_that_agree_to_the_last_bit_are_one(record: RunRecord) -> None:
    assert title(figures.consensus_distance(in_full_agreement(record))) == "Agents are one after round 20"


def test_contraction_compares_observed_and_predicted(record: RunRecord) -> None:
    drawn = lines(figures.contraction(record))
    np.testing.assert_allclose(drawn["observed"], [each.observed_contraction for each in record.summaries])
    np.testing.assert_allclose(drawn["predicted"], [each.predicted_contraction for each in record.summaries])
    assert (drawn["predicted"] <= drawn["no higher than (bound)"]).all()


def test_time_is_stacked_by_agent(record: RunRecord) -> None:
    figure = figures.time_per_phase(record)
    assert figure is not None
    ends = {round(bar.get_y() + bar.get_height() / 2): bar.get_x() + bar.get_width() for bar in figure.axes[0].patches}
    reports = [report for report in record.reports if report.agent == 2]
    assert ends[2] == pytest.approx(sum(sum(report.seconds.values()) for report in reports) / len(reports))
    assert title(figure) == f"Merging takes {100 * numbers.merge_share(record):.0f} % of a round (without waiting)"


def test_topology_writes_the_bytes_on_the_edges(record: RunRecord) -> None:
    figure = figures.topology(record)
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("6.2 MB") == 5  # 20 rounds, both directions, 154920 bytes
    assert {"0", "1", "2", "3", "4"} <= set(texts)
    assert title(figure) == "31 MB travelled over 5 edges in 20 merges: 310 kB per edge and merge"


def test_one_way_edges_are_drawn_as_arrows(record: RunRecord) -> None:
    one_way = tuple(
        Report(agent, "s", 1, {}, weights={agent: 0.5, (agent - 1) % 4: 0.5}, bytes_received={(agent - 1) % 4: 1000})
        for agent in range(4)
    )
    figure = figures.topology(replace(record, reports=one_way, members=(), config={"agents": 4}))
    assert title(figure) == "4.0 kB travelled over 4 edges in 1 merge: 1.0 kB per edge and merge"


def test_histogram_writes_the_counts(record: RunRecord) -> None:
    figure = figures.class_histograms(record)
    assert figure is not None
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells[:10] == [str(n or "") for n in record.members[0].histogram.values()]
    assert [bar.get_width() for bar in figure.axes[1].patches] == [member.num_samples for member in record.members]


def test_units_moved_by_agent_when_once_and_by_round_when_always(make_record: Make) -> None:
    once = figures.units_moved(make_record(4, 3))
    always = figures.units_moved(make_record(4, 3, aligned="each_round"))
    assert once is not None
    assert always is not None
    assert [label.get_text() for label in once.axes[0].get_xticklabels()] == [f"agent {n}" for n in range(4)]
    assert [label.get_text() for label in always.axes[0].get_xticklabels()] == ["1", "2", "3"]
    assert [label.get_text() for label in once.axes[0].get_yticklabels()] == ["conv1", "conv2", "fc1"]
    np.testing.assert_array_equal(once.axes[0].get_images()[0].get_array()[:, 0], 0.0)  # the root of the tree stays


def test_settings_of_the_caller_are_left_alone_and_bytes_repeat(record: RunRecord) -> None:
    before = dict(matplotlib.rcParams)
    first, second = (png(figures.contraction(record) or Figure()) for _ in range(2))
    assert dict(matplotlib.rcParams) == before
    assert first == second
    assert b"Software" not in first


def test_no_window_is_ever_asked_for() -> None:
    @styled
    def one() -> Figure:
        figure = new_figure("x", height=2.0)
        heat_map(figure.subplots(), np.array([[0.0, NAN]]), rows=["a"], columns=["b", "c"], write=str)
        return figure

    assert isinstance(one(), Figure)
    assert io.BytesIO(png(one())).read(4) == b"\x89PNG"
