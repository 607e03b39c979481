"""What a rule can do with the axes that one operator meets: the `Context` behind every rule of one trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from dimat.align.atoms import Cause, Dim
from dimat.align.axes import AxisTable
from dimat.align.operators import Symbolic
from dimat.errors import AlignmentError

NOBODY = Cause("", "")


class RuleContext:
    """The axes of one trace and the operator whose rule is running; see `dimat.align.operators.Context`.

    Args:
        symbol_of: the axes of a parameter or buffer.
    """

    def __init__(self, symbol_of: Callable[[Tensor], Symbolic]) -> None:
        self.table = AxisTable()
        self.cause = NOBODY
        self.shapes: tuple[tuple[int, ...], ...] = ()
        self.witnesses: list[tuple[Dim, ...]] = []
        self.revealed: dict[int, tuple[Dim, ...]] = {}
        self._symbol_of = symbol_of

    def parameter(self, tensor: Tensor) -> Symbolic:
        """The axes of a parameter or buffer."""
        return self._symbol_of(tensor)

    def tie(self, one: Dim, other: Dim) -> None:
        """Two dimensions are matched entry by entry."""
        lengths = self.table.length(one), self.table.length(other)
        if lengths[0] != lengths[1]:
            raise AlignmentError(f"the rule for {self.cause.operator!r} ties dimensions of lengths {lengths}")
        self.table.tie(one, other, self.cause)

    def freeze(self, *dims: Dim) -> None:
        """Dimensions that keep their order by nature."""
        for dim in dims:
            self.table.freeze(dim)

    def unsupported(self, *dims: Dim) -> None:
        """Dimensions that keep their order for want of knowledge."""
        for dim in dims:
            self.table.freeze(dim, self.cause)

    def fixed(self, length: int) -> Dim:
        """A new dimension that stays in order."""
        return self.table.fixed(length)

    def free(self, length: int) -> Dim:
        """A new dimension along which all entries are alike."""
        return self.table.free(length)

    def reveal(self, output: int, *dims: Dim) -> None:
        """Whoever uses this output of the operator learns the order of these dimensions."""
        self.revealed[output] = dims

    def contract(
        self,
        one: Dim,
        other: Dim,
        *,
        shared: Sequence[Dim] = (),
        left: Sequence[Dim] = (),
        right: Sequence[Dim] = (),
    ) -> None:
        """Two dimensions are summed over together; what is left of each operand must do without them."""
        self.table.tie(one, other, self.cause)
        self.witnesses.extend((*shared, *rest) for rest in ([one], left, right))

    def witness(self, dims: Sequence[Dim]) -> None:
        """The operator passes through a tensor with these dimensions."""
        self.witnesses.append(tuple(dims))

    def cut(self, dim: Dim, start: int, stop: int) -> Dim:
        """The entries of a dimension from `start` to `stop`."""
        return self.table.cut(dim, start, stop, self.cause)

    def join(self, dims: Sequence[Dim]) -> Dim:
        """Dimensions one after the other."""
        return self.table.join(dims)

    def select(self, dims: Sequence[Dim], at: int, index: int) -> list[Dim]:
        """The dimensions without the one at `at`, of which the entry `index` is picked."""
        return self.table.select(dims, at, index, self.cause)
