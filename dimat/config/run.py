"""The whole config of a run: its parts, and what they must be together."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from dimat.config.learning import AlgorithmConfig, TaskConfig, TopologyConfig, TrainConfig
from dimat.config.merging import MergeConfig
from dimat.config.part import Part
from dimat.config.running import (
    ExchangeConfig,
    LaunchConfig,
    MembershipConfig,
    SecurityConfig,
    SimulationConfig,
    StopConfig,
)
from dimat.faults.plan import LINKS, SERVED, Fault, check_faults
from dimat.schedules import Schedule, make_schedule


class RunConfig(Part):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "digits-ring"
    seed: Annotated[int, Field(ge=0)] = 0
    agents: Annotated[int, Field(ge=2)] = 5
    rounds: Annotated[int, Field(ge=1)] = 20
    threads: Annotated[int, Field(ge=1)] = 1
    """torch threads of every agent; bits are equal only for equal `threads`."""
    init: str = "different"
    """same | different | a folder with one checkpoint per agent (`0.safetensors`, `1.safetensors`, ...)."""
    task: TaskConfig = TaskConfig()
    train: TrainConfig = TrainConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    topology: TopologyConfig = TopologyConfig()
    merge: MergeConfig = MergeConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    stop: StopConfig = StopConfig()
    launch: LaunchConfig = LaunchConfig()
    membership: MembershipConfig = MembershipConfig()
    security: SecurityConfig = SecurityConfig()
    simulation: SimulationConfig = SimulationConfig()
    faults: list[Fault] = []
    """What shall go wrong, on purpose: see `dimat.faults.plan`."""

    @model_validator(mode="before")
    @classmethod
    def _dsgd_has_no_momentum(cls, values: Any) -> Any:
        """The default of `train.momentum` is for `merge`: where `dsgd` is named and no momentum, it is 0."""
        if not isinstance(values, dict):
            return values
        algorithm, train = values.get("algorithm"), values.get("train", {})
        name = algorithm.get("name") if isinstance(algorithm, dict) else algorithm
        if name != "dsgd" or not isinstance(train, dict) or "momentum" in train:
            return values
        return {**values, "train": {**train, "momentum": 0.0}}

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        most = self.membership.max_agents
        if most is not None and not self.membership.elastic:
            raise ValueError("membership.max_agents has no meaning without membership.elastic: true")
        if most is not None and most < self.agents:
            raise ValueError(f"membership.max_agents is {most}, and the run begins with {self.agents} agents")
        if self.train.batch_size < self.launch.ranks_per_agent:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}: a batch cannot be dealt to launch.ranks_per_agent = "
                f"{self.launch.ranks_per_agent} processes"
            )
        if self.merge.final == "complete" and (self.stop.target_accuracy or self.stop.patience):
            raise ValueError(
                "merge.final 'complete' merges in the last of all rounds, which stop.target_accuracy and stop.patience "
                "may leave out: take one or the other"
            )
        if self.merge.final == "complete" and self.exchange.mode == "async":
            raise ValueError(
                "merge.final 'complete' brings all agents to one point at the same moment, and there is no such moment "
                "with exchange.mode 'async': take 'sync', or merge the last checkpoints with `dimat merge`"
            )
        strangers = sorted(agent for agent in self.simulation.stragglers if agent >= self.agents)
        if strangers:
            raise ValueError(
                f"simulation.stragglers names agent {strangers[0]}; the run has agents 0 to {self.agents - 1}"
            )
        check_faults(self.faults, self.agents, self.rounds)
        schedule = self.merge.schedule
        if schedule.name == "period" and schedule.options:
            raise ValueError(
                f"merge.schedule 'period' takes no {', '.join(schedule.options)}: its length is merge.every"
            )
        if schedule.name != "period" and self.merge.every != 1:
            raise ValueError(
                f"merge.every is the period of schedule 'period', and merge.schedule is {schedule.name!r}: "
                "take one or the other"
            )
        if self.algorithm.name == "merge":
            self._merges_without_options()
        else:
            self._fits_an_algorithm()
        return self

    def _merges_without_options(self) -> None:
        given = [*(["steps"] if self.algorithm.steps is not None else []), *self.algorithm.options]
        if given:
            raise ValueError(
                f"algorithm 'merge' takes no {', '.join(given)}: its keys stand under merge, and under train"
            )

    def _fits_an_algorithm(self) -> None:
        """What belongs to `merge` alone is refused beside another algorithm, not ignored."""
        name, defaults = self.algorithm.name, MergeConfig()
        keys = [key for key in MergeConfig.model_fields if key != "final"]
        changed = [key for key in keys if getattr(self.merge, key) != getattr(defaults, key)]
        if changed:
            raise ValueError(
                f"merge.{changed[0]} belongs to algorithm 'merge', and algorithm is {name!r}, "
                "which exchanges while it trains"
            )
        refused = {
            "exchange.mode": ("async", self.exchange.mode == "async", "its steps go in step"),
            "membership.elastic": (True, self.membership.elastic, "all must know from the start how many steps to do"),
            "simulation.vectorise": ("on", self.simulation.vectorise == "on", "single steps are not stacked"),
            "launch.ranks_per_agent": (
                self.launch.ranks_per_agent, self.launch.ranks_per_agent > 1, "an agent steps as one process"
            ),
        }  # fmt: skip
        for key, (given, wrong, why) in refused.items():
            if wrong:
                raise ValueError(f"{key} is {given!r}, and algorithm {name!r} does not go with it: {why}")
        if unfit := next((fault for fault in self.faults if fault.do in (*SERVED, *LINKS)), None):
            raise ValueError(
                f"faults: {unfit.do} is of one exchange a round, and algorithm {name!r} has many in a round; "
                "kill, stall, fill_disk and restart_coordinator work with it"
            )

    @property
    def basis(self) -> Literal["agree", "adopt", "each_round"]:
        """`merge.basis`, decided as far as the config alone says (`dimat.agent.start.choose_basis` knows the rest).

        >>> RunConfig().basis, RunConfig(init="checkpoints").basis
        ('adopt', 'agree')
        """
        if self.merge.basis != "auto":
            return self.merge.basis
        # Without alignment agents merge as they are: that is what the setting asks for.
        untrained = self.init in ("same", "different")
        return "adopt" if untrained and self.merge.align != "none" else "agree"

    @property
    def num_seats(self) -> int:
        """Agents that there can be at once: ids are below."""
        if not self.membership.elastic:
            return self.agents
        return self.membership.max_agents or 2 * self.agents

    def merge_schedule(self) -> Schedule:
        """The rounds that end with a merge, the final one among them.

        Raises:
            PluginError: no schedule has that name, or it answers something else than yes or no.
            ConfigError: an option that it does not have, or a value that it refuses.
        """
        part = self.merge.schedule
        options = {"every": self.merge.every} if part.name == "period" else part.options
        return make_schedule(part.name, options, self.rounds, final=self.merge.final == "complete")

    @property
    def digest(self) -> str:
        """Eight hex digits of the resolved config: two runs of one digest are the same run."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """The resolved config as YAML, keys in the order of the documentation."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))
