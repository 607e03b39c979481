"""Find a model's permutation groups by watching one forward pass.

Every operator of the pass is met with the real tensors; its rule (`dimat.align.operators`) ties and freezes symbolic
axes (`dimat.align.axes`). The model's inputs and outputs are frozen; what still moves at the end is a group. An
operator without a rule freezes what reaches it and is reported: it never gives a wrong group.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dimat.align.rules  # noqa: F401  registers what comes with dimat
from dimat.align.atoms import Cause, Dim
from dimat.align.calls import CONVERSIONS, Calls, evaluating, running_module, tensors_in, user_line
from dimat.align.context import NOBODY, RuleContext
from dimat.align.grouping import find_groups
from dimat.align.groups import PermutationSpec
from dimat.align.operators import Operator, Symbolic, find_operator
from dimat.align.taps import Record
from dimat.align.units import Frozen, TensorInfo
from dimat.errors import AlignmentError

_ESCAPES = CONVERSIONS | frozenset(["item", "tolist", "numpy", "equal", "allclose", "is_nonzero"])
_WAY_OUT = (
    "put the part that cannot be followed into an nn.Module and teach its rule with dimat.align.register_operator, "
    "or write the spec by hand and read it with PermutationSpec.from_json"
)


def permutation_spec(model: nn.Module, *example_inputs: Any, **example_kwargs: Any) -> PermutationSpec:
    """The permutation groups of a model, from one forward pass on an example (eval mode; a batch of two is enough).

    Args:
        model: any module; its weights, buffers and modes are left as they are.
        example_inputs: what `model(...)` takes.
        example_kwargs: its keyword arguments.

    Returns:
        A `PermutationSpec`. Groups are named after their first axis and stand in the order of the state dict.

    Raises:
        AlignmentError: the pass depends on the data (the message names the line), or the model fails on the example.

    >>> spec = permutation_spec(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4))
    >>> print(spec)
    1 groups, 8 units, 96.6% of 58 parameters can move
      0.weight:0       8 units in 3 tensors, 1 taps
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise AlignmentError(
                f"entry {name!r} of the state dict is a {type(value).__name__}, expected a tensor",
                hint="modules with get_extra_state() cannot travel; leave that entry out",
            )
    with evaluating(model):
        tracer = _Tracer(model)
        for tensor in tensors_in(example_inputs, example_kwargs):
            tracer.place_input(tensor)
        try:
            with tracer:
                output = model(*example_inputs, **example_kwargs)
        except AlignmentError:
            raise
        except Exception as error:
            message = f"the model fails on the example input: {type(error).__name__}: {error}"
            raise AlignmentError(message, hint="pass example inputs that the model accepts") from error
        tracer.freeze_output(output)
    return tracer.spec()


