"""A run's config: closed, frozen, checked before anything starts, written resolved into the run folder.

There is one way in: a YAML file (or nothing: the embedded default) and `-s key=value` over it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dimat.errors import ConfigError
from dimat.faults.plan import LINKS, SERVED, Fault, check_faults
from dimat.plugins import closest
from dimat.schedules import Schedule, make_schedule

MISSPELT = 0.7
"""Likeness (difflib's ratio) from which a key under `merge:` is taken for a misspelt one, not for a method's option."""


class Part(BaseModel):
    """A closed, frozen part of the config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def name_with_options(part: type[Part], values: Any) -> Any:
    """What a plug-in with options is written as, in full: a name alone is a mapping of one, and keys that are none of
    the part's own are the plug-in's options, which it checks itself.
    """
    if isinstance(values, str):
        return {"name": values}
    if not isinstance(values, dict) or not isinstance(values.get("options", {}), dict):
        return values
    own = [str(key) for key in values if key not in part.model_fields]
    for key in own:
        if key in values.get("options", {}):
            raise ValueError(f"the option {key!r} stands twice: beside name, and under options")
    kept = {key: value for key, value in values.items() if key not in own}
    return {**kept, "options": {**values.get("options", {}), **{key: values[key] for key in own}}} if own else kept


class PartitionConfig(Part):
    """How the training data is dealt to the agents."""

    scheme: Literal["iid", "dirichlet", "classes", "column"] = "dirichlet"
    """iid; dirichlet: class shares drawn per agent; classes: class c to agent c mod n; column: by an array's values."""
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Concentration of `dirichlet`: small is skewed, large is even."""
    column: str | None = None
    """The array in the data file whose values part the data, for `column` (such as `subject_train`)."""

    @model_validator(mode="after")
    def _column_is_named(self) -> Self:
        if self.scheme == "column" and not self.column:
            raise ValueError("scheme 'column' needs the array's name: partition.column")
        if self.column and self.scheme != "column":
            raise ValueError(f"column {self.column!r} is used by scheme 'column' only, and scheme is {self.scheme!r}")
        return self


class TaskConfig(Part):
    """What is learnt: data, model, loss and evaluation."""

    name: str = "digits"
    """`digits`, `arrays`, an entry point, `package.module:Class` or `file.py:Class`."""
    model: str | dict[str, Any] = "cnn"
    """A built-in model's name, `{name: resnet20, width: 2}`, or `module:factory`."""
    data: str | None = None
    """Path of the data file, for tasks that read one."""
    partition: PartitionConfig = PartitionConfig()
    options: dict[str, Any] = {}
    """Further keyword arguments of the task's class."""


class TrainConfig(Part):
    """Local training between two merges."""

    epochs: Annotated[int, Field(ge=1)] = 2
    """Local epochs a round."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd; the others keep their own defaults. With algorithm dsgd, which has none, 0 unless it is given."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """cosine: from `lr` to zero over all local epochs of the run."""


class AlgorithmConfig(Part):
    """How the agents train together: a name, or `{name: choco, ratio: 0.01, gamma: 0.3}`. See docs/baselines.md."""

    name: str = "merge"
    """merge: dimat's own rounds, local epochs and then one merge. dsgd, cdmsgd, sgp, cga, swarm, choco: methods that
    exchange while they train. Or an entry point, `package.module:function`, `file.py:function`."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Gradient steps of a round, the same for every agent. None: what `train.epochs` take the agent with most data.
    Not for `merge`, whose rounds are epochs."""
    options: dict[str, Any] = {}
    """Options of the algorithm. They may as well stand beside `name`, one by one."""

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, values: Any) -> Any:
        return name_with_options(cls, values)


class TopologyConfig(Part):
    """Who reads whom, and with which weight."""

    graph: str = "ring"
    """A built-in name, a file (.yaml, .graphml, .edgelist, .json, .py:function), `module:function`, an entry point."""
    mixing: Literal["metropolis", "uniform", "max_degree", "lazy", "edge_weights"] | None = None
    """None: metropolis on undirected graphs, uniform on directed ones."""
    options: dict[str, Any] = {}
    """Options of the generator, such as `p` of erdos_renyi."""


class ChecksConfig(Part):
    """Which neighbours a merge does without. All checks are off by default; how they work: docs/robustness.md."""

    max_norm_ratio: Annotated[float, Field(ge=1)] | None = None
    """A neighbour further from the own model than this many times the usual distance is refused. Usual is the median
    over the neighbours of this merge and the own last merges."""
    min_cosine: Annotated[float, Field(ge=-1, lt=1)] | None = None
    """A neighbour whose parameters have a lower cosine to the own ones is refused."""

    @property
    def on(self) -> bool:
        """Whether anything is checked."""
        return self.max_norm_ratio is not None or self.min_cosine is not None


class GateConfig(Part):
    """Whether a merge that makes an agent worse on its own samples is held back. Off by default."""

    margin: Annotated[float, Field(ge=0)] | None = None
    """By how much the task's loss on own samples (at most 512) may rise through a merge. Above that a half, a quarter,
    an eighth of the merge is tried, then none of it is taken."""


class ScheduleConfig(Part):
    """In which rounds models merge: a name, or `{name: late, budget: 5}`. See docs/baselines.md."""

    name: str = "period"
    """period: every `merge.every`-th round; growing, shrinking: gaps between merges that do so; late: a fixed number
    of merges at the end. Or an entry point, `package.module:function`, `file.py:function`."""
    options: dict[str, Any] = {}
    """Options of the schedule. They may as well stand beside `name`, one by one."""

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, values: Any) -> Any:
        return name_with_options(cls, values)


class MergeConfig(Part):
    """How neighbours become one."""

    method: str = "mean"
    """A registered fold (`dimat methods` lists them), `package.module:function` or `file.py:function`. One with a base
    takes each agent's own model after its last merge for it."""
    align: Literal["none", "weights", "activations"] = "activations"
    """What permutations are found by."""
    basis: Literal["auto", "agree", "adopt", "each_round"] = "auto"
    """agree once and keep it; adopt the root's weights; or match anew each round as DIMAT was published. auto: agents
    that have not trained before the run adopt; those that bring trained models agree, unless these were trained apart
    on samples that have few classes in common: then all begin anew, with one model."""
    sweeps: Annotated[int, Field(ge=0)] = 2
    """agree: how often each agent, once matched to its parent in the tree, is matched by its weights to the sum of all
    others'. Each sweep sends four models along every edge of the tree, once in a run; not with exchange.mode async nor
    on directed graphs."""
    probe: Literal["local", "shared"] = "local"
    """Whose samples activations are compared on."""
    skip: Literal["never", "settled"] = "settled"
    """settled: a neighbour's model is not matched, but taken as it is, where a look at the weights shows that its units
    are numbered like one's own: no two different units are as alike as each is to itself (docs/alignment.md). never:
    every model that `basis` says is matched, as DIMAT was published."""
    calibrate: Literal["none", "batchnorm", "neighbourhood", "repair"] = "neighbourhood"
    """What is put right after a merge, on at most 512 own samples. batchnorm: running statistics of batch norms;
    neighbourhood: these, and then the mixture of what the agent and its neighbours have measured so (batchnorm where
    the method bounds what a neighbour can do, such as median); repair: batchnorm, and in the other layers the channel
    means and deviations that the merged models had."""
    every: Annotated[int, Field(ge=1)] = 1
    """Merge in every n-th round: the period of schedule `period`."""
    schedule: ScheduleConfig = ScheduleConfig()
    """In which rounds."""
    optimizer_state: Literal["keep", "reset"] = "reset"
    """Momentum (Adam's moments) over a merge. It points where the agent's own samples led its own model."""
    final: Literal["none", "complete"] = "none"
    """complete: one merge over the complete graph at the end."""
    checks: ChecksConfig = ChecksConfig()
    """Neighbours that are refused."""
    gate: GateConfig = GateConfig()
    """Merges that are held back."""
    options: dict[str, Any] = {}
    """Options of the method: `dimat methods NAME` lists them. They may as well stand beside `method`, one by one."""

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, values: Any) -> Any:
        """Other keys than these are the method's options, which it checks itself; near misses of these are not."""
        if not isinstance(values, dict) or not isinstance(values.get("options", {}), dict):
            return values
        own = [str(key) for key in values if key not in cls.model_fields and not _misspelt(str(key), cls.model_fields)]
        for key in own:
            if key in values.get("options", {}):
                raise ValueError(f"the option {key!r} stands twice: beside method, and under options")
        kept = {key: value for key, value in values.items() if key not in own}
        return {**kept, "options": {**values.get("options", {}), **{key: values[key] for key in own}}} if own else kept


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


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in `path` (None: the embedded default) with `key=value` overrides.

    >>> load_config(None, ["merge.basis=adopt", "agents=4"]).agents
    4

    Raises:
        ConfigError: the file does not exist or is not YAML, a key is unknown, a value is not allowed; every problem is
            named with its key path, what was given and what was expected.
    """
    values = _read(path) if path is not None else {}
    for override in overrides:
        _set(values, override)
    config = parse_config(values, source=str(path) if path else "the default config")
    return _with_absolute_paths(config, [Path.cwd(), *([path.parent] if path else [])])


def parse_config(values: Mapping[str, Any], *, source: str) -> RunConfig:
    """The config that `values` spell out.

    Raises:
        ConfigError: as for `load_config`.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem, values) for problem in error.errors()]
        raise ConfigError(f"{source} cannot be run:\n" + "\n".join(f"  {line}" for line in problems)) from None


