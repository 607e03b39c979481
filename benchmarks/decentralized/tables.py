"""The tables of results.md, each from the numbers of one suite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from benchmarks.decentralized import measures
from benchmarks.decentralized.cells import Setting
from benchmarks.decentralized.measures import Runs, Spread
from benchmarks.decentralized.methods import METHODS, RIVALS

FIRST_ROUNDS = 5
"""How far DIMAT's first gain is followed."""

OVERHEAD_MODEL = "resnet20"
"""The model for which the limit on the overhead is claimed."""

Found = Mapping[Setting, Mapping[str, Runs]]


def accuracy(found: Found) -> list[str]:
    """Mean accuracy of the agents after the merge by setting and method, the best of each column in bold."""
    lines: list[str] = []
    for heading, settings in _families(found).items():
        rounds = measures.shown_rounds(settings[0])
        lines += ["", f"**{heading}**", ""]
        lines += _header(
            ["partition", "graph", "method", *(f"round {number}" for number in rounds), "least", "averaged"]
        )
        for setting in settings:
            methods = _in_order(found[setting])
            at = {name: [measures.at_round(found[setting][name], number) for number in rounds] for name in methods}
            best = [max(at[name][place].mean for name in methods) for place in range(len(rounds))]
            for name in methods:
                runs = found[setting][name]
                shown = [_marked(each, best[place]) for place, each in enumerate(at[name])]
                least = measures.at_round(runs, setting.rounds, "accuracy_min").mean
                averaged = measures.at_round(runs, setting.rounds, "accuracy_averaged").mean
                lines.append(_row([setting.partition, setting.graph, name, *shown, _share(least), _share(averaged)]))
    return lines


def leads(found: Found) -> list[str]:
    """The default minus the best of its rivals by setting, with a check a line, and how many hold."""
    rounds = sorted({number for setting in found for number in measures.shown_rounds(setting)})
    lines, verdicts = _header(["setting", *(f"round {number}" for number in rounds), "seeds", "check"]), []
    best: list[tuple[float, str, int]] = []
    for setting, methods in found.items():
        by_round = {number: measures.lead(methods, number) for number in measures.shown_rounds(setting)}
        if any(math.isnan(value) for value in by_round.values()):
            continue
        verdicts.append(measures.holds(by_round.values()))
        best += [(value, setting.title, number) for number, value in by_round.items()]
        seeds = min(len(methods[name]) for name in ("dimat", *RIVALS))
        shown = [_signed(by_round[number]) if number in by_round else "" for number in rounds]
        lines.append(_row([setting.title, *shown, str(seeds), "holds" if verdicts[-1] else "**FAILS**"]))
    if not verdicts:
        return []
    ahead, where, number = max(best)
    clause = f"at least -{measures.TOLERANCE} in every round shown"
    return [*lines, "", f"Check: {clause}: it holds in {sum(verdicts)} of {len(verdicts)} settings. "
            f"The largest lead is {_signed(ahead)}, after round {number} of {where}."]  # fmt: skip


def claims(found: Found) -> list[str]:
    """DIMAT minus weight averaging and CDSGD in the first rounds, where the published method was run."""
    rounds = range(1, 1 + max((min(setting.rounds, FIRST_ROUNDS) for setting in found), default=0))
    lines = []
    for setting, methods in found.items():
        if "dimat_shared" not in methods:
            continue
        for one, other in product(("dimat_shared", "dimat"), ("wa", "dsgd")):
            by_round = [measures.difference(methods, one, other, number) for number in rounds]
            if not all(math.isnan(value) for value in by_round):
                shown = ["" if math.isnan(value) else _signed(value) for value in by_round]
                lines.append(_row([setting.title, one, other, *shown]))
    return [*_header(["setting", "method", "minus", *(f"round {n}" for n in rounds)]), *lines] if lines else []


