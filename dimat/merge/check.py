"""What the author of a merge method wants to know before others use it.

The method folds small models in every way that `dimat.merge.trial` knows, through the steps that lists, ledgers and
agents take; what differs, or raises, is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from dimat.errors import DimatError
from dimat.merge.api import Fold, State, owned_step
from dimat.merge.declared import declared_problems, documented
from dimat.merge.registry import make_fold
from dimat.merge.survey import run_survey
from dimat.merge.trial import Held, Trial, small_models, try_out
from dimat.modelfile.pieces import DTYPE_NAMES

TOLERANCE = 1e-6
DIGESTS = tuple(f"{i:064x}" for i in range(1, 7))
"""Models of other dtypes shall be known by the same names, so that what is drawn at random is the same."""

Tensors = Mapping[str, torch.Tensor]


def check_merge(reference: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """The problems of the merge method `reference`, each a sentence with its cure; empty when it keeps the contract.

    Args:
        reference: a name, `package.module:function` or `path/to/file.py:function`.
        options: to make it with.

    >>> check_merge("mean")
    []
    """
    try:
        method = make_fold(reference, options)
        problems = list(documented(reference))
    except DimatError as error:
        return [str(error)]
    declared = list(_tried("looking at what the fold declares", declared_problems, method))
    if declared:
        return problems + declared
    found = list(_tried("folding small models (a matrix, a kernel, a vector, a scalar, no entry)", _result, method))
    for what, check in CHECKS.items() if not found else ():
        found += _tried(what, check, method)
    return list(dict.fromkeys(problems + found))


def _tried(what: str, check: Callable[[Fold], Iterable[str]], method: Fold) -> Iterator[str]:
    try:
        yield from check(method)
    except Exception as error:  # a user's code may raise anything; here that is a finding
        yield f"{what} raised {type(error).__name__}: {error}"


def _trial(method: Fold, num_models: int = 3) -> Trial:
    return try_out(method, small_models(method.stats, num_models), DIGESTS[:num_models])


def _result(method: Fold) -> Iterator[str]:
    trial = _trial(method)
    trial.whole()
    for name, tensor in trial.finish(trial.absorbed()).items():
        shape = trial.arrivals[0].source.tensors[name].shape
        if tuple(tensor.shape) != shape:
            yield f"the merged tensor is {list(tensor.shape)}, its models are {list(shape)}: keep the shape"


def _stored(method: Fold) -> Iterator[str]:
    trial = _trial(method, 6)
    two, all_models = trial.absorbed([0, 1]), trial.absorbed()
    for name, state in all_models.states.items():
        if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
            yield "the state holds what is not a tensor by name: make scalars 0-d tensors, so that states can be saved"
            return
        for key, value in state.items():
            if value.dtype not in DTYPE_NAMES:
                yield f"{key!r} of the state is {value.dtype}, which no .safetensors file holds"
            shape = tuple(trial.arrivals[0].source.tensors[name].shape)
            if method.of(name, shape).elementwise and tuple(value.shape) not in (shape, ()):
                yield (
                    f"{key!r} of the state is {list(value.shape)} for a tensor of {list(shape)}: where a fold is "
                    "elementwise its state is 0-d, or has one entry for each of the tensor"
                )
    if method.memory == "constant" and _num_bytes(two) != _num_bytes(all_models):
        yield "the state grows with the number of models: declare memory='linear', or keep sums"


def _pure(method: Fold) -> Iterator[str]:
    given = small_models(method.stats)
    trial = try_out(method, given, DIGESTS[:3])
    models = {f"model {i}/{name}": x for i, model in enumerate(given.models) for name, x in model.items()}
    models |= {f"base/{name}": x for name, x in given.base.items()}
    models |= {
        f"stats/{i}/{k}/{n}": x for i, kinds in enumerate(given.stats) for k, s in kinds.items() for n, x in s.items()
    }
    a, b = trial.absorbed([0, 1]), trial.absorbed([2])
    steps: dict[str, Callable[[], object]] = {"absorb": lambda: trial.absorb(a, 2), "finish": lambda: trial.finish(a)}
    if method.commutative:
        steps["combine"] = lambda: trial.join(a, b)
    if method.remove is not None:
        steps["remove"] = lambda: trial.remove(a, 1)
    for what, step in steps.items():
        before = _copy({**_flat(a), **{f"other {key}": x for key, x in _flat(b).items()}})
        inputs = _copy(models)
        step()
        if not _same({**_flat(a), **{f"other {key}": x for key, x in _flat(b).items()}}, before):
            yield f"{what} changed the state it was given: return a new one"
        if not _same(models, inputs):
            yield f"{what} changed a tensor of a model, its statistics or the base: copy before writing"


def _owned(method: Fold) -> Iterator[str]:
    def in_place(fold: Fold) -> Fold:
        return replace(fold, absorb=owned_step(fold.absorb), tailor=None)

    own = replace(in_place(method), tailor=lambda name, shape: in_place(method.of(name, shape)))
    got, expected = (_trial(one).absorbed() for one in (own, method))
    if not _same(_flat(got), _flat(expected)):
        yield "its step for a state of its own gives other bits than absorb: keep the order of operations"


def _repeated(method: Fold) -> Iterator[str]:
    trial = _trial(method)
    once = trial.whole()
    if not _same(once, trial.whole()):
        yield "the same models twice gave different bytes: draw random numbers from a seed that is an option"
    if not _close(once, trial.finish(trial.absorbed())):
        yield "model by model is not what the list gives: keep nothing but the state between two models"
    turned = {
        name: x.movedim(0, -1).contiguous().movedim(-1, 0) if x.ndim else x for name, x in _models(method)[0].items()
    }
    given = replace(small_models(method.stats), models=(turned, *_models(method)[1:]))
    if not _close(once, try_out(method, given, DIGESTS[:3]).whole()):
        yield "a tensor that is not contiguous gave another result: use reshape, which counts in row-major order"


def _slices(method: Fold) -> Iterator[str]:
    trial = _trial(method)
    whole = trial.whole()
    if any(not _close(whole, trial.sliced(entries)) for entries in (1, 3, 7)):
        yield (
            "slices of a tensor are not what the whole tensor gives: declare elementwise=False, or find what it takes "
            "from the whole tensor by a survey"
        )
    survey = method.survey
    if survey is None:
        return
    x = trial.arrivals[0].source.read("wide").reshape(-1)
    base = None if trial.base is None else trial.base.read("wide").reshape(-1)
    found = run_survey(survey, lambda: [(x, base)])
    halves = run_survey(
        survey, lambda: [(x[i : i + 2], None if base is None else base[i : i + 2]) for i in range(0, 21, 2)]
    )
    if not _close(found, halves):
        yield "its survey finds something else in slices: observe must give the same however the entries are cut"


def _orders(method: Fold) -> Iterator[str]:
    if not method.commutative:
        return
    trial = _trial(method)
    whole = trial.finish(trial.absorbed())
    if any(not _close(whole, trial.finish(trial.absorbed(order))) for order in ((2, 1, 0), (1, 2, 0))):
        yield "another order gave another result: declare commutative=False, or make absorb symmetric"
    one, two, three, none = *(trial.absorbed([i]) for i in range(3)), trial.nothing()
    trees = (
        trial.join(trial.join(one, two), three),
        trial.join(one, trial.join(two, three)),
        trial.join(three, trial.absorbed([0, 1])),
        trial.join(none, trial.absorbed()),
        trial.join(trial.absorbed(), none),
    )
    if any(not _close(whole, trial.finish(tree)) for tree in trees):
        yield "combine of two parts is not the whole: combine(absorb(a), absorb(b)) must equal absorb(a, b)"


def _removal(method: Fold) -> Iterator[str]:
    if method.remove is None:
        return
    trial = _trial(method)
    without, undone = trial.finish(trial.absorbed([0, 2])), trial.remove(trial.absorbed(), 1)
    if not _close(without, trial.finish(undone)):
        yield "remove does not undo absorb: remove(absorb(state, x), x) must be the state, up to rounding"


def _half(method: Fold) -> Iterator[str]:
    half = small_models(method.stats, 6, torch.bfloat16)
    wide = replace(
        half,
        base=_doubled(half.base),
        models=tuple(map(_doubled, half.models)),
        stats=tuple({kind: _doubled(state) for kind, state in kinds.items()} for kinds in half.stats),
    )
    got, expected = try_out(method, half, DIGESTS).whole(), try_out(method, wide, DIGESTS).whole()
    for name, tensor in got.items():
        if not torch.allclose(tensor.double(), expected[name].double(), rtol=2**-8, atol=2**-10):
            yield "bfloat16 models are not merged as the same numbers in float64: widen x to float32 before you add"
            return


def _equal(method: Fold) -> Iterator[str]:
    given = small_models(method.stats)
    trial = try_out(method, replace(given, models=(given.base,) * 3), DIGESTS[:3])
    trial.finish(trial.absorbed())  # raises for NaN: norms and angles of zero task vectors are 0
    yield from ()


CHECKS: dict[str, Callable[[Fold], Iterable[str]]] = {
    "storing the state": _stored,
    "taking steps twice": _pure,
    "taking steps in place": _owned,
    "folding models again": _repeated,
    "folding in slices": _slices,
    "folding in another order": _orders,
    "taking a model out": _removal,
    "folding bfloat16 models": _half,
    "folding models that equal their base": _equal,
}


def _models(method: Fold) -> tuple[Tensors, ...]:
    return small_models(method.stats).models


def _doubled(state: Tensors) -> dict[str, torch.Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in state.items()}


def _flat(held: Held) -> dict[str, torch.Tensor]:
    return {f"{name}/{key}": x for name, state in held.states.items() for key, x in state.items()}


def _num_bytes(held: Held) -> int:
    return sum(x.nbytes for x in _flat(held).values())


def _copy(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {key: x.clone() for key, x in tensors.items()}


def _same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _close(a: State, b: State) -> bool:
    return all(torch.allclose(a[key].double(), b[key].double(), rtol=TOLERANCE, atol=TOLERANCE) for key in a)
