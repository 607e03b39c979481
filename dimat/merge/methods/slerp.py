"""Spherical interpolation: turn the running model towards each arrival instead of cutting through the sphere."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from dimat.errors import UsageError
from dimat.merge.api import Fold, State
from dimat.merge.digest import slices_of
from dimat.merge.options import choice, number
from dimat.merge.registry import merge_method
from dimat.merge.source import TensorInfo

PARALLEL = 0.9995
"""Above this |cos| two tensors are interpolated linearly: sin(angle) would divide by next to nothing."""


@merge_method
def slerp(*, t: float | None = None, zeros: str = "linear") -> Fold:
    """Great-circle interpolation, tensor by tensor; every further model turns the running one.

    The first model is the start v. Each further model x moves it, both seen as flat vectors at the angle a:

        cos(a) = <v, x> / (||v|| ||x||)
        v <- sin((1 - t) a) / sin(a) * v  +  sin(t a) / sin(a) * x

    Norms enter the angle alone: the vectors that are summed keep their lengths, so that two of equal length give
    one of that length, where a mean would be shorter. Tensors with |cos(a)| > .9995, and a tensor of zeros, which has
    no direction, are interpolated linearly: v <- (1 - t) v + t x. So are scalars, which are always parallel.

    With t left open every model gets its share by weight, t = w / (w + sum of the weights before it): two of equal
    weight meet half-way, and agents may use it with the rows of a mixing matrix. Three models or more depend on the
    order of arrival. Angles are taken in float64, the running tensor is kept in float32 at least.

    mergekit takes exactly two models and wants t; with two and that t this is the same, but for a tensor of zeros,
    which mergekit puts at a right angle to everything (`zeros="orthogonal"`).

    Args:
        t: how far each further model moves the running one, 0 to 1, whatever its weight; left out, weights decide.
        zeros: how a tensor of zeros is interpolated with another: `linear`, or `orthogonal` as in mergekit.

    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; for models, mergekit
    (arXiv 2403.13257).

    >>> from dimat.merge import fold
    >>> models = [{"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}]
    >>> fold("slerp", models)["w"]
    tensor([1.4142, 1.4142])
    """
    fixed = None if t is None else number("t", t, at_least=0, at_most=1)
    right_angle = choice("zeros", zeros, ("linear", "orthogonal")) == "orthogonal"

    def absorb(
        state: State,
        x: torch.Tensor,
        base: torch.Tensor | None,
        w: float,
        stats: Mapping[str, torch.Tensor] | None = None,
        survey: Mapping[str, torch.Tensor] | None = None,
    ) -> State:
        del base, stats, survey  # the running tensor is all that an arrival is compared with
        if w < 0:
            raise UsageError(f"slerp got the weight {w}, expected one of at least 0: it turns towards models, not away")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = state["weight"] + w
        if "point" not in state:
            return {"weight": total, "point": wide.clone()}
        share = fixed if fixed is not None else w / float(total) if total > 0 else 0.0
        return {"weight": total, "point": _turn(state["point"], wide, share, right_angle)}

    return Fold(init=_init, absorb=absorb, combine=_combine, finish=_finish, commutative=False)


def _init(base: torch.Tensor | None) -> State:
    del base  # interpolation runs between the models themselves
    return {"weight": torch.zeros((), dtype=torch.float64)}


def _combine(a: State, b: State) -> State:
    if "point" not in a or "point" not in b:
        return b if "point" in b else a
    raise UsageError("slerp cannot join two merges: its result depends on the order in which models arrive")


def _finish(state: State, base: torch.Tensor | None, scalars: Mapping[str, float]) -> torch.Tensor:
    del base, scalars
    return state["point"]


def _turn(v: torch.Tensor, x: torch.Tensor, t: float, right_angle: bool) -> torch.Tensor:
    near, far = 1.0 - t, t
    cosine = _cosine(v, x)
    if cosine is None and right_angle:
        cosine = 0.0
    if cosine is not None and abs(cosine) <= PARALLEL:
        angle = math.acos(cosine)
        near, far = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return torch.add(v * near, x, alpha=far)


def _cosine(v: torch.Tensor, x: torch.Tensor) -> float | None:
    """Of the angle between two tensors; None when one is zero. A slice at a time is in float64."""
    flat_v, flat_x = v.reshape(-1), x.reshape(-1)
    vv = xx = vx = 0.0
    for start, stop in slices_of(TensorInfo(v.dtype, tuple(v.shape))):
        one, other = flat_v[start:stop].double(), flat_x[start:stop].double()
        vv += float(torch.dot(one, one))
        xx += float(torch.dot(other, other))
        vx += float(torch.dot(one, other))
    return vx / math.sqrt(vv) / math.sqrt(xx) if vv > 0 and xx > 0 else None
