"""The methods that are compared, each as nothing but config settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from dimat.config import load_config
from dimat.errors import ConfigError, PluginError


@dataclass(frozen=True, slots=True)
class Method:
    """A column of the comparison."""

    settings: tuple[str, ...]
    what: str
    gradient: bool = False
    """Whether agents exchange at every training step instead of once a round."""


FRESH = ("merge.optimizer_state=reset",)
"""As published: DIMAT's code makes a new optimiser after each merge, for its own method and for averaging."""
EACH_ROUND = ("merge.basis=each_round", "merge.skip=never")
"""As published: every neighbour is matched in every round, also where nothing is to be found."""
CALIBRATED = ("merge.calibrate=batchnorm", "merge.calibrate_samples=512")
"""The rivals that calibrate get more samples than dimat's default takes."""
METHODS: Mapping[str, Method] = {
    "wa": Method(("merge.align=none", "merge.calibrate=none", *FRESH), "plain weighted averaging of all tensors"),
    "wa_own": Method(
        ("merge.align=none", *CALIBRATED, *FRESH),
        "the same, recalibrated on own samples",
    ),
    "wm": Method(
        ("merge.align=weights", *EACH_ROUND, *CALIBRATED, *FRESH),
        "weight matching in each round",
    ),
    "dimat_local": Method(
        ("merge.align=activations", *EACH_ROUND, "merge.probe=local", *CALIBRATED, *FRESH),
        "DIMAT as published, but with each agent's own samples as probe",
    ),
    "dimat_shared": Method(
        ("merge.align=activations", *EACH_ROUND, "merge.probe=shared", *CALIBRATED, *FRESH),
        "DIMAT as published: the probe is drawn from everybody's data",
    ),
    "dimat": Method((), "dimat's default settings"),
    "dsgd": Method(("algorithm=dsgd",), "CDSGD: neighbours are mixed at every step", gradient=True),
    "cdmsgd": Method(("algorithm=cdmsgd",), "the same with momentum", gradient=True),
    "sgp": Method(("algorithm=sgp",), "stochastic gradient push: push-sum on directed graphs", gradient=True),
    "cga": Method(("algorithm=cga",), "cross-gradient aggregation", gradient=True),
    "swarm": Method(("algorithm=swarm",), "SwarmSGD: random pairs average", gradient=True),
    "choco": Method(("algorithm=choco",), "CHOCO-SGD: compressed gossip", gradient=True),
}
RIVALS = ("wa", "wa_own", "wm", "dimat_local")
"""What dimat's default is held against: all that uses local data only and merges once a round."""


def why_not(method: str) -> str | None:
    """Why the config of this version cannot say the method, or None when it can."""
    try:
        config = load_config(None, METHODS[method].settings)
        if METHODS[method].gradient:
            import_module("dimat.agent.build").build_algorithm(config)  # not at the top: torch comes with it
    except (ConfigError, PluginError) as error:
        return " ".join(str(error).split())
    return None
