"""How models travel, who is there, when it stops, and how agents become processes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from dimat.config.part import Part


class ExchangeConfig(Part):
    """How models travel."""

    mode: Literal["sync", "async"] = "sync"
    """sync: a round waits for its neighbours' snapshots of the same round, until the deadline. async: nobody is waited
    for; a round merges with the newest snapshot that each neighbour has."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """How long a neighbour is waited for at most before the round goes on without it: the ceiling of every deadline."""
    min_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """How long a neighbour that came last time is waited for at least: the floor of its deadline. None: 10 s, or
    timeout_s where that is less."""
    deadline: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: the median of past waits for that neighbour plus 4 times their median distance from it, between floor
    and ceiling. fixed: always timeout_s. What is merged is the same for both as long as no deadline strikes."""
    max_staleness: Annotated[int, Field(ge=0)] = 10
    """async: a snapshot that is older than the agent's own round by more rounds than this is not merged with."""
    staleness_power: Annotated[float, Field(ge=0)] = 0.5
    """async: a snapshot s rounds older has its weight times (1 + s) ** -staleness_power; what is left goes to self."""
    overlap: bool = False
    """async: the neighbours' newest snapshots travel while the agent trains. What is merged is what they had published
    when its training began: up to a round older than without, and weighed so."""
    encoding: Literal["float32"] = "float32"

    @model_validator(mode="after")
    def _floor_is_below_ceiling(self) -> Self:
        if self.min_timeout_s is not None and self.min_timeout_s > self.timeout_s:
            raise ValueError(
                f"min_timeout_s is {self.min_timeout_s:g} and timeout_s {self.timeout_s:g}: "
                "the least wait is longer than the longest"
            )
        return self

    @model_validator(mode="after")
    def _overlaps_where_nobody_waits(self) -> Self:
        if self.overlap and self.mode == "sync":
            raise ValueError(
                "overlap is true and mode 'sync': in step a round merges its neighbours' snapshots of the same round, "
                "which do not exist before its training ends. Take mode 'async', or overlap false"
            )
        return self


class StopConfig(Part):
    """When to stop before the last round."""

    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Mean test accuracy right after the merge at which the run has done its work."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Rounds without a better mean accuracy after which the run stops."""


class MembershipConfig(Part):
    """What happens when an agent is not there."""

    lease_s: Annotated[float, Field(ge=3)] = 15.0
    """Seconds of silence after which an agent counts as lost; agents speak every second."""
    repair: Literal["bridge", "drop"] = "bridge"
    """bridge: the neighbours of a lost agent are joined; drop: its edges carry nothing until it is back."""
    max_staleness: Annotated[int, Field(ge=0)] = 10
    """An agent that comes back this many rounds behind at most goes on from its own checkpoint; one that is further
    behind takes a neighbour's model for its start."""
    elastic: bool = False
    """Agents beyond the first `agents` may join while the run goes on: `dimat agent CONFIG --id ID --coordinator X`."""
    max_agents: Annotated[int, Field(ge=2)] | None = None
    """Seats of an elastic run, ids 0 to max_agents - 1; None: twice as many as it begins with. The data is dealt to all
    of them, so the shards of those who never come are not trained on."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often `dimat run --launch per-agent` starts an agent again that died."""


class SecurityConfig(Part):
    """What all agents do alike about certificates and limits. Certificates are each machine's own: `--certs DIR`."""

    certificates: Literal["optional", "required"] = "optional"
    """required: who starts without certificates is refused, also on one machine, where plain text would be allowed."""
    max_calls_per_s: Annotated[float, Field(gt=0)] = 1000.0
    """Calls a second that each peer may make; in plain text, that the agents of a host may make for each of them."""
    max_calls: Annotated[int, Field(ge=4)] = 64
    """Calls of one peer that may be under way at the same moment."""


class LaunchConfig(Part):
    """How agents become processes."""

    ranks_per_agent: Annotated[int, Field(ge=1)] = 1
    """Processes of each agent that train together (DistributedDataParallel); the first of them speaks to other agents.
    Every batch is dealt to them, so that the batch size and the order of samples stay what they are with one."""
    max_restarts: Annotated[int, Field(ge=0)] = 0
    """With all agents under one torchrun: how often a crash starts all of them again, from their checkpoints."""


class SimulationConfig(Part):
    """What only `dimat simulate` reads: docs/simulation.md."""

    vectorise: Literal["off", "auto", "on"] = "off"
    """off: one agent trains after the other, with the bits of a networked run. on: models are stacked and trained as
    one, equal up to rounding; what cannot be stacked is refused. auto: so where that can be done and pays, else off."""

    latency_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds that a transfer costs beside its bytes. This, the next key and compute_s_per_sample turn on a virtual
    clock: deadlines, staleness and all seconds in the reports are then its."""
    bandwidth_bytes_per_s: Annotated[float, Field(gt=0)] | None = None
    """Bytes a second. None: they take no time."""
    bandwidth_of: Literal["link", "reader"] = "link"
    """link: every edge has the bandwidth to itself; reader: what an agent fetches at one time shares it."""
    compute_s_per_sample: Annotated[float, Field(ge=0)] | None = None
    """Seconds of training per sample and epoch."""
    stragglers: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0)]] = {}
    """How many times as long as the others an agent trains, by its id."""
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Every duration is multiplied by a number between 1 - jitter and 1 + jitter, drawn by the run's seed."""

    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    """Write checkpoints in every n-th round and the last one. A simulation that was killed goes on from the newest."""

    @property
    def timed(self) -> bool:
        """Whether there is a virtual clock."""
        return any(one is not None for one in (self.latency_s, self.bandwidth_bytes_per_s, self.compute_s_per_sample))

    @model_validator(mode="after")
    def _times_need_a_clock(self) -> Self:
        if self.jitter and not self.timed:
            raise ValueError("jitter has no meaning without latency_s, bandwidth_bytes_per_s or compute_s_per_sample")
        if self.stragglers and self.compute_s_per_sample is None:
            raise ValueError("stragglers have no meaning without compute_s_per_sample")
        return self

    @field_validator("vectorise", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
