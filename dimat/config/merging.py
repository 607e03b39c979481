"""How neighbours become one, and when."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dimat.config.part import Part, misspelt, name_with_options


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
    others'; two or more are taken back where the loss of the mean of all models does not fall for it. Each sends four
    models for every agent but one, once in a run. Not with exchange.mode async, with methods that bound what a
    neighbour can do (such as median), nor with checks."""
    probe: Literal["local", "shared"] = "local"
    """Whose samples activations are compared on."""
    skip: Literal["never", "settled"] = "settled"
    """settled: a neighbour's model is not matched, but taken as it is, where a look at the weights shows that its units
    are numbered like one's own: no two different units are as alike as each is to itself (docs/alignment.md). never:
    every model that `basis` says is matched, as DIMAT was published."""
    calibrate: Literal["none", "batchnorm", "neighbourhood", "repair"] = "neighbourhood"
    """What is put right after a merge, on own samples. batchnorm: running statistics of batch norms;
    neighbourhood: these, and then the mixture of what the agent and its neighbours have measured so (batchnorm where
    the method bounds what a neighbour can do, such as median); repair: batchnorm, and in the other layers the channel
    means and deviations that the merged models had."""
    calibrate_samples: Annotated[int, Field(ge=2, le=512)] = 128
    """On how many of its own samples an agent calibrates, at most: a forward pass over them, at each merge. More than
    128 have gained nothing that could be measured (docs/notes.md)."""
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
        own = [str(key) for key in values if key not in cls.model_fields and not misspelt(str(key), cls.model_fields)]
        for key in own:
            if key in values.get("options", {}):
                raise ValueError(f"the option {key!r} stands twice: beside method, and under options")
        kept = {key: value for key, value in values.items() if key not in own}
        return {**kept, "options": {**values.get("options", {}), **{key: values[key] for key in own}}} if own else kept
