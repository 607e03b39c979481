"""Try a config before anything starts: bad input costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np

from dimat.agent.build import build_agent, build_topology, initial_checkpoint
from dimat.agent.state import Agent
from dimat.config import RunConfig
from dimat.errors import TopologyError
from dimat.transport.base import Transport

MAX_ROUNDS_TRIED = 10_000


def check_run(config: RunConfig) -> Agent:
    """Build the first agent of the run, without opening or writing anything; returns it: it has spoken to nobody.

    That meets every mistake which is the same for all agents: graph and matrix, merge method and options, data file
    and partition, model, permutation groups. Initial checkpoints are looked at for every agent.

    Raises:
        UsageError: with what was given, what was expected and what to do.
        AlignmentError: the model's permutation groups cannot be found or do not verify.
    """
    agent = build_agent(config, 0, Path(), "preflight", lambda schema: cast("Transport", None))
    # A graph that changes may fall apart in any round, and a plug-in may draw another one each time it is asked.
    again = build_topology(config)
    for round in range(min(config.rounds, MAX_ROUNDS_TRIED)):
        if not np.array_equal(agent.topology.matrix(round), again.matrix(round)):
            raise TopologyError(
                f"topology {config.topology.graph!r} gives two different graphs for round {round} and one seed",
                hint="draw what is random in it from `seed` and `round` alone: agents build it each for themselves",
            )
    if config.init not in ("same", "different"):
        for other in range(1, config.agents):
            initial_checkpoint(Path(config.init), other, agent.model)
    return agent
