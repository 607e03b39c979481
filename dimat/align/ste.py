"""Straight-through matching: permutations chosen by the loss between the nets, with weight matching as projection.

Git Re-Basin (Ainsworth, Hayase, Srinivasa 2022, arXiv 2209.04836, section 3.3) lets weights θ~ that start at A wander:

    π   = argmax_π ⟨θ~, π(B)⟩                      the projection, by weight matching, from the last step's π onwards
    L   = loss at ½ (A + π(B))                      what the midpoint costs on a batch
    θ~ ← θ~ − lr · ∂L/∂θ~  with ∂π(B)/∂θ~ := 1      straight through: as if the projection were θ~ itself

It needs labelled data and a step of training for each step, so it is for studies rather than for rounds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from dimat.align.calls import tensors_in
from dimat.align.grams import Grams
from dimat.align.groups import PermutationSpec
from dimat.align.matching import GroupMatch, Matching
from dimat.align.weights import descend, match_weights
from dimat.errors import AlignmentError
from dimat.seeds import derive_seed

Loss = Callable[[nn.Module, Any], Tensor]


def straight_through(
    spec: PermutationSpec,
    reference: nn.Module,
    other: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    epochs: int = 5,
    lr: float = 1e-2,
    momentum: float = 0.9,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The permutations that bring `other` into the basis of `reference`; see `match_straight_through`.

    >>> from dimat.align import permutation_spec
    >>> _ = torch.manual_seed(0)
    >>> one, two = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    >>> spec, x = permutation_spec(one, torch.zeros(2, 4)), torch.randn(64, 4)
    >>> hidden = spec.random(seed=1)
    >>> _ = two.load_state_dict(spec.apply(one.state_dict(), hidden))
    >>> batches = [(x, one(x).argmax(1))]
    >>> loss = lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1])
    >>> spec.moved(spec.compose(hidden, straight_through(spec, one, two, batches, loss)))
    0.0
    """
    return match_straight_through(
        spec, reference, other, batches, loss, epochs=epochs, lr=lr, momentum=momentum, seed=seed
    ).perms


def match_straight_through(
    spec: PermutationSpec,
    reference: nn.Module,
    other: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    epochs: int = 5,
    lr: float = 1e-2,
    momentum: float = 0.9,
    seed: int = 0,
) -> Matching:
    """Search for the permutations whose midpoint ½ (A + π(B)) has the lowest loss.

    Batch norms normalise by the batch (the midpoint's running statistics do not exist yet), dropout is off.

    Args:
        spec: the groups of both models.
        reference: the model A whose basis is kept; not changed.
        other: the model B to permute; not changed.
        batches: what `loss` takes. An iterable that can be gone through again (a loader) is, once an epoch to learn and
            once to judge; a generator is kept as a list.
        loss: loss(net, batch), the mean loss of a batch, differentiable. The net is called, its weights are not its
            `parameters()`.
        epochs: passes over the batches.
        lr: step size of SGD on θ~.
        momentum: of the same.
        seed: of the order in which weight matching visits the groups.

    Returns:
        A `Matching` with the best permutations seen: those of weight matching, where it starts, or those at the end of
        an epoch, judged by the mean loss over all batches. So it is no worse than weight matching on these batches.
        The objective is minus that loss, `objective_before` without any permutation; similarities are those of weights.

    Raises:
        SchemaError: a model is not of the spec's architecture; the message names the first tensor that differs.
        AlignmentError: there are no batches, or a weight or the loss is not finite.
    """
    kept = list(batches) if isinstance(batches, Iterator) else batches
    midpoint = _Midpoint(spec, reference, other)
    start = match_weights(spec, midpoint.state, midpoint.other, seed=seed)
    perms, step = start.perms, 0
    seen = [(midpoint.judge(perms, kept, loss), perms)]
    optimizer = torch.optim.SGD(midpoint.wandering.values(), lr=lr, momentum=momentum)
    for _ in range(epochs):
        for batch in kept:
            perms = midpoint.project(perms, derive_seed(seed, "straight through", step))
            optimizer.zero_grad()
            cost = loss(midpoint.net_at(perms), batch)
            if not torch.isfinite(cost):
                raise AlignmentError(
                    f"the loss at the midpoint is {float(cost)} in step {step + 1}",
                    hint=f"try a smaller lr than {lr:g}",
                )
            cost.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if not all(torch.isfinite(tensor).all() for tensor in midpoint.wandering.values()):
                raise AlignmentError(
                    f"the wandering weights are not finite after step {step}", hint=f"try a smaller lr than {lr:g}"
                )
        perms = midpoint.project(perms, derive_seed(seed, "straight through", step))
        seen.append((midpoint.judge(perms, kept, loss), perms))
    cost_after, perms = min(seen, key=lambda one: one[0])  # the first wins a draw
    cost_before = midpoint.judge(spec.identity(), kept, loss)
    return _matching(spec, midpoint, perms, -cost_before, -cost_after)


