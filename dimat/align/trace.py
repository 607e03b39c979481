"""Find a model's permutation groups by watching one forward pass.

Every operator of the pass is met with the real tensors; its rule (`dimat.align.operators`) ties and freezes symbolic
axes (`dimat.align.axes`). The model's inputs and outputs are frozen; what still moves at the end is a group. An
operator without a rule freezes what reaches it and is reported: it never gives a wrong group.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import dimat.align.rules  # noqa: F401  registers what comes with dimat
from dimat.align.atoms import Cause, Dim
from dimat.align.calls import CONVERSIONS, Calls, contents, evaluating, running_module, tensors_in, user_line
from dimat.align.grouping import find_groups
from dimat.align.groups import PermutationSpec
from dimat.align.operators import Operator, Symbolic, find_operator
from dimat.align.symbols import Symbols
from dimat.align.taps import Record
from dimat.align.units import Frozen, TensorInfo
from dimat.align.unseen import freeze_unreached, sizing
from dimat.errors import AlignmentError

_ESCAPES = CONVERSIONS | frozenset(["item", "tolist", "numpy", "equal", "allclose", "is_nonzero"])
_WAY_OUT = (
    "put the part that cannot be followed into an nn.Module and teach its rule with dimat.align.register_operator, "
    "or write the spec by hand and read it with PermutationSpec.from_json"
)


def permutation_spec(model: nn.Module, *example_inputs: Any, **example_kwargs: Any) -> PermutationSpec:
    """The permutation groups of a model, from one forward pass on an example (eval mode; a batch of two is enough).

    The groups hold for every input that takes the path of the example. A recurrence that is written out as a loop
    shows what ties its steps from the second one on.

    Args:
        model: any module; its weights, buffers and modes are left as they are, but for what its own pass writes to.
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
        if is_lazy(value):
            raise AlignmentError(
                f"parameter {name!r} has no shape yet", hint="run the model once on the example: lazy modules need that"
            )
    with evaluating(model):
        tracer = _Tracer(model)
        for tensor in tensors_in(example_inputs, example_kwargs):
            tracer.symbols.place_input(tensor)
        try:
            with tracer:
                output = model(*example_inputs, **example_kwargs)
        except AlignmentError:
            raise
        except Exception as error:
            message = f"the model fails on the example input: {type(error).__name__}: {error}"
            raise AlignmentError(message, hint="pass example inputs that the model accepts") from error
        finally:
            replaced = tracer.put_back()
        tracer.freeze_output(output)
        tracer.tie_replaced(replaced)
    return tracer.spec()


