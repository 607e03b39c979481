"""The switch of launch/lab_switch.py on its own: no devices, no clock but the one that is passed in."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "lab_switch.py"
A, B, C = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b", b"\x02\0\0\0\0\x0c"
EVERYBODY = b"\xff" * 6
PORTS = [10, 11, 12]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_switch", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_frame_arrives_after_its_delay_and_not_before(script: ModuleType) -> None:
    switch = script.Switch(PORTS, delay_s=0.05, loss=0.0, seed=0)
    switch.take(0, EVERYBODY + A + b"1", now=1.0)
    assert switch.pause_s(1.02) == pytest.approx(0.03)
    assert switch.due(1.049) == []
    assert switch.due(1.05) == [(11, EVERYBODY + A + b"1"), (12, EVERYBODY + A + b"1")]
    assert switch.pause_s(1.05) is None


def test_order_is_kept_and_a_known_host_gets_its_frames_alone(script: ModuleType) -> None:
    switch = script.Switch(PORTS, delay_s=0.0, loss=0.0, seed=0)
    switch.take(1, EVERYBODY + B, now=0.0)
    switch.due(0.0)
    for number in range(5):
        switch.take(0, B + A + bytes([number]), now=0.0)
    assert switch.due(0.0) == [(11, B + A + bytes([number])) for number in range(5)]


def test_the_share_that_is_lost_is_the_one_asked_for(script: ModuleType) -> None:
    switch = script.Switch(PORTS[:2], delay_s=0.0, loss=0.01, seed=3)
    arrived = 0
    for _ in range(20_000):
        switch.take(0, B + A, now=0.0)
        arrived += len(switch.due(0.0))
    assert arrived + switch.counts["lost"] == 20_000
    assert switch.counts["lost"] == pytest.approx(200, abs=60)  # four standard deviations


def test_a_cut_line_loses_what_is_under_way_and_what_comes_until_it_is_healed(script: ModuleType) -> None:
    switch = script.Switch(PORTS, delay_s=0.05, loss=0.0, seed=0)
    for port, host in enumerate((A, B, C)):
        switch.take(port, EVERYBODY + host, now=0.0)
    switch.due(1.0)
    switch.take(0, B + A, now=1.0)
    switch.obey("cut 1")
    switch.take(0, B + A, now=1.01)
    switch.take(0, C + A, now=1.01)
    assert switch.due(2.0) == [(12, C + A)], "the other lines go on"
    switch.obey("cut")
    switch.take(0, C + A, now=2.0)
    assert switch.due(3.0) == []
    switch.obey("heal")
    switch.take(0, B + A, now=3.0)
    assert switch.due(4.0) == [(11, B + A)]
    assert switch.counts["cut"] == 3


def test_a_full_queue_drops_instead_of_growing(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "MAX_QUEUED", 3)
    switch = script.Switch(PORTS[:2], delay_s=1.0, loss=0.0, seed=0)
    for _ in range(5):
        switch.take(0, B + A, now=0.0)
    assert len(switch.due(1.0)) == 3
    assert switch.counts["overflowed"] == 2


def test_counts_are_written_where_asked(script: ModuleType, tmp_path: Path) -> None:
    switch = script.Switch(PORTS[:2], delay_s=0.0, loss=0.0, seed=0)
    switch.take(0, B + A + b"four", now=0.0)
    switch.obey(f"counts {tmp_path / 'counts.json'}")
    assert '"frames": 1, "bytes": 16' in (tmp_path / "counts.json").read_text()
