"""One exchange of a step: what an algorithm can do with its agent's neighbours, and the tally of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import networkx as nx

from dimat.agent.gather import Gathered, gather
from dimat.agent.state import Agent
from dimat.agent.status import PhaseClock
from dimat.agent.steps import Steps
from dimat.messages import Header
from dimat.snapshot.encode import decode, encode
from dimat.statedict import StateDict
from dimat.transport.base import HISTORY, Wait

STEP = "step"
"""The kind of a whole model in the middle of a round."""


@dataclass(slots=True)
class Tally:
    """What the exchanges of one round add up to, for its report."""

    num_exchanges: int = 0
    weights: dict[int, float] = field(default_factory=dict)
    """Sum of the rows that were really used."""
    bytes_received: dict[int, int] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    num_missed: dict[int, int] = field(default_factory=dict)

    def mean_row(self) -> dict[int, float]:
        """The mean over the round's exchanges of the rows that were really used."""
        return {peer: weight / self.num_exchanges for peer, weight in sorted(self.weights.items())}

    def reasons(self) -> dict[int, str]:
        """Who was missing in how many exchanges, and why the last time."""
        return {
            peer: f"{reason} (in {self.num_missed[peer]} of {self.num_exchanges} exchanges)"
            for peer, reason in sorted(self.missing.items())
        }

    def used(self, row: Mapping[int, float]) -> None:
        """Note the row of one exchange."""
        self.num_exchanges += 1
        for peer, weight in row.items():
            self.weights[peer] = self.weights.get(peer, 0.0) + weight

    def received(self, num_bytes: Mapping[int, int]) -> None:
        """Note what came in."""
        for peer, number in num_bytes.items():
            self.bytes_received[peer] = self.bytes_received.get(peer, 0) + number

    def missed(self, reasons: Mapping[int, str]) -> None:
        """Note who did not take part in one exchange."""
        for peer, reason in reasons.items():
            self.missing[peer] = reason
            self.num_missed[peer] = self.num_missed.get(peer, 0) + 1


@dataclass(frozen=True, slots=True)
class Exchange:
    """The exchange number `index` of a run, counted from one over all rounds.

    Attributes:
        agent: whose.
        round: the round it belongs to: repairs of the graph hold from a round on.
        index: which exchange. A graph that changes from round to round here changes from exchange to exchange.
        number: what the headers of what is published first carry; the next `Algorithm.numbers` - 1 are this one's, too.
        clock: of the round.
        tally: of the round.
    """

    agent: Agent
    round: int
    index: int
    number: int
    clock: PhaseClock
    tally: Tally

    @property
    def graph(self) -> nx.Graph[int]:
        """Who reads whom in this exchange."""
        return self.agent.topology_in(self.round).graph(self.index - 1)

    @property
    def mutual(self) -> bool:
        """Whether whoever reads also is read."""
        return not self.graph.is_directed()

    def row(self) -> dict[int, float]:
        """The agent's row of the mixing matrix: weights by agent, itself included."""
        return self.agent.topology_in(self.round).weights(self.agent.id, self.index - 1)

    def readers(self) -> tuple[int, ...]:
        """The agents that read this one, ascending."""
        return tuple(self.agent.topology_in(self.round).readers(self.agent.id, self.index - 1))

    def publish(
        self,
        kind: str,
        tensors: StateDict,
        scalars: Mapping[str, float] | None = None,
        *,
        after: int = 0,
        owed: tuple[int, ...] = (),
    ) -> Steps[StateDict]:
        """Freeze a copy of `tensors` and let readers fetch it; returns that copy.

        Args:
            kind: what it is.
            tensors: by name, in an order that all agents share.
            scalars: what the header carries along.
            after: 1 for what is published second within the exchange, and so on.
            owed: who must have read it before what is published two exchanges later takes its place. Where both ends
                agree on their edge nobody has to be named.
        """
        waiting = self.agent.owed.setdefault(kind, {})
        number = self.number + after
        # Two are kept: with this one, all but the newest of those before it are to go.
        yield from let_read(self.agent, kind, sorted(waiting)[: max(0, len(waiting) + 1 - HISTORY)])
        with self.clock("publish"):
            payload = encode(tensors, Header(kind, number, self.agent.id, dict(scalars or {})))
            self.agent.transport.publish(payload)
        if owed:
            waiting[number] = owed
        return decode(payload)

    def gather(
        self, kind: str, row: Mapping[int, float], *, after: int = 0, agree: bool | None = None
    ) -> Steps[Gathered]:
        """What those in `row` have published of `kind` in this exchange.

        Args:
            kind: what it is.
            row: agents by weight, this one included.
            after: as for `publish`.
            agree: whether both ends settle on an edge; None: where whoever reads also is read.
        """
        agree = self.mutual if agree is None else agree
        gathered = yield from gather(self.agent, self.number + after, row, self.clock, kind=kind, mutual=agree)
        self.tally.received(gathered.bytes_received)
        self.tally.missed(gathered.missing)
        return gathered


def let_read(agent: Agent, kind: str, numbers: list[int], *, at_the_end: bool = False) -> Steps[None]:
    """Wait until those who are to read what was published of `kind` have done so, or their deadline."""
    for number in numbers:
        readers = agent.owed[kind].pop(number)
        patience_s = agent.limits.ceiling_s if at_the_end else agent.patience_s("read", readers)
        yield Wait("acknowledged", readers, kind, number, patience_s)


def let_all_read(agent: Agent) -> Steps[None]:
    """At the end of a run: serve what was published last until whoever reads it has it, or the deadline."""
    for kind, waiting in sorted(agent.owed.items()):
        yield from let_read(agent, kind, sorted(waiting), at_the_end=True)
