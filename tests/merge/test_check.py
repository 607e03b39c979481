"""What `dimat check merge` tells the author of a method: each broken promise is found, and named."""

from pathlib import Path

import pytest

from dimat.merge.check import check_merge

OWN = '''
import dataclasses
import torch
from dimat.merge import Fold, Survey

def _absorb(state, x, base, w, stats=None, survey=None):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return {"weight": state["weight"] + w, "sum": state["sum"] + w * wide if "sum" in state else w * wide}

def _combine(a, b):
    if "sum" not in a or "sum" not in b:
        return b if "sum" in b else a
    return {key: a[key] + b[key] for key in a}

def _remove(state, x, base, w, stats=None, survey=None):
    return _absorb(state, x, base, -w)

MEAN = Fold(
    init=lambda base: {"weight": torch.zeros((), dtype=torch.float64)},
    absorb=_absorb,
    combine=_combine,
    finish=lambda state, base, scalars: state["sum"] / state["weight"].to(state["sum"].dtype),
    remove=_remove,
    elementwise=True,
)

def method(**changes):
    return dataclasses.replace(MEAN, **changes)

def good():
    """A mean."""
    return method()

def counts_twice_in_place():
    """A mean."""
    from dimat.merge.api import with_owned

    def absorb(*args, **kwargs):
        return _absorb(*args, **kwargs)

    def owned(state, x, base, w, stats=None, survey=None):
        return _absorb(_absorb(state, x, base, w), x, base, w)

    return method(absorb=with_owned(absorb, owned))

def undocumented():
    return method()

def unexplained(*, scale: float = 1.0):
    """A mean."""
    return method()

def stats_as_text():
    """A mean."""
    return method(stats="fisher")

def memory_unknown():
    """A mean."""
    return method(memory="little")

def tailored_otherwise():
    """A mean."""
    return method(tailor=lambda name, shape: method(norms=True))

def raises():
    """A mean."""
    return method(finish=lambda state, base, scalars: state["total"])

def flattens():
    """A mean."""
    return method(finish=lambda state, base, scalars: MEAN.finish(state, base, scalars).reshape(-1))

def gives_nan():
    """A mean."""
    return method(finish=lambda state, base, scalars: state["sum"] * float("nan"))

def counts_in_python():
    """A mean."""
    def absorb(state, x, base, w, stats=None, survey=None):
        return {**_absorb(state, x, base, w), "count": int(state.get("count", 0)) + 1}
    return method(absorb=absorb, combine=lambda a, b: {**_combine(a, b), "count": 0})

def writes_into_the_state():
    """A mean."""
    def absorb(state, x, base, w, stats=None, survey=None):
        if "sum" in state:
            state["sum"].add_(w * x)
            return {"weight": state["weight"] + w, "sum": state["sum"]}
        return _absorb(state, x, base, w)
    return method(absorb=absorb)

def writes_into_the_model():
    """A mean."""
    def absorb(state, x, base, w, stats=None, survey=None):
        answer = _absorb(state, x, base, w)
        x.mul_(2)
        return answer
    return method(absorb=absorb)

def draws():
    """A mean."""
    return method(finish=lambda state, base, scalars: torch.randn_like(state["sum"]))

def remembers():
    """A mean."""
    seen = []
    def absorb(state, x, base, w, stats=None, survey=None):
        seen.append(x)
        return {**_absorb(state, x, base, w), "last": seen[-2] if len(seen) > 1 and seen[-2].shape == x.shape else x}
    return method(absorb=absorb, finish=lambda state, base, scalars: state["last"], commutative=False, remove=None)

def keeps_all():
    """A mean."""
    def absorb(state, x, base, w, stats=None, survey=None):
        return {**state, str(len(state)): x.double()}
    return Fold(
        init=lambda base: {},
        absorb=absorb,
        combine=lambda a, b: {str(i): x for i, x in enumerate([*a.values(), *b.values()])},
        finish=lambda state, base, scalars: torch.stack(list(state.values())).mean(0),
    )

def keeps_all_and_says_so():
    """A mean."""
    return dataclasses.replace(keeps_all(), memory="linear")

def looks_at_the_whole_tensor():
    """A mean."""
    def finish(state, base, scalars):
        return state["sum"] - state["sum"].mean() if state["sum"].numel() else state["sum"]
    return method(finish=finish)

def keeps_a_norm_of_rows():
    """A mean."""
    def absorb(state, x, base, w, stats=None, survey=None):
        return {**_absorb(state, x, base, w), "rows": torch.zeros(3)}
    return method(absorb=absorb)

def last_one_wins():
    """The last."""
    def absorb(state, x, base, w, stats=None, survey=None):
        return {**_absorb(state, x, base, w), "sum": x.clone(), "weight": torch.ones(())}
    return method(absorb=absorb, remove=None)

def combines_half():
    """A mean."""
    return method(combine=lambda a, b: a if "sum" in a else b)

def cannot_join_nothing():
    """A mean."""
    return method(combine=lambda a, b: {key: a[key] + b[key] for key in ("weight", "sum")})

def removes_the_wrong_weight():
    """A mean."""
    return method(remove=lambda state, x, base, w, stats=None, survey=None: _absorb(state, x, base, -1.0))

def adds_in_the_dtype_it_gets():
    """A mean."""
    def absorb(state, x, base, w, stats=None, survey=None):
        return {"weight": state["weight"] + w, "sum": state["sum"] + w * x if "sum" in state else w * x}
    return method(absorb=absorb)

def divides_by_the_distance():
    """A mean of directions."""
    def absorb(state, x, base, w, stats=None, survey=None):
        tau = x.to(torch.promote_types(x.dtype, torch.float32)) - base
        return _absorb(state, tau / torch.linalg.vector_norm(tau) if tau.numel() else tau, base, w)
    return method(absorb=absorb, remove=None, needs_base=True, elementwise=False)

def surveys_slices():
    """A mean less the last value that was seen."""
    survey = Survey(
        "tensor",
        lambda: {},
        lambda state, x, base: {"mean": x.double().mean() if x.numel() else torch.zeros(())},
        lambda state: ({}, state),
    )
    def absorb(state, x, base, w, stats=None, survey=None):
        return _absorb(state, x - survey["mean"], base, w)
    return method(absorb=absorb, survey=survey)

def views():
    """A mean."""
    def absorb(state, x, base, w, stats=None, survey=None):
        flat = torch.as_strided(x, (x.numel(),), (1,)) if x.numel() else x.reshape(-1)
        return _absorb(state, flat.reshape(x.shape), base, w)
    return method(absorb=absorb)
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own_merges.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("name", ["good", "keeps_all_and_says_so"])
def test_a_method_that_keeps_its_contract_has_no_problem(own: Path, name: str) -> None:
    assert check_merge(f"{own}:{name}") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("undocumented", "no docstring"),
        ("unexplained", "option 'scale' is not explained"),
        ("stats_as_text", "stats is 'fisher'"),
        ("memory_unknown", "memory is 'little'"),
        ("tailored_otherwise", "another norms"),
        ("raises", "raised KeyError: 'total'"),
        ("flattens", "keep the shape"),
        ("gives_nan", "NaN or Inf"),
        ("counts_in_python", "make scalars 0-d tensors"),
        ("writes_into_the_state", "absorb changed the state"),
        ("writes_into_the_model", "absorb changed a tensor of a model"),
        ("draws", "different bytes"),
        ("remembers", "keep nothing but the state"),
        ("keeps_all", "declare memory='linear'"),
        ("looks_at_the_whole_tensor", "declare elementwise=False"),
        ("keeps_a_norm_of_rows", "'rows' of the state is [3]"),
        ("last_one_wins", "declare commutative=False"),
        ("combines_half", "combine of two parts is not the whole"),
        ("cannot_join_nothing", "raised KeyError"),
        ("removes_the_wrong_weight", "remove does not undo absorb"),
        ("adds_in_the_dtype_it_gets", "widen x to float32"),
        ("divides_by_the_distance", "equal their base raised UsageError"),
        ("surveys_slices", "survey finds something else in slices"),
        ("views", "row-major order"),
        ("counts_twice_in_place", "a state of its own gives other bits"),
    ],
)
def test_a_broken_promise_is_found(own: Path, name: str, words: str) -> None:
    problems = check_merge(f"{own}:{name}")
    assert any(words in problem for problem in problems), problems


def test_a_method_that_cannot_be_made_is_one_problem() -> None:
    assert "Did you mean 'mean'" in check_merge("maen")[0]
    assert "no option 'densty'" in check_merge("ties", {"densty": 0.2})[0]