def _with_absolute_paths(config: RunConfig, folders: Sequence[Path]) -> RunConfig:
    """Files that the config names, found from the current folder or beside the config, with their whole path.

    Agents read the resolved config from the run folder, and may stand in another one. What is not found stays as it
    is: it may be a name, or its own part of dimat says that the file does not exist.
    """

    def absolute(name: str) -> str:
        file, colon, attribute = name.partition(":") if ".py:" in name else (name, "", "")
        for folder in folders:
            if (folder / file).exists():
                return f"{(folder / file).resolve()}{colon}{attribute}"
        return name

    def is_file(name: str) -> bool:
        return ".py:" in name or "/" in name or Path(name).suffix in (".yaml", ".yml", ".json", ".graphml", ".edgelist")

    task = config.task
    found: dict[str, Any] = {
        "name": absolute(task.name) if is_file(task.name) else task.name,
        "data": None if task.data is None else absolute(task.data),
    }
    if isinstance(task.model, str) and is_file(task.model):
        found["model"] = absolute(task.model)
    graph, method, algorithm = config.topology.graph, config.merge.method, config.algorithm.name
    init, schedule = config.init, config.merge.schedule
    return config.model_copy(
        update={
            "task": task.model_copy(update=found),
            "topology": config.topology.model_copy(update={"graph": absolute(graph) if is_file(graph) else graph}),
            "merge": config.merge.model_copy(
                update={
                    "method": absolute(method) if is_file(method) else method,
                    "schedule": schedule.model_copy(
                        update={"name": absolute(schedule.name) if is_file(schedule.name) else schedule.name}
                    ),
                }
            ),
            "algorithm": config.algorithm.model_copy(
                update={"name": absolute(algorithm) if is_file(algorithm) else algorithm}
            ),
            "init": init if init in ("same", "different") else absolute(init),
        }
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {str(path)!r} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config {str(path)!r} holds a {type(values).__name__}, expected keys and values")
    return values


def _set(values: dict[str, Any], override: str) -> None:
    """Put `a.b.c=value` into the nested dictionaries."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"-s {override!r} is not of the form key=value", hint="for example: -s train.epochs=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"-s {override!r}: {text!r} is not a YAML value") from None
    *parents, last = key.strip().split(".")
    for parent in parents:
        if parent == "model" and isinstance(values.get(parent, "cnn"), str):  # -s task.model.width=2 over a bare name
            values[parent] = {"name": values.get(parent, TaskConfig().model)}
        if parent in ("algorithm", "schedule") and isinstance(values.get(parent), str):
            values[parent] = {"name": values[parent]}
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"-s {override!r}: {parent!r} is a value ({inner!r}), not a group of keys")
        values = inner
    if last in ("algorithm", "schedule") and isinstance(value, str) and isinstance(values.get(last), dict):
        value = {**values[last], "name": value}  # a name after its options is no reason to forget them
    values[last] = value


def _explain(problem: Any, values: Mapping[str, Any]) -> str:
    """One line for one pydantic problem: key path, what was given, what was expected, the closest right name."""
    path = [str(part) for part in problem["loc"] if part not in ("str", "dict[str,any]")]
    where = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = closest(path[-1], known)
        did_you_mean = f" Did you mean {'.'.join([*path[:-1], near])!r}?" if near else ""
        return f"unknown key {where!r}.{did_you_mean} Keys here: {', '.join(known)}"
    given = problem["input"]
    if problem["type"] == "literal_error":
        expected = problem["ctx"]["expected"]
        near = closest(str(given), [name.strip(" '") for name in expected.replace(" or ", ",").split(",")])
        did_you_mean = f" Did you mean {near!r}?" if near else ""
        return f"{where}: got {given!r}, expected {expected}.{did_you_mean}"
    if problem["type"] == "model_type":
        return f"{where}: got {given!r}, expected a group of keys: {', '.join(_keys_at(path))}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, got {given!r}" if where else message


def _misspelt(key: str, known: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(key, list(known), n=1, cutoff=MISSPELT))


def _keys_at(path: Sequence[str]) -> list[str]:
    part: type[BaseModel] = RunConfig
    for name in path:
        if name.isdigit():
            continue  # a place in a list: the keys are those of its items
        annotation = part.model_fields[name].annotation if name in part.model_fields else None
        annotation = next((inner for inner in get_args(annotation) if isinstance(inner, type)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        part = annotation
    return list(part.model_fields)
