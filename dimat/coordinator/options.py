"""What the coordinator's decisions depend on besides what happened: one frozen value for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from dimat.config import RunConfig


@dataclass(frozen=True, slots=True)
class Options:
    """Size and rules of one run.

    Attributes:
        num_agents: n; the agents are 0..n-1. In an elastic run those that may come later are among them.
        rounds: the last round when nothing stops the run before.
        diameter: rounds that the fastest agent can be ahead: the topology's hops, each as long as from merge to merge.
        target_accuracy: mean accuracy after the merge at which the run has done its work.
        patience: rounds without a better mean accuracy after which it stops.
        lease_s: seconds of silence after which a running agent counts as lost. Agents beat every second.
        num_founders: how many the run begins with, ids from 0; None for all. Nobody waits for the others.
        most_behind: rounds that one who came back may be behind when it is taken into the graph again.
        linear: whether a merge is the plain weighted sum of the models as sketched, so that sketches predict it.
        blow_up_factor: a training loss this many times the best mean so far is a blow-up ...
        blow_up_floor: ... when it is also above this and above the first round's mean.
    """

    num_agents: int
    rounds: int
    diameter: int
    target_accuracy: float | None = None
    patience: int | None = None
    lease_s: float = 15.0
    num_founders: int | None = None
    most_behind: int = 1
    linear: bool = True
    blow_up_factor: float = 10.0
    blow_up_floor: float = 10.0

    @classmethod
    def of(cls, config: RunConfig, diameter: int, *, lease_s: float | None = None) -> Options:
        """The options that a run's config asks for."""
        merge = config.merge
        # Agents meet only in merges: between two of them everybody runs ahead.
        lead = config.merge_schedule().lead(diameter)
        return cls(
            num_agents=config.num_seats,
            num_founders=config.agents,
            # Slow agents are always so many rounds behind; who is further behind than that is still on its way.
            most_behind=max(1, lead, config.membership.max_staleness),
            rounds=config.rounds,
            diameter=lead,
            target_accuracy=config.stop.target_accuracy,
            patience=config.stop.patience,
            lease_s=config.membership.lease_s if lease_s is None else lease_s,
            linear=merge.method == "mean"
            and (merge.align == "none" or config.basis != "each_round")
            and config.algorithm.name == "merge"  # the others descend and mix in one
            and config.exchange.mode == "sync",  # else what was merged are not the models of this round
        )

    @property
    def newcomers(self) -> frozenset[int]:
        """Ids of the agents that may come later."""
        return frozenset(range(self.num_founders or self.num_agents, self.num_agents))


def names(agents: list[int]) -> str:
    """Agents in words.

    >>> names([3]), names([4, 1])
    ('agent 3', 'agents 1, 4')
    """
    return f"agent{'' if len(agents) == 1 else 's'} {', '.join(str(agent) for agent in sorted(agents))}"
