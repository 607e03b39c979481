"""What an author of a topology is told before others use it: `dimat check topology PATH`."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from dimat.errors import DimatError, TopologyError
from dimat.topology.source import Source, agree_size, find_source, rounds_of

_ROUNDS = 4


def check_topology(reference: str, num_agents: Sequence[int] = (2, 4, 5, 8)) -> list[str]:
    """Every way in which a topology breaks its contract, each a sentence with the cure; empty when all is well.

    A size may be refused by raising TopologyError, as long as some size is accepted.

    Args:
        reference: as `dimat.topology.build` takes it.
        num_agents: the sizes to try; a file that fixes its size is tried with that one.

    >>> check_topology("ring")
    []
    """
    try:
        source = find_source(reference)
    except DimatError as error:
        return [_sentence(error)]
    sizes = [source.size] if source.size is not None else list(num_agents)
    problems: list[str] = []
    refusals: list[str] = []
    for n in sizes:
        try:
            agree_size(source, n)
            source.make(n, 0)
        except TopologyError as error:
            refusals.append(_sentence(error))
            continue
        except Exception as error:
            problems.append(
                f"for {n} agents it raises {type(error).__name__}: {error}. A size that cannot be built is refused by "
                "raising dimat.errors.TopologyError with the sizes that can."
            )
            continue
        problems += _contract(source, n)
    if len(refusals) == len(sizes):
        return [f"no size of {', '.join(map(str, sizes))} agents is accepted: {refusals[0]}"]
    return list(dict.fromkeys(problems))


def _contract(source: Source, n: int) -> list[str]:
    problems: list[str] = []
    try:
        period = source.period(n)
        at, again = rounds_of(source, n), rounds_of(source, n)
        for round in range(max(_ROUNDS, period)):
            at(round)
    except DimatError as error:
        cure = ""
        if "connected" in str(error) and source.static is None and source.period(n) == 1:
            cure = " If only several rounds together are connected, declare how many: @dimat.topology.periodic(rounds)."
        return [f"for {n} agents: {_sentence(error)}{cure}"]
    for round in reversed(range(max(_ROUNDS, period))):
        # Backwards and from a fresh memory: a graph depends on round and seed alone, not on what was asked before.
        try:
            same = nx.utils.graphs_equal(at(round), again(round))
        except DimatError:
            same = False
        if not same:
            problems.append(
                f"for {n} agents two calls with the same round ({round}) and seed give different graphs. Draw from "
                "random.Random(seed) or numpy.random.default_rng(seed), never from a global generator or a counter."
            )
            break
    return problems


def _sentence(error: DimatError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)
