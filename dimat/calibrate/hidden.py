"""Which layers REPAIR speaks about, found by running two samples and looking who reads what.

A linear or convolutional layer counts when all that it computes is read by another layer with weights. Two kinds are
left out by that or beside it. One that makes the model's answer: no later layer counts on its statistics, they are the
answer itself (class priors and confidence, as the probe happens to show them). And one whose output goes straight into
a batch norm: the norm takes out mean and scale, so there is nothing to restore.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dimat.calibrate.probe import call, cut, evaluating, num_samples

Layer = nn.Linear | _ConvNd


class Hidden(NamedTuple):
    """The layers whose statistics are restored, by name in the order of `named_modules`."""

    layers: dict[str, Layer]
    numbers: int
    """How many numbers the largest output of one of them has, for one sample."""


def hidden_layers(model: nn.Module, probe: Sequence[Any]) -> Hidden:
    """The layers of `model` whose statistics are restored.

    Left out are layers that make the answer, layers right before a batch norm, layers that are not called, and layers
    whose weight is not theirs alone: a parameter that two modules hold (tied) or that is computed (parametrized). What
    a model computes without gradients of its own accord is not followed, and counts as its answer.
    """
    holders = _holders(model)
    layers: dict[str, Layer] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Layer) and _is_free(module, holders)
    }
    if not layers or not probe:
        return Hidden({}, 1)
    few = cut(probe[0], 2)
    with _Readers(model, layers) as readers, evaluating(model), torch.enable_grad():
        call(model, few)
    found = {name: layer for name, layer in layers.items() if readers.have_all_of(name)}
    sizes = [made.leaf.numel() // num_samples(few) for name in found for made in readers.made[name]]
    return Hidden(found, max(1, *sizes) if sizes else 1)


def _holders(model: nn.Module) -> dict[int, int]:
    """How many modules hold each parameter, by its id."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return holders


def _is_free(layer: Layer, holders: Mapping[int, int]) -> bool:
    own = [layer._parameters.get("weight")]
    if layer.bias is not None:
        own.append(layer._parameters.get("bias"))
    return all(one is not None and holders[id(one)] == 1 and one.is_floating_point() for one in own)


class _Made(NamedTuple):
    """One output of a layer: `leaf` in torch's graph, and `copy`, which the model goes on with."""

    leaf: Tensor
    copy: Tensor


class _Readers:
    """Finds out, in one forward pass, which module reads what which layer computed.

    Every output of a layer is cut off from what came before and becomes a leaf of torch's graph; a module that holds a
    matrix reads the leaves that its inputs depend on.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        self.model, self.layers = model, layers
        self.made: dict[str, list[_Made]] = {name: [] for name in layers}
        self.read: set[int] = set()
        self.normed: set[int] = set()
        self.hooks: list[Any] = []

    def have_all_of(self, name: str) -> bool:
        """Whether each output of a layer goes into another layer, and none into a batch norm."""
        leaves = {id(made.leaf) for made in self.made[name]}
        copies = {id(made.copy) for made in self.made[name]}
        return bool(leaves) and leaves <= self.read and not copies & self.normed

    def __enter__(self) -> _Readers:
        for name, layer in self.layers.items():
            self.hooks.append(
                layer.register_forward_hook(lambda layer, inputs, output, name=name: self._cut_off(name, output))
            )
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                self.hooks.append(module.register_forward_pre_hook(self._norms, with_kwargs=True))
            elif any(parameter is not None and parameter.ndim > 1 for parameter in module._parameters.values()):
                self.hooks.append(module.register_forward_pre_hook(self._reads, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _cut_off(self, name: str, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        # A copy: the leaf itself could not be written in place, as ReLU may want to.
        made = _Made(leaf, leaf.clone())
        self.made[name].append(made)
        return made.copy

    def _norms(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for tensor in _tensors([*args, *kwargs.values()]):
            whole = tensor if tensor._base is None else tensor._base
            # Written in place since, it is no longer what the layer computed.
            if whole._version == 0:
                self.normed.add(id(whole))

    def _reads(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        waiting = [tensor.grad_fn for tensor in _tensors([*args, *kwargs.values()])]
        seen: set[Any] = set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                self.read.add(id(node.variable))
            waiting.extend(earlier for earlier, _ in node.next_functions)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Every tensor in nested lists, tuples and mappings."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_tensors(value))
        elif isinstance(value, Mapping):
            found.extend(_tensors(value.values()))
    return found


def num_channels(layer: Layer) -> int:
    """Number of outputs of a linear layer, of output channels of a convolution."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def channel_dimension(layer: nn.Module) -> int:
    """Where a layer's output has its channels, counted from the end: samples may lack the batch dimension."""
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1
