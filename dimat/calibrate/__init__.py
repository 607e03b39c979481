"""Put a merged model's activations right, on a few hundred samples of one's own.

    recalibrate(merged, batches)                          # nets with batch norm: their running statistics, taken anew
    repair(merged, [a, b], batches, weights=[0.5, 0.5])   # any net: channel means and deviations of the endpoints

Names load when they are used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimat.calibrate.batchnorm import recalibrate
    from dimat.calibrate.channels import ChannelStatistics, channel_statistics, interpolate
    from dimat.calibrate.restore import repair, restore_statistics

_HOMES = {
    "batchnorm": ("recalibrate",),
    "channels": ("ChannelStatistics", "channel_statistics", "interpolate"),
    "restore": ("repair", "restore_statistics"),
}

__all__ = [
    "ChannelStatistics",
    "channel_statistics",
    "interpolate",
    "recalibrate",
    "repair",
    "restore_statistics",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dimat.calibrate.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
