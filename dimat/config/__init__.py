"""A run's config: closed, frozen, checked before anything starts, written resolved into the run folder.

There is one way in: a YAML file (or nothing: the embedded default) and `-s key=value` over it.
"""

from dimat.config.learning import AlgorithmConfig, PartitionConfig, TaskConfig, TopologyConfig, TrainConfig
from dimat.config.load import load_config, parse_config
from dimat.config.merging import ChecksConfig, GateConfig, MergeConfig, ScheduleConfig
from dimat.config.part import Part
from dimat.config.run import RunConfig
from dimat.config.running import (
    ExchangeConfig,
    LaunchConfig,
    MembershipConfig,
    SecurityConfig,
    SimulationConfig,
    StopConfig,
)

__all__ = [
    "AlgorithmConfig",
    "ChecksConfig",
    "ExchangeConfig",
    "GateConfig",
    "LaunchConfig",
    "MembershipConfig",
    "MergeConfig",
    "Part",
    "PartitionConfig",
    "RunConfig",
    "ScheduleConfig",
    "SecurityConfig",
    "SimulationConfig",
    "StopConfig",
    "TaskConfig",
    "TopologyConfig",
    "TrainConfig",
    "load_config",
    "parse_config",
]
