"""A ledger that is served with certificates: who may add, who may read, and what happens without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_kit import model

from dimat.continual import Ledger
from dimat.continual.service import ContinualService
from dimat.continual.submit import fetch, submit
from dimat.errors import NotTrusted, UsageError
from dimat.transport.authority import issue_missing, new_authority
from dimat.transport.grpc.continual_client import ContinualClient
from dimat.transport.grpc.continual_server import ContinualServer
from dimat.transport.security import ADMIN, COORDINATOR, ONLOOKER, agent, load_credentials


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    new_authority(tmp_path / "lab")
    issue_missing(tmp_path / "lab", [COORDINATOR, ADMIN, ONLOOKER, agent(1)])
    return tmp_path / "lab"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger", model(tmp_path, "base", 0), "mean")


@pytest.fixture
def served(lab: Path, ledger: Ledger) -> Iterator[str]:
    service = ContinualService(ledger)
    server = ContinualServer(service, credentials=load_credentials(lab, COORDINATOR))
    service.start()
    yield server.start()
    service.stop()
    server.close()


def test_agents_and_admins_add_and_onlookers_read(tmp_path: Path, lab: Path, ledger: Ledger, served: str) -> None:
    submit(served, model(tmp_path, "a", 1), credentials=load_credentials(lab, agent(1)))
    submit(served, model(tmp_path, "b", 2), credentials=load_credentials(lab, ADMIN))
    mine = load_credentials(lab, ONLOOKER)
    assert [one.name for one in ContinualClient(served, credentials=mine).status().models] == ["a", "b"]
    assert fetch(served, tmp_path / "out.safetensors", credentials=mine).num_models == 2
    with pytest.raises(UsageError, match="models are taken from agents and admins, and you are an onlooker"):
        submit(served, model(tmp_path, "c", 3), credentials=mine)
    assert ledger.status().version == 2


def test_without_certificates_nothing_is_said(tmp_path: Path, lab: Path, ledger: Ledger, served: str) -> None:
    with pytest.raises(NotTrusted, match="certificates are asked for there, and this side has none"):
        submit(served, model(tmp_path, "a", 1))
    assert ledger.status().version == 0
    other = Ledger.create(tmp_path / "other", tmp_path / "base.safetensors", "mean")
    service = ContinualService(other)
    plain = ContinualServer(service)
    service.start()
    with pytest.raises(NotTrusted, match="plain text is spoken there, and this side has certificates"):
        ContinualClient(plain.start(), credentials=load_credentials(lab, agent(1))).status()
    service.stop()
    plain.close()


def test_an_agent_cannot_serve_in_the_coordinators_place(lab: Path, ledger: Ledger) -> None:
    service = ContinualService(ledger)
    server = ContinualServer(service, credentials=load_credentials(lab, agent(1)))
    service.start()
    with pytest.raises(NotTrusted, match="proves agent 1, not the coordinator"):
        ContinualClient(server.start(), credentials=load_credentials(lab, ADMIN)).status()
    service.stop()
    server.close()
