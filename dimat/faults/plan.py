"""The fault plan as it stands in a config: what goes wrong, at whom, when.

    faults:
      - {at: {agent: 2, round: 3, phase: gather}, do: kill}            # the agent's process ends, at once
      - {at: {agent: 2, round: 3, phase: train}, do: stall, seconds: 5}
      - {at: {agent: 2, round: 3}, do: corrupt}                        # what agent 2 serves of round 3
      - {do: drop_link, between: [0, 1], rounds: [3, 5]}               # nothing passes from round 3 to round 5
      - {do: cut, groups: [[0, 1, 2], [3, 4, 5]], rounds: [3, 8]}      # in two; healed in round 9
      - {at: {agent: 2, round: 3}, do: fill_disk}                      # its checkpoint of round 3 meets a full disk
      - {at: {round: 3}, do: restart_coordinator}

Everything is looked at before a run starts; what remains are questions that a run asks, as pure functions of the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Phase = Literal[
    "train", "evaluate", "publish", "sketch", "wait", "gather", "align", "fold", "calibrate", "statistics", "checkpoint"
]  # fmt: skip
PHASES: tuple[str, ...] = (
    "train", "evaluate", "publish", "sketch", "wait", "gather", "align", "fold", "calibrate", "statistics",
    "checkpoint",
)  # fmt: skip
"""The phases of a round, in their order."""

Kind = Literal[
    "kill", "stall", "drop_link", "cut", "corrupt", "truncate", "stale", "nan", "wrong_schema", "fill_disk",
    "restart_coordinator",
]  # fmt: skip

SERVED = ("corrupt", "truncate", "stale", "nan", "wrong_schema")
"""Faults in what an agent serves; its own model stays right."""
LINKS = ("drop_link", "cut")
TRIGGERED = ("kill", "stall", "fill_disk")
"""Faults that happen when an agent enters a phase, once."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(SERVED, ("at.agent",)),
    "kill": ("at.agent",),
    "stall": ("at.agent", "seconds"),
    "fill_disk": ("at.agent",),
    "restart_coordinator": ("at",),
    "drop_link": ("between", "rounds"),
    "cut": ("groups", "rounds"),
}
"""What each fault must be told; `at` always has a round."""
MAY_HAVE: Mapping[str, tuple[str, ...]] = {"kill": ("at.phase",), "stall": ("at.phase",)}
DEFAULT_PHASE: Mapping[str, Phase] = {"kill": "train", "stall": "train", "fill_disk": "checkpoint"}

Rounds = Annotated[tuple[int, int], Field(description="first and last round, both included")]


