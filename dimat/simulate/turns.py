"""A simulation without a clock: who is stepped next when everybody takes turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dimat.simulate.faults import Stall
from dimat.simulate.running import Running
from dimat.transport.base import Wait


def take_turns(
    running: list[Running],
    pace: Mapping[int, int],
    *,
    work: Callable[[], None],
    on_end: Callable[[Running], None],
    between: Callable[[], None],
) -> None:
    """Step the agents until all have ended.

    Args:
        running: the agents, before their first step.
        pace: how many turns of the others a turn of an agent takes, 1 where nothing is said.
        work: does what agents have handed in to be done together, when it is nobody else's turn.
        on_end: told of an agent that ends before its time.
        between: called before the first turn and after each.
    """
    num_steps, num_turns = 0, 0
    between()
    while any(not one.done for one in running):
        num_turns += 1
        chosen = in_turn(runnable(running), num_turns, pace)
        if not chosen and any(one.hosted for one in running):
            work()
            chosen = in_turn(runnable(running), num_turns, pace)
        for one in chosen:
            num_steps += 1
            one.step(num_steps)
            if one.error:
                on_end(one)
        between()


def runnable(running: list[Running]) -> list[Running]:
    """The agents to step now, by id: those that have what they wait for; else the one that has waited longest."""
    ready = [one for one in running if one.can_go_on()]
    if ready:
        # Where nobody waits there are no deadlines to count: a stall then is as many turns of the others.
        over = [one for one in running if isinstance(one.wait, Stall) and one.is_async() and one.wait.turn_is_over()]
        return sorted([*ready, *over], key=lambda one: one.agent.id)
    left = [one for one in running if not one.done]
    if any(one.hosted for one in left):
        return []
    waiting = [one for one in left if isinstance(one.wait, Wait)]
    for one in left:
        if isinstance(one.wait, Stall):
            missed = [other.wait.round for other in waiting if one.agent.id in other.missing()]  # type: ignore[union-attr]
            if one.wait.is_over(missed):
                return [one]
    return [min(waiting, key=lambda one: one.since)]


def in_turn(ready: list[Running], turn: int, pace: Mapping[int, int]) -> list[Running]:
    """Those of `ready` whose turn it is: agent a's is every `pace[a]`-th."""
    return [one for one in ready if turn % pace.get(one.agent.id, 1) == 0]