class _Midpoint:
    """Both models, the weights that wander, and the net half-way between A and π(B)."""

    def __init__(self, spec: PermutationSpec, reference: nn.Module, other: nn.Module) -> None:
        self.spec = spec
        self.net = copy.deepcopy(reference).eval()
        for module in self.net.modules():
            module.training = isinstance(module, _BatchNorm)
        self.state, self.other = dict(reference.state_dict()), dict(other.state_dict())
        for state in (self.state, self.other):
            spec.check_state(state)
        self.a, self.b = ({n: p.detach() for n, p in model.named_parameters()} for model in (reference, other))
        self.wandering = {
            name: tensor.clone().requires_grad_() for name, tensor in self.a.items() if tensor.is_floating_point()
        }
        first = {id(parameter): name for name, parameter in reference.named_parameters()}
        # A tied parameter has several entries in the state dict, and wanders once.
        self._entries = {
            entry: first[id(tensor)]
            for entry, tensor in reference.state_dict(keep_vars=True).items()
            if first.get(id(tensor)) in self.wandering
        }

    def project(self, start: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """The permutations of B nearest to the wandering weights, by descent from `start`."""
        wandered = {entry: self.wandering[name].detach() for entry, name in self._entries.items()}
        return descend(Grams(self.spec, {**self.state, **wandered}, self.other), start, seed=seed)[0]

    def net_at(self, perms: Mapping[str, Tensor]) -> nn.Module:
        """½ (A + π(B)), whose gradient goes to the wandering weights as if they stood in place of π(B)."""
        moved = self.spec.apply_to_named(self.b, perms)
        weights = {
            name: (self.a[name] + moved[name].to(self.a[name]) + (tensor - tensor.detach())) / 2
            for name, tensor in self.wandering.items()
        }
        # Copies: batch norms in train mode write to their running statistics.
        return _Bound(self.net, weights | {name: buffer.clone() for name, buffer in self.net.named_buffers()})

    def judge(self, perms: Mapping[str, Tensor], batches: Iterable[Any], loss: Loss) -> float:
        """The mean loss at the midpoint over all samples."""
        total, num_samples = 0.0, 0
        with torch.no_grad():
            net = self.net_at(perms)
            for batch in batches:
                count = len(tensors_in(batch)[0])
                total += float(loss(net, batch)) * count
                num_samples += count
        if not num_samples or not math.isfinite(total):
            what = f"the loss at the midpoint is {total}" if num_samples else "there are no batches"
            raise AlignmentError(f"{what}: straight-through matching needs batches on which it is finite")
        return total / num_samples


class _Bound(nn.Module):
    """A module that runs on other tensors than its own."""

    def __init__(self, net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        self._tensors = dict(tensors)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.net, self._tensors, args, kwargs)


def _matching(
    spec: PermutationSpec, midpoint: _Midpoint, perms: dict[str, Tensor], before: float, after: float
) -> Matching:
    grams, identity = Grams(spec, midpoint.state, midpoint.other), spec.identity()
    inner = [grams.inner(some) for some in (identity, perms)]
    groups = []
    for group in spec.groups:
        tensors = grams.tensors_of(group.name)
        moved = float((perms[group.name] != identity[group.name]).double().mean())
        was, is_now = (sum((one[tensor] for tensor in tensors), 0.0) for one in inner)
        groups.append(GroupMatch(group.name, group.size, moved, was, is_now))
    return Matching(perms, tuple(groups), before, after)