class _Closed(BaseModel):
    """Closed and frozen, like every part of a config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class At(_Closed):
    """When and where a fault happens."""

    agent: Annotated[int, Field(ge=0)] | None = None
    round: Annotated[int, Field(ge=1)]
    phase: Phase | None = None
    """Entering this phase; None: the first one, or the only one that the fault can meet."""


class Fault(_Closed):
    """One thing that goes wrong."""

    do: Kind
    at: At | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    """How long a `stall` lasts."""
    between: tuple[int, int] | None = None
    """The two agents whose link `drop_link` drops, in both directions."""
    groups: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """The two groups that `cut` parts: no link between them works."""
    rounds: Rounds | None = None
    """The first and the last round of a `drop_link` or a `cut`; it is whole again in the round after."""

    @model_validator(mode="after")
    def _is_told_what_it_needs(self) -> Self:
        given = {name for name in ("at", "seconds", "between", "groups", "rounds") if getattr(self, name) is not None}
        if self.at is not None:
            given |= {f"at.{name}" for name in ("agent", "phase") if getattr(self.at, name) is not None}
        needs = set(NEEDS[self.do])
        needs |= {"at"} if "at.agent" in needs else set()
        if missing := sorted(needs - given):
            raise ValueError(f"{self.do} needs {' and '.join(missing)}")
        if surplus := sorted(given - needs - set(MAY_HAVE.get(self.do, ()))):
            raise ValueError(f"{self.do} takes no {' and no '.join(surplus)}; it is told {', '.join(sorted(needs))}")
        return self

    @property
    def phase(self) -> str:
        """The phase that it waits for."""
        return (self.at and self.at.phase) or DEFAULT_PHASE.get(self.do, "train")

    def cuts(self, one: int, other: int, round: int) -> bool:
        """Whether nothing passes between two agents in `round`.

        >>> Fault(do="drop_link", between=(0, 1), rounds=(3, 5)).cuts(1, 0, 5)
        True
        """
        if self.rounds is None or not self.rounds[0] <= round <= self.rounds[1]:
            return False
        if self.between is not None:
            return {one, other} == set(self.between)
        assert self.groups is not None
        first, second = self.groups
        return (one in first and other in second) or (one in second and other in first)

    def __str__(self) -> str:
        where = []
        if self.at is not None:
            where = [f"agent {self.at.agent}"] if self.at.agent is not None else []
            where += [f"round {self.at.round}"] + ([self.phase] if self.do in TRIGGERED else [])
        if self.rounds is not None:
            where.append(f"rounds {self.rounds[0]} to {self.rounds[1]}")
        return f"{self.do} ({', '.join(where)})"


def check_faults(faults: Sequence[Fault], num_agents: int, num_rounds: int) -> None:
    """Refuse a plan that names agents or rounds which do not exist, before anything starts.

    Raises:
        ValueError: the fault by its place in the list, what was given, what exists.

    >>> check_faults([Fault(do="kill", at=At(agent=7, round=1))], num_agents=5, num_rounds=20)
    Traceback (most recent call last):
    ValueError: faults.0: kill names agent 7; this run has agents 0 to 4
    """
    for place, fault in enumerate(faults):
        where = f"faults.{place}: {fault.do}"
        for agent in _agents_of(fault):
            if not 0 <= agent < num_agents:
                raise ValueError(f"{where} names agent {agent}; this run has agents 0 to {num_agents - 1}")
        rounds = fault.rounds or ((fault.at.round,) if fault.at else ())
        for round in rounds:
            if not 1 <= round <= num_rounds:
                raise ValueError(f"{where} names round {round}; this run has rounds 1 to {num_rounds}")
        if fault.rounds is not None and fault.rounds[0] > fault.rounds[1]:
            raise ValueError(
                f"{where} lasts from round {fault.rounds[0]} to round {fault.rounds[1]}: the first is later"
            )
        if fault.between is not None and fault.between[0] == fault.between[1]:
            raise ValueError(f"{where} is between agent {fault.between[0]} and itself, expected two agents")
        if fault.groups is not None and set(fault.groups[0]) & set(fault.groups[1]):
            both = sorted(set(fault.groups[0]) & set(fault.groups[1]))
            raise ValueError(f"{where} has agents {both} in both groups")
        if fault.groups is not None and not all(fault.groups):
            raise ValueError(f"{where} has an empty group: nothing would be cut")
        if fault.do == "stale" and fault.at is not None and fault.at.round == 1:
            raise ValueError(f"{where} names round 1, and there is none before it that could be served instead")


def _agents_of(fault: Fault) -> Iterable[int]:
    if fault.at is not None and fault.at.agent is not None:
        yield fault.at.agent
    yield from fault.between or ()
    for group in fault.groups or ():
        yield from group


# -------------------------------------------------------------------------------------------- what a run asks its plan


def triggered(faults: Sequence[Fault], agent: int) -> dict[int, Fault]:
    """What happens to `agent` itself as it enters a phase, by place in the plan."""
    return {i: f for i, f in enumerate(faults) if f.do in TRIGGERED and f.at is not None and f.at.agent == agent}


def served(faults: Sequence[Fault], agent: int, round: int) -> str | None:
    """What is wrong with what `agent` serves of `round`: the first such fault's kind, or None."""
    for fault in faults:
        if fault.do in SERVED and fault.at is not None and (fault.at.agent, fault.at.round) == (agent, round):
            return fault.do
    return None


def cut_off(faults: Sequence[Fault], agent: int, peers: Iterable[int], round: int) -> dict[int, Fault]:
    """The peers that `agent` cannot reach in `round`, each with the fault that parts them."""
    found = {}
    for peer in peers:
        for fault in faults:
            if fault.do in LINKS and fault.cuts(agent, peer, round):
                found[peer] = fault
                break
    return found


def concerns(faults: Sequence[Fault], agent: int) -> bool:
    """Whether the plan touches this agent's exchange: then, and only then, its transport is wrapped."""
    return any(fault.do in (*SERVED, *LINKS) and agent in _agents_of(fault) for fault in faults)


def restarts(faults: Sequence[Fault]) -> dict[int, Fault]:
    """When the coordinator is to be restarted, by place in the plan."""
    return {i: f for i, f in enumerate(faults) if f.do == "restart_coordinator"}
