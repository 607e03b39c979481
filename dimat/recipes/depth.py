"""Where in its model a tensor stands, for parameters that change with depth: which slice, and how deep in it.

The first number between dots is the layer: `model.layers.3.mlp.up_proj.weight`. What stands before it names the stack,
so that encoder and decoder count for themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dimat.errors import ConfigError

_LAYER = re.compile(r"\.(\d+)\.")
_AFTER = re.compile(r"head|norm|ln_f|embed_out|pooler|classifier|score|final")
"""Names of what stands behind the layers, where it has no number; everything else is before them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of a tensor.

    Attributes:
        part: number of the slice; 0 where there is one.
        depth: 0 in the slice's first layer to 1 in its last, 1 in a slice of one layer; 0 outside of the layers.
    """

    part: int
    depth: float


def places_of(names: Iterable[str], ranges: Sequence[tuple[int, int]] = ()) -> dict[str, Place]:
    """The place of every tensor.

    Args:
        names: of the tensors.
        ranges: the layers of each slice, first and one behind the last; none for models that are not cut.

    Raises:
        ConfigError: the slices are not the whole model, each layer once and in order.

    >>> list(places_of(["embed.weight", "layers.0.weight", "layers.1.weight", "layers.2.weight"]).values())
    [Place(part=0, depth=0.0), Place(part=0, depth=0.0), Place(part=0, depth=0.5), Place(part=0, depth=1.0)]
    """
    found = {name: _LAYER.search(f".{name}") for name in names}
    stacks: dict[str, int] = {}
    for match in found.values():
        if match is not None:
            stack = match.string[: match.start()]
            stacks[stack] = max(stacks.get(stack, 0), int(match[1]) + 1)
    if ranges:
        _check_whole(ranges, stacks)
    places = {}
    for name, match in found.items():
        if match is None:
            places[name] = Place(len(ranges) - 1 if ranges and _AFTER.search(name) else 0, 0.0)
            continue
        layer = int(match[1])
        cuts = ranges or [(0, stacks[match.string[: match.start()]])]
        part = next(i for i, (start, stop) in enumerate(cuts) if start <= layer < stop)
        start, stop = cuts[part]
        places[name] = Place(part, (layer - start) / (stop - start - 1) if stop - start > 1 else 1.0)
    return places


def _check_whole(ranges: Sequence[tuple[int, int]], stacks: Mapping[str, int]) -> None:
    if len(stacks) != 1:
        told = ", ".join(repr(stack.removeprefix(".")) for stack in stacks) or "none"
        raise ConfigError(
            f"slices need models with one stack of layers; here are {told}", hint="name the models under `models`"
        )
    num_layers = next(iter(stacks.values()))
    at = 0
    for number, (start, stop) in enumerate(ranges):
        if start != at or stop <= start:
            raise ConfigError(
                f"slices[{number}] takes the layers {start} to {stop}, expected it to go on at layer {at}: stacks of "
                "repeated, left out or reordered layers are not supported",
                hint="dimat merges whole models; mergekit's passthrough builds others",
            )
        at = stop
    if at != num_layers:
        raise ConfigError(f"the slices end at layer {at}, the models have {num_layers}: only whole models are merged")
