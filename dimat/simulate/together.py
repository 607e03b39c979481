"""Agents that are about to train, or to evaluate, do it together: one stack of models instead of one after the other.

Whoever comes to such a phase hands in a request and waits; when the simulation has nobody else to step it has all
requests done at once. Every agent draws its batches from its own loader and its own random streams, in the order of
the plain loop, so the two differ by rounding alone.

That is not taken on trust. At the start of a run the first step of every agent is computed both ways: loss, change of
every tensor, buffers. Where they differ, or the work cannot be stacked, `auto` goes on one by one and says why, and
`on` refuses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch.nn.modules.conv import _ConvNd

from dimat.agent.ahead import A_DAY_S, Ahead, Transfers
from dimat.agent.host import Answers
from dimat.agent.randomness import Randomness, capture, restore
from dimat.agent.ranks import train_agent
from dimat.agent.state import Agent
from dimat.agent.steps import Steps
from dimat.agent.train import learning_rate
from dimat.calibrate.probe import evaluating
from dimat.errors import TransportError, UsageError
from dimat.simulate.check import CannotStack, check_first_step, check_verdict, stackable
from dimat.simulate.epochs import Epoch, Trainer, mean_losses, scores
from dimat.simulate.stack import check_optimizer, stack, unstack
from dimat.tasks.base import speaks_for
from dimat.tasks.loader import TensorLoader
from dimat.transport.base import Fetch, Wait

CHUNK_BYTES = 8 << 20
"""Of parameters in one stack, so that they stay in the processor's cache through the epochs; one model at least."""


@dataclass(slots=True)
class Request:
    """One agent's wish to train round `number`, or to be evaluated."""

    what: Literal["train", "evaluate"]
    agent: Agent
    number: int
    result: Any = None
    seconds: float = 0.0
    """The agent's share of the time that it took."""
    done: bool = False


class Clock(Protocol):
    """A virtual clock."""

    @property
    def now_s(self) -> float:
        """Seconds since the run began."""

    def training_s(self, agent: Agent, number: int) -> float:
        """How long the agent trains in round `number`."""

    def gradient_s(self, agent: Agent, num_samples: int) -> float:
        """How long one gradient on so many samples lasts."""

    def transfer(
        self, agent: Agent, answers: Answers, num_bytes: Mapping[int, int], timeout_s: float
    ) -> tuple[Answers, float]:
        """What comes in time of `answers`, `num_bytes` each, and after how many seconds all has or is given up."""

    def begin(self, agent: Agent, answers: Answers, num_bytes: Mapping[int, int]) -> Ahead:
        """`answers` begin to travel, and the agent goes on."""


class Streams(Protocol):
    """The random streams of agents that wait."""

    def read(self, agent: int) -> Randomness:
        """As the agent left them."""

    def replace(self, agent: int, streams: Randomness) -> None:
        """Let the agent go on with these."""


