"""Put a merged model's activations right: batch-norm statistics on a few hundred samples of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimat.calibrate.batchnorm import recalibrate

__all__ = ["recalibrate"]


def __getattr__(name: str) -> Any:
    if name == "recalibrate":
        from dimat.calibrate.batchnorm import recalibrate

        return recalibrate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