class _Tracer(Calls):
    """Propagates symbolic axes through one pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.context = RuleContext(self._symbol)
        self._symbols: dict[int, Symbolic] = {}
        self._alive: list[Tensor] = []  # an id stands for its tensor as long as the tensor lives
        self._records: list[Record] = []
        self._used: set[int] = set()
        self._modules = {id(module): name for name, module in model.named_modules()}
        persistent = model.state_dict(keep_vars=True)
        self._saved = {id(tensor) for tensor in persistent.values()}
        self._names = {name: tensor for name, tensor in persistent.items() if isinstance(tensor, Tensor)}
        self._constants = {id(tensor) for module in model.modules() for tensor in tensors_in(*_plain_values(module))}
        self._weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        for tensor in self._weights.values():
            new = (
                self.context.table.free if id(tensor) in self._saved else self.context.table.fixed
            )  # only what is saved can move
            self._place(tensor, tuple(new(length) for length in tensor.shape), from_input=False)

        for tensor in self._weights.values():
            if not tensor.is_floating_point() and tensor.numel() > 1 and id(tensor) in self._saved:
                # Were they permuted, neighbours' constants would differ and could not be averaged.
                self.context.cause = Cause("a buffer of integers", "")
                self.context.unsupported(*self._symbols[id(tensor)].dims)
        self.context.cause = NOBODY

    def place_input(self, tensor: Tensor) -> None:
        """An example input: its order is given from outside."""
        self._place(tensor, tuple(self.context.table.fixed(length) for length in tensor.shape), from_input=True)

    def freeze_output(self, output: Any) -> None:
        """The model's answer: somebody outside reads it in order."""
        self.context.cause = Cause("the output", "")
        tensors = tensors_in(output)
        if not tensors:
            raise AlignmentError(
                f"no tensor is found in what the model returns, a {type(output).__name__}", hint=_WAY_OUT
            )
        for tensor in tensors:
            self.context.freeze(*self._symbol(tensor).dims)

    def on_call(
        self, name: str, key: object, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one operator and carry the axes across it."""
        before = tensors_in(args, kwargs)
        inputs = tuple(self._symbol(tensor, name) for tensor in before)
        if name in _ESCAPES:
            self._escape(name, inputs)
            return run()
        result = run()
        if isinstance(result, (str, torch.dtype, torch.device)):
            return result
        operator = find_operator(name, key)
        after = tensors_in(result)
        self.context.shapes = tuple(tuple(tensor.shape) for tensor in after)
        dims = self._rule(operator, name, inputs, args, kwargs)
        from_input = any(symbol.from_input for symbol in inputs)
        outputs = tuple(
            self._place(tensor, own, from_input=from_input) for tensor, own in zip(after, dims, strict=True)
        )
        if not after and from_input:  # such as x[0] = y: what was written to depends on the input from now on
            for tensor, symbol in zip(before, inputs, strict=True):
                self._place(tensor, symbol.dims, from_input=True)
        nonlinear = operator is not None and operator.nonlinear
        self._records.append(Record(self.num_calls, name, nonlinear, inputs, outputs))
        return result

    def _rule(
        self, operator: Operator | None, name: str, inputs: tuple[Symbolic, ...], args: Any, kwargs: Any
    ) -> list[tuple[Dim, ...]]:
        """Dimensions of each output; all frozen when there is no rule, or none for this way of calling."""
        self.context.cause = Cause(name, running_module(self._modules))
        if operator is not None and self.context.shapes:
            symbolic_args, symbolic_kwargs = self._symbolic(args), self._symbolic(kwargs)
            if _accepts(operator, self.context, symbolic_args, symbolic_kwargs):
                try:
                    answer = operator.rule(self.context, *symbolic_args, **symbolic_kwargs)
                except (
                    IndexError,
                    TypeError,
                    ValueError,
                ):  # an odd form of call: what is tied so far only costs freedom
                    answer = []
                dims = list(answer) if isinstance(answer, list) else [tuple(answer)]
                lengths = [tuple(self.context.table.length(dim) for dim in own) for own in dims]
                if lengths == list(self.context.shapes):
                    return dims
        for symbol in inputs:
            self.context.unsupported(*symbol.dims)
        return [
            tuple(self.context.table.fixed(length, self.context.cause) for length in shape)
            for shape in self.context.shapes
        ]

    def _escape(self, name: str, inputs: tuple[Symbolic, ...]) -> None:
        """A tensor becomes a Python value: what follows cannot be seen, and may differ for other data."""
        if any(symbol.from_input for symbol in inputs):
            message = f"the pass depends on the data: a tensor is read by .{name}() at {user_line()}"
            raise AlignmentError(f"this model cannot be traced: {message}", hint=_WAY_OUT)
        self.context.cause = Cause(name, running_module(self._modules))
        for symbol in inputs:
            self.context.unsupported(*symbol.dims)

    def _symbol(self, tensor: Tensor, operator: str = "") -> Symbolic:
        symbol = self._symbols.get(id(tensor))
        if symbol is None:
            if id(tensor) not in self._constants:
                # Made by something that torch does not show (a compiled extension, a scripted module): every axis
                # that it may have read so far could be inside, in any order.
                self.context.cause = Cause(
                    f"something unseen before {operator or 'the output'}", running_module(self._modules)
                )
                for known in list(self._symbols.values()):
                    self.context.unsupported(*known.dims)
            dims = tuple(self.context.table.fixed(length) for length in tensor.shape)
            symbol = self._place(tensor, dims, from_input=id(tensor) not in self._constants)
        if id(tensor) in self._weights:
            self._used.add(id(tensor))
        return symbol

    def _place(self, tensor: Tensor, dims: tuple[Dim, ...], *, from_input: bool) -> Symbolic:
        symbol = Symbolic(dims, tuple(tensor.shape), from_input)
        self._symbols[id(tensor)] = symbol
        self._alive.append(tensor)
        return symbol

    def _symbolic(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._symbol(value)
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            return type(value)(self._symbolic(item) for item in value) if type(value) in (tuple, list) else value
        return {key: self._symbolic(item) for key, item in value.items()} if isinstance(value, dict) else value

    # ---- the answer

    def spec(self) -> PermutationSpec:
        """The groups that are left, their taps, and the report of what was frozen."""
        for tensor in self._weights.values():
            if id(tensor) not in self._used:
                # A head that only training uses would still read its units in order: it is reported.
                self.context.cause = Cause("absence from the pass", "")
                self.context.unsupported(*self._symbols[id(tensor)].dims)
        members = {
            name: self._symbols[id(tensor)].dims for name, tensor in self._names.items() if id(tensor) in self._weights
        }
        groups = find_groups(self.context.table, members, self._records, self.context.witnesses)
        lost: dict[Cause, dict[int, int]] = {}
        for name, dims in members.items():
            tensor = self._names[name]
            for atom in (leaf for dim in dims for leaf in self.context.table.leaves(dim)):
                cause = self.context.table.cause(atom)
                if not self.context.table.movable(atom) and cause is not None and isinstance(tensor, nn.Parameter):
                    lost.setdefault(cause, {})[id(tensor)] = tensor.numel()
        frozen = tuple(Frozen(cause.operator, cause.module, sum(sizes.values())) for cause, sizes in lost.items())
        tensors = tuple(
            TensorInfo(name, tuple(tensor.shape), isinstance(tensor, nn.Parameter))
            for name, tensor in self._names.items()
        )
        return PermutationSpec(groups, tensors, frozen)


def _plain_values(module: nn.Module) -> list[Any]:
    """Attributes of a module that hold constants: tensors nobody registered, or lists of them."""
    kinds = (Tensor, tuple, list, dict)
    return [value for value in vars(module).values() if isinstance(value, kinds)]


def _accepts(operator: Operator, context: Any, args: Any, kwargs: Any) -> bool:
    """Whether the rule knows this way of calling its operator (with `out=`, say, it does not)."""
    try:
        inspect.signature(operator.rule).bind(context, *args, **kwargs)
    except TypeError:
        return False
    return True
