"""What each operator does to the order of units: one small rule for each, found by the operator's bare name.

A rule gets the operator's own arguments with a `Symbolic` in place of every tensor, ties or freezes their dimensions
and answers with the dimensions of the output. The bare name is the same for `F.relu`, `torch.relu`, `Tensor.relu_`
(and for ATen's operators, which mostly take the same arguments), so one rule serves all spellings.

To teach a new operator:

    @register_operator("my_scale")                  # or the function itself, or an nn.Module class
    def my_scale(context, x, scale):
        context.tie(x.dims[-1], scale.dims[0])
        return x.dims

The rule of a module class gets the module before the inputs; `context.parameter(module.weight)` gives a weight's axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from dimat.align.atoms import Cause, Dim
from dimat.align.axes import AxisTable

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)


@dataclass(frozen=True, slots=True, eq=False)
class Symbolic:
    """A tensor as the rules see it: the atoms of each dimension, and whether it depends on the model's input.

    `reveals` are dimensions whose order its values tell (where a maximum was found): whoever uses it freezes them.
    """

    dims: tuple[Dim, ...]
    shape: tuple[int, ...]
    from_input: bool = False
    reveals: tuple[Dim, ...] = ()

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.dims)


class Context(Protocol):
    """What a rule can do."""

    table: AxisTable
    cause: Cause
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the output tensors."""

    def parameter(self, tensor: Tensor) -> Symbolic:
        """The axes of a parameter or buffer (for rules of module classes)."""

    def tie(self, one: Dim, other: Dim) -> None:
        """Two dimensions of one length are matched entry by entry."""

    def freeze(self, *dims: Dim) -> None:
        """These dimensions must keep their order, by the operator's nature."""

    def unsupported(self, *dims: Dim) -> None:
        """These dimensions must keep their order because this rule does not know better: it is reported."""

    def fixed(self, length: int) -> Dim:
        """A new dimension that stays in order."""

    def free(self, length: int) -> Dim:
        """A new dimension along which all entries are alike (expanded, or padded with one value)."""

    def reveal(self, output: int, *dims: Dim) -> None:
        """The values of this output tell the order of dimensions: they keep it as soon as anybody uses that output."""

    def contract(
        self,
        one: Dim,
        other: Dim,
        *,
        shared: Sequence[Dim] = (),
        left: Sequence[Dim] = (),
        right: Sequence[Dim] = (),
    ) -> None:
        """Two dimensions are summed over together, as in a matrix product.

        `shared` are the dimensions that both operands have and the operator holds aligned (its batch), `left` and
        `right` what else of each operand is left in the output. Inner units may have an order of their own only inside
        of what is shared or, for those that are not summed over, of the same operand.
        """

    def witness(self, dims: Sequence[Dim]) -> None:
        """The operator passes through a tensor with these dimensions (the sums that softmax divides by)."""

    def cut(self, dim: Dim, start: int, stop: int) -> Dim:
        """The entries of a dimension from `start` to `stop`."""

    def join(self, dims: Sequence[Dim]) -> Dim:
        """Dimensions one after the other."""

    def select(self, dims: Sequence[Dim], at: int, index: int) -> list[Dim]:
        """The dimensions without the one at `at`, of which the entry `index` is picked."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A rule, and whether the operator is an activation function (whose input is where units are compared)."""

    rule: Rule
    nonlinear: bool = False


OPERATORS: dict[object, Operator] = {}
"""By bare name, by function, or by module class."""


def register_operator(*keys: object, nonlinear: bool = False) -> Callable[[AnyRule], AnyRule]:
    """Teach the tracer an operator: decorate its rule with bare names, functions or nn.Module classes."""

    def register(rule: AnyRule) -> AnyRule:
        for key in keys:
            OPERATORS[key] = Operator(rule, nonlinear)
        return rule

    return register


def find_operator(name: str, key: object) -> Operator | None:
    """The rule for a function or module class, else for the bare name, else None."""
    try:
        return OPERATORS.get(key) or OPERATORS.get(name)
    except TypeError:  # an unhashable callable
        return OPERATORS.get(name)


def module_operator(module: nn.Module) -> type[nn.Module] | None:
    """The class whose rule holds for a module: its own, or a base whose forward it has not changed.

    None also for a module with parametrizations, since what it computes its weights from must be seen, and for one
    whose forward was replaced on the object.
    """
    if "parametrizations" in module._modules or "forward" in vars(module):
        return None
    kinds = (kind for kind in type(module).__mro__ if kind in OPERATORS and issubclass(kind, nn.Module))
    return next((kind for kind in kinds if kind.forward is type(module).forward), None)
