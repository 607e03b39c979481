"""Values to protobuf and back; the narrated protocol itself."""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dimat import messages
from dimat.errors import TransportError
from dimat.messages import ITEM_SIZES
from dimat.proto.v1 import coordinator_pb2, tensors_pb2
from dimat.transport import continual
from dimat.transport.grpc import convert

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))

SUMMARY = messages.RoundSummary(3, 0.9, 0.8, 0.7, 1.5, 3.0, 0.5, 0.51, 0.2, 5, 1, spectral_gap=0.46)
MEMBER = messages.Member(2, "h:1", "running", 3, "wait", "for 1", 0.5, {"loss": 0.5}, 10, {"7": 10})
ENTRY = continual.LedgerEntry("a", "0" * 64, 3, 0.5, 1.5, "2026-01-01T00:00:00", "anna", -0.25, 4, 0.5)
VALUES = [
    messages.TensorSpec("w", "bfloat16", (2, 0)),
    messages.Schema((messages.TensorSpec("w", "bool", ()), messages.TensorSpec("v", "int8", (1,))), "0123"),
    messages.Header("snapshot", 4, 1, {"weight": 0.5}),
    messages.Description(1, "s", messages.Schema(()), {"basis": 0, "snapshot": 9}),
    messages.Join(1, "s", "h:1", "f" * 16, 4000, (0, 2, 4), 100, {"0": 60, "1": 40}),
    messages.Heartbeat(1, "s", 3, "wait", "for agent 2", wants_stop=True, done=True, error="broke"),
    messages.Report(
        1,
        "s",
        3,
        {"loss": 0.5},
        {"train": 1.0},
        {0: 0.25, 1: 0.75},
        {0: 400},
        {2: "late"},
        {"g": 0.5},
        b"\x01",
        b"\x02",
    ),
    messages.Report(0, "s", 1, {}),
    messages.Directive(),
    messages.Directive(0, "plateau"),
    messages.Directive(done=(0, 5)),
    messages.Directive(None, "lost", (messages.Change(1, 7, (0, 3), "lost"), messages.Change(2, 9, ())), {0: "h:1"}),
    messages.Change(3, 12, (1,), "left"),
    messages.Drain(4),
    MEMBER,
    messages.Member(0),
    SUMMARY,
    messages.View(7, "stopping", 2, 9, "target reached", (messages.Member(0), MEMBER), SUMMARY),
    messages.View(0, "forming"),
    continual.Offer(
        "0" * 64, (messages.TensorSpec("w", "bool", ()),), (bytes(32),), "a", -0.5, "anna", "session", protocol=7
    ),
    ENTRY,
    replace(ENTRY, cosine=None),
    continual.SubmitAnswer("receiving", 7),
    continual.SubmitAnswer("present", 8, 2, ENTRY),
    continual.LedgerStatus(
        "opcm", "{}", "1" * 64, 2, 100, (ENTRY, replace(ENTRY, cosine=0.0)), 5, 7, "weights", 0.5, 2
    ),
    continual.Merged("2" * 64, (messages.TensorSpec("w", "float64", (2, 0)),), (bytes(32),), 3, 2, {"format": "pt"}),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_come_back_as_they_went(value: Any) -> None:
    message = convert.to_proto(value)
    again = type(message).FromString(message.SerializeToString())
    assert convert.from_proto(type(value), again) == value


def test_every_value_that_travels_was_tried() -> None:
    assert {type(value) for value in VALUES} == set(convert.MESSAGES)


def test_nan_comes_back_as_nan() -> None:
    empty = messages.RoundSummary(1, 0.1, 0.1, 0.1, 1.0)
    assert repr(convert.from_proto(messages.RoundSummary, convert.to_proto(empty))) == repr(empty)


@pytest.mark.parametrize("kind", list(convert.MESSAGES), ids=lambda kind: kind.__name__)
def test_fields_have_the_same_names_here_and_there(kind: type[Any]) -> None:
    assert {field.name for field in fields(kind)} == set(convert.MESSAGES[kind].DESCRIPTOR.fields_by_name)


def test_every_dtype_travels() -> None:
    known = {name.removeprefix("D_TYPE_").lower() for name in tensors_pb2.DType.DESCRIPTOR.values_by_name} - {
        "unspecified"
    }
    assert known == set(ITEM_SIZES)


def test_maps_are_read_in_order() -> None:
    report = messages.Report(0, "s", 1, {}, weights={3: 0.1, -1: 0.2, 2: 0.7})
    assert list(convert.from_proto(messages.Report, convert.to_proto(report)).weights) == [-1, 2, 3]


def test_an_unknown_enum_value_is_named() -> None:
    for message in (coordinator_pb2.View(number=1, state=77), coordinator_pb2.View(number=1)):
        with pytest.raises(TransportError, match=r"View\.state"):
            convert.from_proto(messages.View, message)


# ------------------------------------------------------------------------------------------------ the narrated protocol


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_every_field_value_and_call_is_explained(path: Path) -> None:
    above = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if re.match(r"(message|enum|service|rpc)\b|.*= \d+;$", stripped):
            assert above.startswith("//"), f"{path.name}: no comment above {stripped!r}"
        above = stripped


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_protos", ROOT / "protos" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_code_is_up_to_date_and_stale_code_is_found(tmp_path: Path) -> None:
    module = generator()
    fresh, stale = tmp_path / "fresh", tmp_path / "stale"
    fresh.mkdir()
    files = module.generate(fresh)
    assert module.differences(fresh, ROOT, files) == []
    shutil.copytree(ROOT / "dimat/proto", stale / "dimat/proto")
    changed = stale / "dimat/proto/v1/peer_pb2.py"
    changed.write_text(changed.read_text(encoding="utf-8").replace("wait_s", "wait_t"), encoding="utf-8")
    (stale / "dimat/proto/v1/old_pb2.py").write_text("", encoding="utf-8")
    found = "".join(module.differences(fresh, stale, files))
    assert "wait_t" in found
    assert "old_pb2.py has no source" in found
