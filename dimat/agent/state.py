"""One agent as a value: its model, its shard, its place in the graph, and what it needs to merge."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from dimat.agent.checkpoint import (
    Checkpoint,
    drop_checkpoints_after,
    load_checkpoint,
    rounds_held,
    save_checkpoint,
)
from dimat.agent.deadline import Limits, Past, What, deadline_s
from dimat.agent.randomness import Randomness, capture, restore
from dimat.agent.status import Status
from dimat.align import PermutationSpec
from dimat.config import RunConfig
from dimat.errors import DimatError
from dimat.merge import Fold
from dimat.messages import Change, Directive, Header, Payload, Schema
from dimat.snapshot.encode import encode
from dimat.statedict import copy_of, load_into
from dimat.topology import Topology, with_newcomers, without_agents
from dimat.transport.base import Buffer, Fetch, Transport, closed

if TYPE_CHECKING:
    from dimat.agent.ahead import Ahead
    from dimat.agent.algorithms.api import Algorithm
    from dimat.agent.host import Host
    from dimat.agent.ranks import Ranks

SPARE_CHECKPOINTS = 8
"""Checkpoints that are kept at least, where the graph's diameter asks for as many."""

MAX_REPAIRED = 8
"""Repaired topologies that are kept: an agent meets two or three at a time."""


