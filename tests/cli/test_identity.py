"""Which agent, and which of its ranks, a process is: by --id and by what torchrun says."""

from pathlib import Path

import pytest

from dimat.cli.agent import identity
from dimat.config import load_config
from dimat.errors import UsageError
from dimat.launch import commands


def of(id: int | None, rank: int | None = None, world: int | None = None, ranks: int = 1) -> tuple[int, int]:
    environment = {} if rank is None else {"RANK": str(rank), "WORLD_SIZE": str(world)}
    return identity(load_config(None, ["agents=3", f"launch.ranks_per_agent={ranks}"]), id, environment)


def test_one_rank_is_one_agent() -> None:
    assert [of(None, rank, 3) for rank in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert of(2) == (2, 0)
    assert of(2, rank=0, world=1) == (2, 0)


def test_ranks_of_one_agent_lie_side_by_side() -> None:
    assert [of(None, rank, 6, ranks=2) for rank in range(6)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [of(1, rank, 2, ranks=2) for rank in range(2)] == [(1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("id", "rank", "world", "ranks", "words"),
    [
        (None, None, None, 1, "which agent is this"),
        (3, None, None, 1, "--id 3 is not in the run, expected 0 to 2"),
        (None, 0, 4, 1, "torchrun started 4 workers, the config has 3 agents"),
        (None, 0, 3, 2, "torchrun started 3 workers, the config has 3 agents of 2 ranks each"),
        (0, 0, 1, 2, "torchrun started 1 workers, the config has one agent"),
        (0, None, None, 2, "agent 0 has 2 ranks (launch.ranks_per_agent), and torchrun did not start this one"),
    ],
)
def test_what_does_not_fit_is_refused(
    id: int | None, rank: int | None, world: int | None, ranks: int, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        of(id, rank, world, ranks)
    assert words in str(caught.value)


def test_torchrun_is_told_of_ranks_and_restarts() -> None:
    config = load_config(None, ["agents=3", "launch.ranks_per_agent=2", "launch.max_restarts=4"])
    together = commands.together(config, Path("run"), "127.0.0.1:1")
    assert {"--nproc-per-node=6", "--max-restarts=4"} <= set(together)
    assert "--nproc-per-node=2" in commands.alone(config, Path("run"), "127.0.0.1:1", 0)
