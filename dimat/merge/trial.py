"""Small models to try a merge method on, and every way of folding them that users have.

    whole       a list at once, tensor by tensor             what `dimat.merge.fold` does
    sliced      the same in slices of a few entries          what `dimat merge` does with large tensors
    absorbed    model by model, all states kept between      what a ledger does
    joined      two kept states into one                     what a tree of merges does

A method that keeps its contract gives the same result by all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from dimat.merge.absorb import (
    Arrival,
    absorb_tensor,
    arrive,
    merged_integers,
    remove_tensor,
    squared_distance,
    survey_tensor,
)
from dimat.merge.api import Fold, State
from dimat.merge.engine import Folded, check_models, finish, folded, scalars_of
from dimat.merge.source import InMemory, Source
from dimat.merge.totals import Totals
from dimat.statedict import StateDict

SHAPES: Mapping[str, tuple[int, ...]] = {
    "matrix": (4, 3),
    "wide": (3, 7),
    "kernel": (2, 3, 2, 2),
    "vector": (5,),
    "scalar": (),
    "empty": (0, 2),
}


@dataclass(frozen=True, slots=True)
class Models:
    """A base, what became of it, and each one's statistics and weight."""

    base: StateDict
    models: tuple[StateDict, ...]
    stats: tuple[Mapping[str, StateDict], ...]
    weights: tuple[float, ...]


def small_models(
    kinds: Sequence[str] = (), num_models: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Models:
    """Random models with tensors of `SHAPES` and a counter, their differences to the base as large as the base.

    Args:
        kinds: of statistics; positive entries.
        num_models: how many.
        dtype: of the floating-point tensors.
        seed: of all random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def random() -> dict[str, torch.Tensor]:
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        return {name: tensor.to(dtype) for name, tensor in drawn.items()}

    counts = [{"counter": torch.tensor([i, 7 - i])} for i in range(num_models + 1)]
    base = {**random(), **counts[-1]}
    models = tuple({**random(), **counts[i]} for i in range(num_models))
    stats = tuple({kind: {name: x.abs() + 0.1 for name, x in random().items()} for kind in kinds} for _ in models)
    return Models(base, models, stats, tuple(1.0 + 0.5 * (i % 3) for i in range(num_models)))


@dataclass(frozen=True, slots=True)
class Held:
    """What is kept of the models absorbed so far: a state for each tensor."""

    states: Mapping[str, State]
    integers: Mapping[str, torch.Tensor]
    totals: Totals


@dataclass(frozen=True, slots=True)
class Trial:
    """Models that were looked over, ready to be folded by `method`."""

    method: Fold
    arrivals: tuple[Arrival, ...]
    base: Source | None

    def in_order(self, order: Sequence[int]) -> Trial:
        """The same models in another order."""
        return replace(self, arrivals=tuple(self.arrivals[i] for i in order))

    def whole(self) -> dict[str, torch.Tensor]:
        """All models at once."""
        return self.sliced(1 << 30)

    def sliced(self, slice_entries: int) -> dict[str, torch.Tensor]:
        """All models at once, in slices where the method is elementwise."""
        parts = list(folded(self.method, self.arrivals, self.base, slice_entries=slice_entries))
        scalars = scalars_of(self.method, self.arrivals, parts)
        found: dict[str, list[torch.Tensor]] = {}
        for part in parts:
            found.setdefault(part.name, []).append(finish(self.method, part, scalars).reshape(-1))
        tensors = self.arrivals[0].source.tensors
        return {name: torch.cat(pieces).reshape(tensors[name].shape) for name, pieces in found.items()}

    def nothing(self) -> Held:
        """No model absorbed yet."""
        states = {name: self._fold(name).init(self._anchor(name)) for name in self._floats()}
        return Held(states, {}, Totals())

    def absorb(self, held: Held, i: int) -> Held:
        """With model `i` taken in."""
        arrival, states, integers, squared = self.arrivals[i], {}, dict(held.integers), 0.0
        for name, info in arrival.source.tensors.items():
            x, anchor = arrival.source.read(name), self._anchor(name)
            if not info.dtype.is_floating_point:
                integers[name] = merged_integers([integers.get(name, x), x], anchor)
                continue
            found = survey_tensor(arrival, self.base, name, x)
            states[name] = absorb_tensor(arrival, held.states[name], name, x, anchor, 0, found)
            squared += squared_distance(x, anchor) if self.method.norms and anchor is not None else 0.0
        return Held(states, integers, held.totals.with_model(arrival.weight, squared**0.5))

    def absorbed(self, order: Sequence[int] | None = None) -> Held:
        """All models, or those of `order`, one after another."""
        held = self.nothing()
        for i in range(len(self.arrivals)) if order is None else order:
            held = self.absorb(held, i)
        return held

    def remove(self, held: Held, i: int) -> Held:
        """With model `i` taken out again; its counters stay, as they would in a ledger."""
        arrival, states, squared = self.arrivals[i], {}, 0.0
        for name in self._floats():
            x, anchor = arrival.source.read(name), self._anchor(name)
            found = survey_tensor(arrival, self.base, name, x)
            states[name] = remove_tensor(arrival, held.states[name], name, x, anchor, found)
            squared += squared_distance(x, anchor) if self.method.norms and anchor is not None else 0.0
        return Held(states, held.integers, held.totals.without_model(arrival.weight, squared**0.5))

    def join(self, a: Held, b: Held) -> Held:
        """The models of both."""
        states = {name: self._fold(name).combine(a.states[name], b.states[name]) for name in a.states}
        integers = dict(b.integers)
        for name, x in a.integers.items():
            integers[name] = merged_integers([x, integers.get(name, x)], self._anchor(name))
        return Held(states, integers, a.totals.combine(b.totals))

    def finish(self, held: Held) -> dict[str, torch.Tensor]:
        """The merged model."""
        measures: dict[str, float] = {}
        for state in held.states.values():
            for key, value in (self.method.measure(state) if self.method.measure else {}).items():
                measures[key] = measures.get(key, 0.0) + value
        scalars = held.totals.scalars(measures)
        merged = {}
        for name, info in self.arrivals[0].source.tensors.items():
            kept = held.states.get(name), self._anchor(name), held.integers.get(name)
            merged[name] = finish(self.method, Folded(name, info, 0, info.num_entries, *kept), scalars)
        return merged

    def _floats(self) -> list[str]:
        return [name for name, info in self.arrivals[0].source.tensors.items() if info.dtype.is_floating_point]

    def _fold(self, name: str) -> Fold:
        return self.method.of(name, self.arrivals[0].source.tensors[name].shape)

    def _anchor(self, name: str) -> torch.Tensor | None:
        return None if self.base is None else self.base.read(name)


def try_out(method: Fold, given: Models, digests: Sequence[str] | None = None) -> Trial:
    """Look the models over, as every merge does before it reads them; a base goes to methods that need one.

    Args:
        method: the fold.
        given: the models.
        digests: what the models shall be known by; by default what they hold.
    """
    sources = [InMemory(f"model {i}", model) for i, model in enumerate(given.models)]
    base = InMemory("the base", given.base) if method.needs_base or method.norms else None
    stats = [
        {kind: InMemory(f"{kind} of model {i}", given.stats[i][kind]) for kind in method.stats}
        for i in range(len(sources))
    ]
    check_models(method, sources, given.weights, base, stats)
    arrivals = [
        arrive(method, source, base, weight, kinds, None if digests is None else digests[i])
        for i, (source, weight, kinds) in enumerate(zip(sources, given.weights, stats, strict=True))
    ]
    return Trial(method, tuple(arrivals), base)