class _Tracer(Calls):
    """Propagates symbolic axes through one pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._modules = {id(module): name for name, module in model.named_modules()}
        self.symbols = Symbols(model, lambda: running_module(self._modules))
        self.context = self.symbols.context
        self._records: list[Record] = []
        self._sized = ""  # the line where data first decided about a size
        self._stores = [dict(store) for store in _stores(model)]
        persistent = model.state_dict(keep_vars=True)
        self._names = {name: tensor for name, tensor in persistent.items() if isinstance(tensor, Tensor)}

    def freeze_output(self, output: Any) -> None:
        """The model's answer: somebody outside reads it in order."""
        tensors = tensors_in(output)
        for value in contents(output):
            if isinstance(value, (FunctionType, MethodType, partial, Iterator)):
                kind = type(value).__name__
                raise AlignmentError(f"the model returns a {kind}, and what that will read is not seen", hint=_WAY_OUT)
        if not tensors:
            raise AlignmentError(
                f"no tensor is found in what the model returns, a {type(output).__name__}", hint=_WAY_OUT
            )
        for tensor in tensors:
            self.context.freeze(*self.symbols.of(tensor).dims)

    def on_call(
        self, name: str, key: object, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one operator and carry the axes across it."""
        before = tensors_in(args, kwargs)
        inputs = tuple(self.symbols.of(tensor, name) for tensor in before)
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
        for i, (tensor, symbol) in enumerate(zip(before, inputs, strict=True)):
            new = next((own for other, own in zip(after, dims, strict=True) if other is tensor), None)
            if new is not None or (not after and (name != "setitem" or i == 0)):  # such as x += y, or x[0] = y
                self.symbols.written(tensor, symbol, new, from_input=from_input)
        if any(self.symbols.of(tensor).from_input for tensor in sizing(name, args)) and not self._sized:
            self._sized = user_line()
        revealed = self.context.revealed
        outputs = tuple(
            self.symbols.place(tensor, own, from_input=from_input, reveals=revealed.get(i, ()))
            for i, (tensor, own) in enumerate(zip(after, dims, strict=True))
        )
        nonlinear = operator is not None and operator.nonlinear
        # What only writes lets nothing vanish: its inputs go on.
        self._records.append(Record(self.num_calls, name, nonlinear, inputs, outputs if after else inputs))
        return result

    def _rule(
        self, operator: Operator | None, name: str, inputs: tuple[Symbolic, ...], args: Any, kwargs: Any
    ) -> list[tuple[Dim, ...]]:
        """Dimensions of each output; all frozen when there is no rule, or none for this way of calling."""
        self.context.cause = Cause(name, running_module(self._modules))
        self.context.revealed = {}
        kwargs = {key: value for key, value in kwargs.items() if key != "out"}  # what is written to is tied afterwards
        if operator is not None and (self.context.shapes or name == "setitem"):
            symbolic_args, symbolic_kwargs = self.symbols.inside(args), self.symbols.inside(kwargs)
            if _accepts(operator, self.context, symbolic_args, symbolic_kwargs):
                try:
                    answer = operator.rule(self.context, *symbolic_args, **symbolic_kwargs)
                except (LookupError, TypeError, ValueError, AttributeError):
                    answer = None  # an odd form of call: what is tied so far only costs freedom
                dims: list[tuple[Dim, ...]] = list(answer) if isinstance(answer, list) else [tuple(answer or ())]
                lengths = [tuple(self.context.table.length(dim) for dim in own) for own in dims]
                if answer is not None and lengths == list(self.context.shapes):
                    return dims
        self.context.revealed = {}
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

    def put_back(self) -> list[tuple[Tensor, Tensor]]:
        """Undo what the pass assigned to registered names (a state for the next call): (before, after) of each."""
        replaced: list[tuple[Tensor, Tensor]] = []
        for before, now in zip(self._stores, _stores(self.model), strict=True):
            for name, tensor in before.items():
                other = now.get(name)
                if other is not tensor:
                    now[name] = tensor
                    if tensor is not None and other is not None:
                        replaced.append((tensor, other))
        return replaced

    def tie_replaced(self, replaced: list[tuple[Tensor, Tensor]]) -> None:
        """What took the place of a buffer will be read by the next pass as this one read the buffer."""
        for tensor, other in replaced:
            self.symbols.of(other)
            self.context.cause = Cause("a buffer that is replaced", "")
            self.symbols.same(tensor, other)

    # ---- the answer

    def spec(self) -> PermutationSpec:
        """The groups that are left, their taps, and the report of what was frozen."""
        unused = {id(tensor) for tensor in self.symbols.freeze_unused()}
        missed = [name for name, tensor in self._names.items() if id(tensor) in unused]
        if self._sized and missed:
            raise AlignmentError(
                f"this model cannot be traced: values decide how much goes on at {self._sized}, and the example does "
                f"not reach {missed[0]!r}",
                hint="pass an example that reaches every part of the model, such as more tokens than experts",
            )
        members = {
            name: self.symbols[tensor].dims for name, tensor in self._names.items() if tensor in self.symbols.weights
        }
        freeze_unreached(self.context.table, members, self._records)
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


def _stores(model: nn.Module) -> list[dict[str, Any]]:
    """Where the modules keep their parameters and buffers (scripted ones keep them elsewhere)."""
    stores = [store for module in model.modules() for store in (module._parameters, module._buffers)]
    return [store for store in stores if isinstance(store, dict)]


def _accepts(operator: Operator, context: Any, args: Any, kwargs: Any) -> bool:
    """Whether the rule knows this way of calling its operator."""
    try:
        inspect.signature(operator.rule).bind(context, *args, **kwargs)
    except TypeError:
        return False
    return True
