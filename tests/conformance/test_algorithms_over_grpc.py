"""Every algorithm over real gRPC servers, its agents in threads: the bits of the simulation, and nobody is missing."""

import threading
from functools import partial
from pathlib import Path

import pytest
from algorithm_cases import NAMES, settings

from dimat.agent.build import build_agent
from dimat.agent.live import run_rounds
from dimat.agent.readers import may_read
from dimat.agent.state import Agent
from dimat.agent.steps import drive
from dimat.agent.waiting import wait_on_network
from dimat.config import RunConfig, load_config
from dimat.messages import Directive, Member, Report, Schema, View
from dimat.runfolder import prepare
from dimat.simulate import simulate
from dimat.transport.grpc import GrpcTransport

AGENTS, ROUNDS = 4, 2
GRAPHS = {"sgp": ["exponential", "one_peer_exponential"], "dsgd": ["ring", "exponential"]}


class Notebook:
    """A line to a coordinator that writes down what it is told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def report(self, report: Report) -> Directive:
        self.reports.append(report)
        return Directive()


def over_grpc(config: RunConfig, folder: Path) -> list[Report]:
    """All agents of a run as threads of this process, each with a server and a port of its own."""
    agents: list[Agent] = []

    def make(number: int, schema: Schema) -> GrpcTransport:
        return GrpcTransport(number, f"s{number}", schema, may_read=lambda peer: may_read(agents[number], peer))

    for number in range(AGENTS):
        agents.append(build_agent(config, number, folder, f"s{number}", partial(make, number)))
    addresses = {agent.id: agent.transport.start() for agent in agents}
    members = tuple(Member(agent.id, state="running", num_samples=agent.task.num_samples) for agent in agents)
    view, control, errors = View(1, "running", members=members), Notebook(), []

    def live(agent: Agent) -> None:
        try:
            drive(run_rounds(agent, view, control), partial(wait_on_network, agent))  # type: ignore[arg-type]
        except BaseException as error:  # told where the test can see it
            errors.append(error)

    try:
        for agent in agents:
            agent.addresses = {peer: address for peer, address in addresses.items() if peer != agent.id}
            agent.transport.connect(agent.addresses)
        threads = [threading.Thread(target=live, args=(agent,), daemon=True) for agent in agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "somebody still waits"
    finally:
        for agent in agents:
            agent.transport.close()
    assert not errors, errors
    return control.reports


@pytest.mark.parametrize(("name", "graph"), [(name, graph) for name in NAMES for graph in GRAPHS.get(name, ["ring"])])
def test_it_ends_with_the_bits_of_its_simulation(name: str, graph: str, tmp_path: Path) -> None:
    more = [f"topology.graph={graph}", f"rounds={ROUNDS}", "exchange.timeout_s=60"]
    config = load_config(None, settings(name, *more))
    reports = over_grpc(config, prepare(config, tmp_path / "grpc"))
    simulate(config, prepare(config, tmp_path / "memory"))
    assert len(reports) == AGENTS * ROUNDS and not any(report.missing for report in reports)
    for agent in range(AGENTS):
        ends = [tmp_path / how / "checkpoints" / str(agent) / f"{ROUNDS}.safetensors" for how in ("grpc", "memory")]
        assert ends[0].read_bytes() == ends[1].read_bytes(), f"agent {agent}"