def budgets(found: Found, spent: str) -> list[str]:
    """Gradient methods at the bytes or seconds that dimat's default had spent, and from where on they are ahead."""
    rounds = measures.SHOWN_ROUNDS
    head = ["setting", "method", *(f"dimat's round {number}" for number in rounds), "spent in all", "ahead from"]
    lines = []
    for setting, methods in found.items():
        rivals = [name for name in methods if METHODS[name].gradient]
        if "dimat" not in methods or not rivals:
            continue
        seeds = set.intersection(*(set(methods[name]) for name in ("dimat", *rivals)))
        curves = {n: measures.curve({s: methods[n][s] for s in sorted(seeds)}, spent) for n in ("dimat", *rivals)}
        points = {number: curves["dimat"][number - 1] for number in rounds if number <= setting.rounds}
        for name, curve in curves.items():
            at = [_share(measures.within(curve, points[number][0])) if number in points else "" for number in rounds]
            ahead = "" if name == "dimat" else _ahead(measures.crossover(curves["dimat"], curve), points[1][0], spent)
            lines.append(_row([setting.title, name, *at, _amount(curve[-1][0], spent), ahead]))
    return [*_header(head), *lines] if lines else []


def costs(found: Found) -> list[str]:
    """Where the seconds of the default's rounds go after the third, and what merging costs over plain averaging."""
    lines, deep = [], []
    compared = ("dimat", *RIVALS)
    for setting, methods in found.items():
        costs = {name: measures.cost(methods[name]) for name in compared if name in methods}
        plain, mine = costs.get("wa"), costs.get("dimat")
        if plain is None or mine is None:
            continue
        shares = [f"{share:.1%}" for share in (mine.align, mine.fold, mine.calibrate, mine.merging)]
        over = [costs.get(name) for name in compared if name != "wa"]
        more = ["–" if each is None else f"{measures.overhead(each, plain):+.1%}" for each in over]
        lines.append(_row([setting.title, f"{plain.seconds:.3g} s", f"{plain.merging:.1%}", *shares, *more]))
        if setting.model == OVERHEAD_MODEL:
            deep.append(measures.overhead(mine, plain))
    head = ["setting", "wa's round", "wa: merge", "dimat: align", "fold", "calibrate", "whole merge"]
    head += [f"{name} over wa" for name in compared if name != "wa"]
    if deep:
        word = "holds" if max(deep) <= measures.OVERHEAD_LIMIT else "**FAILS**"
        limit = f"at most {measures.OVERHEAD_LIMIT:.0%} over wa on {OVERHEAD_MODEL}"
        lines += ["", f"Check: {limit}, the highest is {max(deep):+.1%}: {word}."]
    return [*_header(head), *lines] if lines else []


def _families(found: Found) -> dict[str, list[Setting]]:
    """Settings that share a table: they differ in partition and graph only."""
    families: dict[str, list[Setting]] = {}
    for setting in found:
        start = {"apart": f"pre-trained apart for {setting.pretrain} epochs", "same": "the same initialisation"}
        words = start.get(setting.start, "different initialisations")
        heading = (
            f"{setting.dataset}, {setting.model}, {setting.agents} agents, {words}, {setting.epochs} epochs a round"
        )
        families.setdefault(heading, []).append(setting)
    return families


def _in_order(methods: Mapping[str, Runs]) -> list[str]:
    return [name for name in METHODS if name in methods]


def _marked(value: Spread, best: float) -> str:
    text = f"{value.mean:.3f}" + ("" if math.isnan(value.std) else f" ± {value.std:.3f}")
    return f"**{text}**" if round(value.mean, 3) >= round(best, 3) else text


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _amount(value: float, spent: str) -> str:
    return f"{value / 1e6:.3g} MB" if spent == "bytes" else f"{value:.3g} s"


def _ahead(crossover: float | None, first: float, spent: str) -> str:
    if crossover is None:
        return "never"
    return "the start" if crossover <= first * (1 + 1e-9) else _amount(crossover, spent)


def _header(cells: Sequence[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
