"""Try a config before anything starts: bad input costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from dimat.agent.build import build_agent, initial_checkpoint
from dimat.config import RunConfig
from dimat.transport.base import Transport


def check_run(config: RunConfig) -> None:
    """Build the first agent of the run, without opening or writing anything.

    That meets every mistake which is the same for all agents: graph and matrix, merge method and options, data file
    and partition, model, permutation groups. Initial checkpoints are looked at for every agent.

    Raises:
        UsageError: with what was given, what was expected and what to do.
        AlignmentError: the model's permutation groups cannot be found or do not verify.
    """
    # The agent is thrown away before it would speak to anybody.
    agent = build_agent(config, 0, Path(), "preflight", lambda schema: cast("Transport", None))
    if config.init not in ("same", "different"):
        for other in range(1, config.agents):
            initial_checkpoint(Path(config.init), other, agent.model)