@dataclass(slots=True)
class Agent:
    """Everything that a round reads and writes. `model` and `optimizer` are changed in place, the rest is replaced."""

    id: int
    config: RunConfig
    folder: Path
    """The run folder."""
    session: str
    """Random per process: a fast restart is not mistaken for the process before it."""
    task: Any
    loader: Any
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schema: Schema
    spec: PermutationSpec | None
    """The permutation groups; None when nothing is ever aligned."""
    probe: list[Any]
    """Batches of model inputs on which activations are compared."""
    own_samples: list[Any]
    """Batches of the agent's own inputs, for calibration."""
    topology: Topology
    method: Fold
    transport: Transport
    start: Randomness
    """The random streams right after the agent was made: what a run from round 1 begins with."""
    spare: torch.nn.Module | None = None
    """A second module of the same shape in which other weights than the agent's are run on samples."""
    basis: Literal["agree", "adopt", "restart", "each_round"] = "agree"
    """`merge.basis`; for `auto` decided when the agents have met. restart: adopt, from a root that begins anew."""
    basis_settled: bool = False
    basis_round: int | None = None
    """The round in which this process agreed on a basis; None while it has not, and for one read from a checkpoint."""
    base: dict[str, torch.Tensor] | None = None
    """For methods with a base: this agent's own model after its last merge, before the first one as it started, in its
    present basis. So nothing more than models travels. None for other methods."""
    changes: tuple[Change, ...] = ()
    """Who is in the graph from which round on, as the coordinator said last."""
    done: frozenset[int] = frozenset()
    """The others that have said goodbye."""
    hearing: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while something is heard: of two that hear at once, the later one has the last word on who is gone."""
    others_at: int = 0
    """The newest round that anybody has reported, as far as this agent has heard."""
    addresses: dict[int, str] = field(default_factory=dict)
    """Where the others are."""
    repaired: dict[frozenset[int], Topology] = field(default_factory=dict)
    """The topology by who is away, made when first needed."""
    shares_statistics: bool = False
    """Whether batch-norm statistics are shared with neighbours after each merge; without batch norm there are none."""
    shared_with: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """The neighbours that a round's statistics were shared with: where reading is mutual these read them, too."""
    usual: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """How far the neighbours' models usually lay in the last merges, by kind of tensor; for `merge.checks`."""
    gate_batches: list[Any] = field(default_factory=list)
    """Batches of the agent's own training samples with their labels, for `merge.gate`; empty without it."""
    algorithm: Algorithm | None = None
    """How the agents train together within a round; None for `merge`, whose exchange ends it."""
    remembered: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the algorithm remembers from one exchange to the next; checkpoints keep it."""
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    """What payloads hold, by kind, where it is not the model."""
    largest_shard: int = 0
    """Samples of the agent that has most, as the coordinator knows; 0 when nobody told."""
    exchange: int = 0
    """The exchange that has begun, counted over the whole run, where models travel within a round."""
    owed: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    """Who is still to read what was published, by kind and number, where no agreement on edges sees to it."""
    buffers: dict[tuple[int, str], Buffer] = field(default_factory=dict)
    status: Status = field(default_factory=Status)
    newest: dict[int, int] = field(default_factory=dict)
    """The newest round of a neighbour's that was ever fetched, for `exchange.mode: async`."""
    held: dict[int, Payload] = field(default_factory=dict)
    """The newest snapshot of each neighbour, for `exchange.mode: async`, as long as it lies whole in its buffer."""
    ahead: Ahead | None = None
    """What comes from neighbours while this agent trains, with `exchange.overlap`."""
    past: Past = field(default_factory=Past)
    """What is remembered of waits for neighbours. A simulation, which has no clock, remembers no waits."""
    ranks: Ranks | None = None
    """The processes that train with this one, where the agent owns several."""
    host: Host | None = None
    """Who does some of the agent's work in its place: a simulation of many agents."""
    checkpoint_every: int = 1
    """Rounds from one checkpoint to the next; above one in simulations only."""
    rounds_ahead: Callable[[], int] | None = None
    """How many rounds it is ahead of the last agent, where somebody knows: then fewer checkpoints are kept of graphs
    with a large diameter. A ring of a thousand agents would keep five hundred of each."""

    @property
    def checkpoints(self) -> Path:
        """The folder of this agent's own checkpoints."""
        return self.folder / "checkpoints" / str(self.id)

    def merges(self, round: int) -> bool:
        """Whether `round` ends with a merge of the agents' models."""
        if self.algorithm is not None:
            return False
        return self.config.merge_schedule().merges(round)

    def is_final_merge(self, round: int) -> bool:
        """Whether `round` ends with the one merge over the complete graph."""
        return self.config.merge.final == "complete" and round == self.config.rounds

    def mutual(self, round: int) -> bool:
        """Whether whoever reads also is read in `round`: then both ends of an edge can agree to drop it."""
        return self.is_final_merge(round) or not self.topology.graph(round - 1).is_directed()

    def away(self, round: int) -> frozenset[int]:
        """Who is not in the graph in `round`, as far as this agent knows."""
        told = [change for change in self.changes if change.from_round <= round]
        if told:
            return frozenset(max(told, key=lambda change: change.number).away)
        return frozenset(range(self.config.agents, self.config.num_seats))  # seats for those who come later

    def topology_in(self, round: int) -> Topology:
        """The topology with the repairs that hold in `round`; called by the round and by the thread that serves."""
        away = self.away(round)
        known = self.repaired.get(away)  # another thread may forget it between two looks
        if known is None:
            if len(self.repaired) > MAX_REPAIRED:
                self.repaired.clear()
            newcomers = set(range(self.config.agents, self.config.num_seats)) - away
            grown = with_newcomers(self.topology, self.config.num_seats, newcomers)
            known = self.repaired[away] = without_agents(grown, away, self.config.membership.repair)
        return known

    def hear(self, directive: Directive) -> None:
        """Take over what the coordinator said of the others. Called by the round and by the heartbeat's thread.

        Waits for agents that are away by the newest change end at once, but for those that are leaving in order: they
        do their last rounds like everybody else. So do waits for those that are done: one that ended a moment ago
        cannot be asked any more whether it still reads.
        """
        with self.hearing:
            self._hear(directive)

    def _hear(self, directive: Directive) -> None:
        self.status.superseded = self.status.superseded or directive.superseded
        self.others_at = max(self.others_at, directive.newest_round)
        news = directive.changes and directive.changes[-1].number > (self.changes[-1].number if self.changes else 0)
        if news:
            self.changes = directive.changes
        if news or frozenset(directive.done) != self.done:
            self.done = frozenset(directive.done)
            newest = self.changes[-1] if self.changes else None
            away = frozenset(newest.away) - frozenset(newest.leaving) if newest else frozenset()
            self.transport.presume_gone((away | self.done) - {self.id})
        moved = {
            peer: address
            for peer, address in directive.addresses.items()
            if peer != self.id and self.addresses.get(peer) != address
        }
        if moved:
            self.addresses = {**self.addresses, **moved}
            self.transport.connect(self.addresses)

    def row(self, round: int) -> dict[int, float]:
        """The agent's row of the mixing matrix in `round`: weights by agent, self included.

        Rounds count from one, those of a topology from zero.
        """
        if self.is_final_merge(round):
            there = sorted(set(range(self.config.num_seats)) - self.away(round) | {self.id})
            return dict.fromkeys(there, 1.0 / len(there))
        return self.topology_in(round).weights(self.id, round - 1)

    def remember_base(self) -> None:
        """Take the model as it is now for the base of the next merge, where the method has one."""
        if (self.method.needs_base or self.method.norms) and not self.method.own_base:
            self.base = copy_of(self.model)

    def publish(self, kind: str, round: int) -> Payload:
        """Freeze a copy of the model and let readers fetch it from now on."""
        payload = encode(self.model.state_dict(), Header(kind=kind, round=round, agent=self.id))
        self.transport.publish(payload)
        return payload

    def close_round(self, round: int, kind: str = "snapshot") -> None:
        """Tell whoever waits for this agent's acknowledgements that it reads no more of that kind of `round`."""
        self.transport.publish(Payload(Header(closed(kind), round, self.id), ()))

    @property
    def limits(self) -> Limits:
        """Between what this agent's deadlines move."""
        exchange = self.config.exchange
        return Limits(exchange.timeout_s, exchange.min_timeout_s, exchange.deadline == "adaptive")

    def patience_s(self, what: What, peers: Iterable[int]) -> float:
        """The longest deadline of `peers`."""
        return max((deadline_s(self.past, what, peer, self.limits) for peer in peers), default=0.0)

    def fetch_from(self, peer: int, kind: str, round: int | None) -> Fetch:
        """The request for a peer's payload (None: its newest), into memory that is used again every round."""
        return Fetch(peer=peer, kind=kind, round=round, into=self.buffer_for(peer, kind))

    def newest_from(self, peer: int, during: int) -> Fetch:
        """The request of round `during` for a peer's newest snapshot, where that is not what is held already."""
        held = self.held.get(peer)
        return Fetch(peer, "snapshot", None, self.buffer_for(peer), held=held, during=during)

    def buffer_for(self, peer: int, kind: str = "snapshot") -> Buffer:
        """Memory for what comes from `peer`, used again every round; whole models of all kinds share it.

        Who takes it takes it away: what it held counts as held no more, and what was on its way into it ends.
        """
        key = (peer, kind if kind in self.schemas else "")
        if not key[1]:
            self.held.pop(peer, None)
            if self.ahead is not None:
                self.ahead.drop(peer)
        if key not in self.buffers:
            self.buffers[key] = Buffer(self.schemas.get(kind, self.schema))
        return self.buffers[key]

    def rounds_held(self) -> tuple[int, ...]:
        """Rounds that this agent can continue from; 0 is the untrained start."""
        return (0, *rounds_held(self.checkpoints))

    def after(self, round: int) -> Checkpoint:
        """The agent as it is now, with `round` done, as a value."""
        return Checkpoint(
            round=round,
            model=dict(self.model.state_dict()),
            optimizer=self.optimizer.state_dict(),
            randomness=capture(self.loader),
            basis_settled=self.basis_settled,
            base=None if self.merges(round) else self.base,  # after a merge it is the model itself
            usual=self.usual,
            algorithm=self.remembered,
        )

    def save(self, round: int) -> None:
        """Write the checkpoint of `round`; as many are kept as agents can be rounds apart, and one more.

        Raises:
            OSError: the disk refused; older checkpoints are there, and there is a point in going on.
            DimatError: it has refused for so long that in the next round the others would delete the last checkpoint
                which this agent still shares with them: a run that is continued would begin anew.
        """
        # Where models travel within a round, agents are exchanges apart; a round may be as short as one of them.
        apart = self.topology.diameter if self.algorithm else self.config.merge_schedule().lead(self.topology.diameter)
        keep = apart + 2
        if self.rounds_ahead is not None:
            keep = min(keep, self.rounds_ahead() + SPARE_CHECKPOINTS)
        try:
            save_checkpoint(self.checkpoints, self.after(round), keep=keep)
        except OSError as error:
            newest = self.rounds_held()[-1]
            if round - newest < keep - 1:
                raise
            raise DimatError(
                f"agent {self.id}: no checkpoint since round {newest} could be written, now in round {round}: {error}",
                hint="make room, then continue with the same command; it goes on from the newest round that all hold",
            ) from error

    def resume(self, round: int) -> None:
        """Become the agent that it was after `round`; 0 is the start of the run.

        Later checkpoints belong to a life that is over: left there, they would outlive those that are written next.
        """
        drop_checkpoints_after(self.checkpoints, round)
        if round == 0:
            restore(self.start, self.loader)
            return
        self.become(load_checkpoint(self.checkpoints, round))

    def become(self, checkpoint: Checkpoint) -> None:
        """Take over everything that `checkpoint` holds: weights, optimiser, base, random streams."""
        load_into(self.model, checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.basis_settled = checkpoint.basis_settled
        self.usual = checkpoint.usual
        self.remembered = checkpoint.algorithm
        self.remember_base()
        if self.base is not None and checkpoint.base is not None:
            self.base = checkpoint.base
        restore(checkpoint.randomness, self.loader)