@dataclass(slots=True)
class Together:
    """Implements `dimat.agent.host.Host`.

    Args:
        streams: the random streams of agents that wait.
        must: refuse what cannot be stacked, instead of going on one by one.
        tell: told why the agents go on one by one.
        clock: knows how long training and transfers last; without one they last as long as they do.
    """

    streams: Streams
    must: bool
    tell: Callable[[str], None]
    clock: Clock | None = None
    pending: dict[int, Request] = field(default_factory=dict)
    """What agents wait for, by agent."""
    one_by_one: str = ""
    """Why the agents train one by one; empty while they do it together."""
    _checked: set[int] = field(default_factory=set)
    """The agents whose first step was compared with the plain loop's."""
    _judged: bool = False
    _away_s: dict[int, float] = field(default_factory=dict)
    """Seconds in which an agent waited for others to come, or for their share of the work."""

    def now(self, agent: int) -> float:
        """An agent's own clock: what is done together takes each agent its share of the time."""
        if self.clock is not None:
            return self.clock.now_s
        return time.monotonic() - self._away_s.get(agent, 0.0)

    def train(self, agent: Agent, number: int) -> Steps[float]:
        """As `dimat.agent.host.train`, once all have come who train now."""
        lasts_s = self.clock.training_s(agent, number) if self.clock is not None else 0.0
        request = yield from self._ask(Request("train", agent, number), lasts_s)
        return float(request.result) if request.done else train_agent(agent, number)

    def gradient(self, agent: Agent, num_samples: int) -> Steps[None]:
        """Let a gradient within a round last as long as the clock says."""
        if self.clock is not None:
            yield Wait("hosted", (), "train", agent.status.round, self.clock.gradient_s(agent, num_samples))

    def evaluate(self, agent: Agent) -> Steps[Mapping[str, float]]:
        """As `dimat.agent.host.evaluate`, once all have come who are evaluated now."""
        if not self.one_by_one and has_scores(agent.task):
            request = yield from self._ask(Request("evaluate", agent, agent.status.round), 0.0)
            if request.done:
                found: Mapping[str, float] = request.result
                return found
        numbers: Mapping[str, float] = agent.task.evaluate(agent.model)
        return numbers

    def fetch(self, agent: Agent, fetches: tuple[Fetch, ...], timeout_s: float) -> Steps[Answers]:
        """What neighbours hold, at once or when the clock says so."""
        answers = agent.transport.gather(fetches, timeout_s)
        if self.clock is None:
            return answers
        answers, lasts_s = self.clock.transfer(agent, answers, travelling(fetches, answers), timeout_s)
        yield Wait("hosted", (), "fetch", agent.status.round, lasts_s)
        return answers

    def begin(self, agent: Agent, fetches: tuple[Fetch, ...]) -> Ahead:
        """What neighbours hold now, there at once or when the clock says so."""
        if self.clock is None:
            return Transfers(fetches, agent.status.now).start(agent.transport)
        answers = agent.transport.gather(fetches, timeout_s=A_DAY_S)
        return self.clock.begin(agent, answers, travelling(fetches, answers))

    def _ask(self, request: Request, lasts_s: float) -> Steps[Request]:
        """Hand in a request, unless all is done one by one, and wait until it is done and its time is over."""
        if self.one_by_one and not lasts_s:
            return request
        begun = time.monotonic()
        if not self.one_by_one:
            self.pending[request.agent.id] = request
        yield Wait("hosted", (), request.what, request.number, lasts_s)
        away_s = time.monotonic() - begun - request.seconds
        self._away_s[request.agent.id] = self._away_s.get(request.agent.id, 0.0) + away_s
        return request

    def work(self) -> None:
        """Do all that was asked for; requests that are not `done` then are for the agents themselves.

        Raises:
            UsageError: it cannot be done together, and must be.
        """
        asked = [request for _, request in sorted(self.pending.items())]
        self.pending.clear()
        kinds: tuple[tuple[str, Callable[[Sequence[Request]], None]], ...] = (
            ("train", self._train),
            ("evaluate", self._evaluate),
        )
        for what, do in kinds:
            wanted = [request for request in asked if request.what == what]
            if not wanted or self.one_by_one:
                continue
            before = {request.agent.id: self.streams.read(request.agent.id) for request in wanted}
            try:
                for chunk in chunks(wanted):
                    begun = time.monotonic()
                    do(chunk)
                    for request in chunk:
                        request.seconds, request.done = (time.monotonic() - begun) / len(chunk), True
            except CannotStack as why:
                for request in wanted:
                    if not request.done:
                        restore(before[request.agent.id], request.agent.loader)
                        self.streams.replace(request.agent.id, before[request.agent.id])
                self.give_up(str(why))

    def give_up(self, why: str) -> None:
        """Train one by one from now on.

        Raises:
            UsageError: which is not wanted.
        """
        if self.must:
            raise UsageError(
                f"simulation.vectorise is on, and the agents cannot be trained as one: {why}",
                hint="take auto, which then trains one after the other, or off",
            )
        self.one_by_one = why
        self.tell(f"the agents train one after the other: {why}")

    def _train(self, requests: Sequence[Request]) -> None:
        if why := why_not(requests[0].agent, must=self.must):
            raise CannotStack(why)
        new = [request for request in requests if request.agent.id not in self._checked]
        if new:
            rates = [rate_of(request, 0) for request in new]
            check_first_step([request.agent for request in new], rates, self.streams.read)
            self._checked.update(request.agent.id for request in new)
        num_epochs = requests[0].agent.config.train.epochs
        drawn = {request.agent.id: self._draw(request.agent, num_epochs) for request in requests}
        ordered = sorted(requests, key=lambda request: (drawn[request.agent.id][0].order(), request.agent.id))
        if any(
            one.order()[0] != drawn[request.agent.id][0].order()[0]
            for request in ordered
            for one in drawn[request.agent.id]
        ):
            raise CannotStack("a loader's number of batches changes from epoch to epoch")
        agents = [request.agent for request in ordered]
        models, optimizers = [agent.model for agent in agents], [agent.optimizer for agent in agents]
        stacked = stack(models, optimizers)
        trainer = Trainer(models[0], optimizers[0], agents[0].task)
        losses: list[torch.Tensor] = []
        for epoch in range(num_epochs):
            rates = [rate_of(request, epoch) for request in ordered]
            with stackable():  # a later batch may be of another form than the first one
                losses = list(trainer.epoch(stacked, [drawn[agent.id][epoch] for agent in agents], torch.tensor(rates)))
        unstack(stacked, models, optimizers)
        for request, rate, loss in zip(ordered, rates, mean_losses(losses, len(ordered)), strict=True):
            for group in request.agent.optimizer.param_groups:
                group["lr"] = rate
            request.agent.model.train()
            request.agent.optimizer.zero_grad(set_to_none=True)  # what the plain loop would leave is not needed
            request.result = loss

    def _draw(self, agent: Agent, num_epochs: int) -> list[Epoch]:
        """What the agent's loader gives in its next epochs, on the agent's own random streams."""
        if type(agent.loader) is TensorLoader:  # draws from its own generator alone
            drawn = [Epoch.drawn(agent.loader) for _ in range(num_epochs)]
            state = agent.loader.generator.get_state()
            self.streams.replace(agent.id, replace(self.streams.read(agent.id), loader_stream=state))
            return drawn
        restore(self.streams.read(agent.id), agent.loader)
        drawn = [Epoch.drawn(agent.loader) for _ in range(num_epochs)]
        self.streams.replace(agent.id, capture(agent.loader))
        return drawn

    def _evaluate(self, requests: Sequence[Request]) -> None:
        agents = [request.agent for request in requests]
        model, task = agents[0].model, agents[0].task
        if why := why_not(agents[0], must=self.must):
            raise CannotStack(why)
        with stackable(), evaluating(model):
            found = scores(model, task, stack([agent.model for agent in agents]))
        for request, of in zip(requests, found, strict=True):
            request.result = task.verdict(of)
        if not self._judged:
            check_verdict(agents[0], requests[0].result)
            self._judged = True


