"""One agent of a simulation between two waits, on random streams of its own."""

from __future__ import annotations

from dataclasses import dataclass

from dimat.agent.randomness import Randomness, capture, restore
from dimat.agent.state import Agent
from dimat.agent.steps import Steps
from dimat.faults import FaultyTransport, Killed
from dimat.messages import Directive
from dimat.simulate.faults import Holdable, Stall
from dimat.simulate.together import Together
from dimat.transport.base import Wait
from dimat.transport.memory import MemoryTransport


@dataclass(slots=True)
class Running:
    """One agent between two waits."""

    agent: Agent
    transport: MemoryTransport | FaultyTransport
    randomness: Randomness
    steps: Steps[Directive] | Holdable | None = None
    wait: Wait | Stall | None = None
    """None: it has not begun."""
    since: int = 0
    """When it began to wait, in steps of the whole simulation."""
    done: bool = False
    error: str = ""
    """Why it ended, when not in order."""

    def can_go_on(self) -> bool:
        """Whether what it waits for is there."""
        return not self.done and not isinstance(self.wait, Stall) and not self.hosted and not self.missing()

    @property
    def hosted(self) -> bool:
        """Whether it waits for work that is done for many agents at once."""
        return isinstance(self.agent.host, Together) and self.agent.id in self.agent.host.pending

    def is_async(self) -> bool:
        """Whether nobody waits for it."""
        return self.agent.config.exchange.mode == "async"

    def missing(self) -> frozenset[int]:
        """The agents that it waits for; empty while a stall holds it."""
        if not isinstance(self.wait, Wait):
            return frozenset()
        return frozenset(self.wait.peers) - self.transport.settled(self.wait)

    def step(self, now: int) -> None:
        """Go on to the next wait, or to the end, on the agent's own random streams."""
        assert self.steps is not None
        restore(self.randomness, self.agent.loader)
        try:
            answer = self.transport.ready(self.wait) if isinstance(self.wait, Wait) else None
            # The first value sent into a generator has to be None.
            self.wait = self.steps.send(answer)  # type: ignore[arg-type]
            self.since = now
        except StopIteration:
            self.done = True
        except Killed:
            self.done, self.error = True, f"killed in round {self.agent.status.round}, as the fault plan says"
            self.transport.close()
        self.randomness = capture(self.agent.loader)


@dataclass(frozen=True, slots=True)
class Streams:
    """The random streams of waiting agents; implements `dimat.simulate.together.Streams`."""

    running: list[Running]

    def read(self, agent: int) -> Randomness:
        """As the agent left them."""
        return self.running[agent].randomness

    def replace(self, agent: int, streams: Randomness) -> None:
        """Let the agent go on with these."""
        self.running[agent].randomness = streams
