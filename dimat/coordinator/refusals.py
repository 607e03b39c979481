"""Who was refused in a round, and what a refusal by one end alone does to the mixing matrix: a sentence for events.

An agent that refuses a neighbour gives its weight to itself. Where the neighbour goes on reading that agent, rows of
the matrix still sum to one and two columns do not: the merge moves the mean of all models, towards the reader, by the
edge's weight times the difference over n. Payloads that are broken are refused as well; these edges both ends drop.
"""

from __future__ import annotations

from collections.abc import Sequence

from dimat.coordinator.options import names
from dimat.messages import Report

MAX_REASON = 200
"""Characters of a reason in a sentence: a peer has a say in its words."""


def one_sided(reports: Sequence[Report]) -> dict[tuple[int, int], float]:
    """Edges that one end refused while the other kept them: (who refused, who was refused) and the weight it kept.

    >>> one_sided([Report(0, "s", 1, {}, missing={1: "refused: far"}), Report(1, "s", 1, {}, weights={0: 0.3, 1: 0.7})])
    {(0, 1): 0.3}
    """
    rows = {report.agent: report.weights for report in reports}
    return {
        (report.agent, peer): rows[peer][report.agent]
        for report in sorted(reports, key=lambda report: report.agent)
        for peer in sorted(report.refused)
        if report.agent in rows.get(peer, {})
    }


def told(round: int, reports: Sequence[Report]) -> str:
    """One sentence on the refusals of a round; empty when there were none.

    >>> told(3, [Report(0, "s", 3, {}, missing={1: "refused: far"}), Report(1, "s", 3, {}, weights={0: 0.3})])
    'round 3: agent 1 was refused by agent 0 (far); 1 edge was read one way, by a weight of 0.3'
    """
    by: dict[int, list[int]] = {}
    why: dict[int, str] = {}
    for report in sorted(reports, key=lambda report: report.agent):
        for peer, reason in sorted(report.refused.items()):
            by.setdefault(peer, []).append(report.agent)
            why.setdefault(peer, reason[:MAX_REASON])
    if not by:
        return ""
    text = "; ".join(
        f"agent {peer} was refused by {names(readers)} ({why[peer]})" for peer, readers in sorted(by.items())
    )
    biases = one_sided(reports)
    if biases:
        edges = "1 edge was" if len(biases) == 1 else f"{len(biases)} edges were"
        text += f"; {edges} read one way, by a weight of {sum(biases.values()):.3g}"
    return f"round {round}: {text}"