def travelling(fetches: tuple[Fetch, ...], answers: Answers) -> dict[int, int]:
    """The bytes of what has been found to send, by whom it is from."""
    return {
        one.peer: one.num_bytes(answers[one.peer])
        for one in fetches
        if not isinstance(answers[one.peer], TransportError)
    }


def has_scores(task: Any) -> bool:
    """Whether the task tells what an evaluation is made of."""
    return all(speaks_for(task, name, "evaluate") for name in ("test_batches", "score", "verdict"))


def why_not(agent: Agent, *, must: bool) -> str:
    """Why the agents' models are not stacked; empty when they are."""
    try:
        check_optimizer(agent.optimizer)
    except UsageError as error:
        return str(error)
    if not must and any(isinstance(module, _ConvNd) for module in agent.model.modules()):
        return "stacked convolutions are no faster than one after the other on a processor without a GPU"
    return ""


def rate_of(request: Request, epoch: int) -> float:
    """The learning rate of local epoch `epoch` (from 0) of the round that is asked for."""
    config = request.agent.config
    return learning_rate(
        config.train, (request.number - 1) * config.train.epochs + epoch, config.rounds * config.train.epochs
    )


def chunks(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """As many at a time as `CHUNK_BYTES` hold."""
    num_bytes = sum(parameter.nbytes for parameter in requests[0].agent.model.parameters())
    most = max(1, CHUNK_BYTES // max(1, num_bytes))
    for start in range(0, len(requests), most):
        yield requests[start : start + most]
