"""See every operator of a forward pass go by, in order, without touching the model.

A `TorchFunctionMode` meets each call of a torch function on its own thread, whichever way it is written (`F.relu(x)`,
`torch.relu(x)`, `x.relu_()`), with the real tensors. So the model runs as it is, Python control flow on shapes
included, and nothing is patched: other threads may use modules meanwhile. The n-th call of one pass is the n-th call
of another pass of the same architecture, which is how a tap found on one model is read on another.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, FunctionType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from dimat.align.operators import find_operator, module_operator

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)

_METADATA_NAMES = """
    shape size dim ndim ndimension numel nelement stride storage_offset dtype device layout len
    is_floating_point is_complex is_cuda is_contiguous is_leaf is_sparse is_quantized is_meta is_mps is_xla
    is_nested requires_grad grad grad_fn get_device element_size itemsize nbytes hash names has_names format
    repr version data_ptr is_conj is_inference is_neg result_type can_cast dim_order
"""
_METADATA = frozenset(_METADATA_NAMES.split())
CONVERSIONS = frozenset(["__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__", "__array__"])
"""Methods that make a Python value of a tensor; `bool`, `int` and `float` without underscores only change the dtype."""
_COMPOSED = frozenset(["multi_head_attention_forward"])
"""Torch functions that are followed inside, operator by operator, where activations of the heads can be read."""


class Calls(TorchFunctionMode):
    """Base of what watches one forward pass of `model`; `on_call` sees each operator and runs it.

    A module of a registered type is one call: what happens inside is not seen. Attention as torch packs it is many.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.num_calls = 0
        self._inside = 0
        self._hooks: list[Any] = []

    def on_call(
        self, name: str, key: object, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Meet one operator: `run()` executes it; the answer is what the model gets."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        for module in self.model.modules():
            if module_operator(module) is not None:
                self._hooks.append(module.register_forward_pre_hook(self._enter_module, with_kwargs=True))
                self._hooks.append(module.register_forward_hook(self._leave_module, with_kwargs=True, prepend=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operator_name(func)
        if self._inside or name in _METADATA:
            return func(*args, **kwargs)
        if name in _COMPOSED and find_operator(name, func) is None:
            body = _body(func)
            if body is not None:
                with _Again(self):
                    return body(*args, **kwargs)
        self.num_calls += 1
        return self.on_call(name, func, lambda: func(*args, **kwargs), args, kwargs)

    def _enter_module(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._inside += 1

    def _leave_module(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._inside -= 1
        if not self._inside:
            self.num_calls += 1
            self._inside += 1  # a hook runs in sight of this mode: what `on_call` does is no call of the model
            try:
                self.on_call(type(module).__name__, module_operator(module), lambda: output, (module, *args), kwargs)
            finally:
                self._inside -= 1


class _Again(TorchFunctionMode):
    """Shows `calls` what runs inside of an operator that it was just shown."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.calls.__torch_function__(func, types, args, kwargs)


def _body(func: Any) -> Callable[..., Any] | None:
    """What a torch function written in Python computes, without its question whether somebody watches; None if unsure.

    A watched function asks `has_torch_function` first and hands itself to the watcher, so calling it again would not
    end. The copy gets the answer no.
    """
    if not isinstance(func, FunctionType) or "has_torch_function" not in func.__code__.co_names:
        return None
    names = {**func.__globals__, "has_torch_function": lambda *_: False}
    body = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def operator_name(func: Any) -> str:
    """One bare name for all spellings of an operator: `relu` for F.relu, torch.relu_, Tensor.relu.

    Operators of other libraries keep their namespace: what they call `relu` may be anything.

    >>> operator_name(torch.Tensor.relu_), operator_name(torch.nn.functional.relu), operator_name(torch.Tensor.__iadd__)
    ('relu', 'relu', 'iadd')
    """
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        qualified = str(func._qualified_op_name if isinstance(func, OpOverloadPacket) else func._name)
        library, _, own = qualified.partition("::")
        return own.strip("_") if library == "aten" and isinstance(func, OpOverloadPacket) else qualified
    name = str(getattr(func, "__name__", func))
    if name == "__get__":  # a property, such as Tensor.T
        name = str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name if name in CONVERSIONS else name.strip("_")


def tensors_in(*values: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists, mappings, slices and plain objects (a model's output class), in order."""
    return [value for value in contents(*values) if isinstance(value, Tensor)]


def contents(*values: Any) -> Iterator[Any]:
    """Everything that is no container in nested values, in order."""
    opened: set[int] = set()
    stack = list(reversed(values))
    while stack:
        value = stack.pop()
        inside: Iterable[Any]
        if value is None or isinstance(value, (Tensor, str, int, float, FunctionType, type, nn.Module)):
            inside = ()
        elif isinstance(value, (tuple, list, set, frozenset, deque)):
            inside = value
        elif isinstance(value, Mapping):
            inside = value.values()
        elif isinstance(value, slice):
            inside = (value.start, value.stop, value.step)
        elif id(value) in opened:
            continue
        else:
            opened.add(id(value))
            inside = (*_slots(value), *getattr(value, "__dict__", {}).values())
        children = list(inside)
        if not children:
            yield value
        stack.extend(reversed(children))


def _slots(value: Any) -> list[Any]:
    names: list[str] = []
    for kind in type(value).__mro__:
        own = kind.__dict__.get("__slots__", ())
        names.extend([own] if isinstance(own, str) else own)
    return [getattr(value, name) for name in names if hasattr(value, name)]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Run models in eval mode, without gradients and uncompiled; the mode of every module is put back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if "torch._dynamo" in sys.modules:  # whoever compiled something has it, and nobody else pays for its import
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        for module, training in modes:
            module.training = training


def call_model(model: nn.Module, batch: Any) -> Any:
    """Run a model on one batch: a tensor, a tuple or list of arguments, or a mapping of keyword arguments."""
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def user_line() -> str:
    """The line of the model's code that is running: `file:line`, outside of torch and of this package."""
    frame = _frames(lambda frame: not frame.f_code.co_filename.startswith((_TORCH, _HERE)))
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "an unknown line"


def running_module(names: Mapping[int, str]) -> str:
    """The path of the innermost module that is running, by `names` from id(module); empty for the model itself."""
    frame = _frames(lambda frame: id(frame.f_locals.get("self")) in names)
    return names[id(frame.f_locals["self"])] if frame else ""


def _frames(wanted: Callable[[FrameType], bool]) -> FrameType | None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not wanted(frame):
        frame = frame.f_back
    return frame
