"""Prove a spec on the model: a random permutation of every group must leave the outputs as they are.

Fresh networks hide mistakes: batch norms of ones and zeros look the same in any order. So the check runs on a copy of
the weights in which every entry is nudged apart; a permutation that is right is right for all weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dimat.align.calls import evaluating, tensors_in
from dimat.align.groups import PermutationSpec
from dimat.align.units import Group, Permutations
from dimat.errors import AlignmentError

_DRAWS = 32
_STEP = 1_000_003  # far from the seeds that a caller would try next


def verify(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any],
    *,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> float:
    """The relative error ‖Δy‖₂ / ‖y‖₂ under a random permutation of all groups; see `PermutationSpec.verify`.

    The model itself is not touched: two forward passes run on other tensors in its place.
    """
    weights = _nudged(model, seed)
    perms = _moving(spec, seed)

    def outputs(state: dict[str, Tensor]) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):  # both passes draw the same noise
            torch.manual_seed(seed)
            # the call writes buffers that the model replaces into the mapping that it gets
            answer = functional_call(model, dict(state), example_inputs, dict(example_kwargs))
        return [tensor.detach().to(torch.float64) for tensor in tensors_in(answer) if tensor.is_floating_point()]

    def error(some: Permutations) -> float:
        spec.check_state(model.state_dict())
        return _relative_error(outputs(spec.apply_to_named(weights, some)), expected)

    with evaluating(model):
        expected = outputs(weights)
        found = error(perms)
        if found <= tolerance:
            return found
        alone = {name: error({name: perm}) for name, perm in perms.items()}
    guilty = [name for name, one in alone.items() if not one <= tolerance]
    names = ", ".join(repr(name) for name in guilty) or "several groups together, none of them alone"
    raise AlignmentError(
        f"the permutation groups change what the model computes: relative error {found:.3g}, where at most "
        f"{tolerance:.0e} is allowed, through {names}; these groups must not be used",
        hint="an operator's rule or a hand-written group is wrong; print(spec) lists the groups",
    )


def _moving(spec: PermutationSpec, seed: int) -> dict[str, Tensor]:
    """Random permutations that move the blocks of each group, and units of every part, where there is a choice.

    Two heads draw their old order every other time, which would prove nothing about heads.
    """
    perms = spec.random(seed)
    for again in range(1, _DRAWS):
        still = [group.name for group in spec.groups if not _moves(group, perms[group.name])]
        if not still:
            break
        drawn = spec.random(seed + again * _STEP)
        perms.update({name: drawn[name] for name in still})
    return perms


def _moves(group: Group, perm: Tensor) -> bool:
    """Whether a permutation moves everything that can: the blocks (or plain units), and units of every part."""
    blocks = group.order_of_blocks(perm)
    levels = [blocks[None]] if group.structure != "blocks" and len(blocks) > 1 else []
    levels += [group.order_within(perm, part) for part, size in enumerate(group.parts) if size > 1]
    return all(bool((order != torch.arange(order.shape[1])).any()) for order in levels)


def _nudged(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """The model's parameters and buffers, each shared tensor once, with its entries moved apart.

    Tensors without negative entries stay so: a running variance remains one.
    """
    generator = torch.Generator().manual_seed(seed)
    out: dict[str, Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        value = tensor.detach()
        if value.is_floating_point() and value.numel() > 1:
            noise = torch.rand(value.shape, generator=generator).to(value)
            scale = 0.1 * value.square().mean().sqrt()
            value = value + noise * (scale or 0.1) if value.min() >= 0 else value + (noise - 0.5) * 2 * scale
            if value.dim() == 1 and name.endswith("bias"):
                # Units that a ReLU silences on every sample would hide a wrong order: most are woken up.
                value = value.abs() + 0.5 * noise
        out[name] = value
    return out


def _relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """‖found − expected‖₂ / ‖expected‖₂ over all outputs; infinite when it is not a number."""
    size = math.sqrt(sum(float(y.square().sum()) for y in expected))
    off = math.sqrt(sum(float((x - y).square().sum()) for x, y in zip(found, expected, strict=True)))
    error = off / size if size > 0 else off
    return error if math.isfinite(error) else math.inf
