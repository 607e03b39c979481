"""docs/faults.md is true: its plan is carried out as it stands, and its table names every fault."""

import re
import shlex
import sys
from pathlib import Path
from typing import get_args

import pytest

from dimat.cli.app import main
from dimat.coordinator import Store
from dimat.faults import PHASES
from dimat.faults.plan import NEEDS, Kind, Phase

TEXT = (Path(__file__).parents[2] / "docs" / "faults.md").read_text(encoding="utf-8")
YAML, CONSOLE = (re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("yaml", "console"))


def test_the_plan_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(YAML[0])
    monkeypatch.setattr(sys, "argv", shlex.split(CONSOLE[0]))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    with Store.open(Path("runs/faulty"), read_only=True) as store:
        missing = {
            (r.agent, r.round, peer): why for r in store.reports(sketches=False) for peer, why in r.missing.items()
        }
        kinds = [event.kind for event in store.events()]
    assert "wrong digest" in missing[3, 2, 4]
    assert "had not published" in missing[0, 2, 1]
    assert "cut in round 4" in missing[0, 4, 1]
    assert "cut in round 6" in missing[0, 6, 5]
    assert "restarted" in kinds
    assert "failed" in kinds
    assert sorted(path.name for path in Path("runs/faulty/faults").iterdir()) == [
        "0-kill", "1-stall", "5-fill_disk", "6-restart_coordinator",
    ]  # fmt: skip


def test_the_table_names_every_fault_and_the_text_every_phase() -> None:
    told = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(told) == sorted(["do", *NEEDS])
    assert set(NEEDS) == set(get_args(Kind))
    assert get_args(Phase) == PHASES
    assert all(f"`{phase}`" in TEXT for phase in PHASES)
