"""One merged model on one task: the module is the task's, the tensors are the ledger's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dimat.continual.clock import now
from dimat.continual.entry import Version
from dimat.continual.evaluations import Judgement, pack
from dimat.continual.ledger import Ledger
from dimat.continual.manifest import STATES
from dimat.continual.state import reading
from dimat.continual.step import merged_tensor
from dimat.errors import DimatError, TaskError, UsageError
from dimat.modelfile import fit


def merged_at(ledger: Ledger, version: Version) -> dict[str, torch.Tensor]:
    """The merged model of one version, in the base's dtypes.

    Raises:
        UsageError: the version's state is not kept any more.
    """
    path = None if version.file is None else ledger.path / STATES / version.file
    try:
        with reading(path, ledger.manifest, ledger.base, version.digest) as held:
            base, fold = ledger.base, ledger.fold
            return {name: merged_tensor(fold, base, held, name, base.read(name)) for name in base.tensors}
    except FileNotFoundError:
        raise UsageError(
            f"the state of version {version.version} is not kept any more, so that it cannot be evaluated",
            hint="init --keep N keeps more states; add --evaluate FILE evaluates each version when it is made",
        ) from None


def judge(ledger: Ledger, version: Version, merged: Mapping[str, torch.Tensor], task: Any, label: str) -> Judgement:
    """How accurate `merged` is on `task`.

    Args:
        ledger: whose base tells the names of the tensors.
        version: what `merged` is.
        merged: all tensors of the model.
        task: has `model()`, and `correct(model)` or `evaluate(model)`; see `dimat.continual.tasklist`.
        label: the task's.

    Raises:
        SchemaError: the task's module has other tensors than the ledger; the first is named with both shapes.
        TaskError: the task fails, or answers with something else than expected.
    """
    module = _module(task, label)
    module.load_state_dict(fit(module, ledger.base.file, f"task {label}").state(merged))
    module.eval()
    right, accuracy, num_samples = None, math.nan, None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if callable(getattr(task, "correct", None)):
                right = task.correct(module)
            else:
                told = task.evaluate(module)
    except DimatError:
        raise
    except (Exception, SystemExit) as error:  # somebody's code runs here, and may raise anything
        raise TaskError(f"task {label} fails on version {version.version}: {type(error).__name__}: {error}") from error
    if right is not None:
        right = _samples(right, label)
        accuracy, num_samples = float(right.mean()), len(right)
    else:
        accuracy = _share(told, label)
    packed = None if right is None else pack(right)
    return Judgement(version.version, label, accuracy, num_samples, packed, now())


def _module(task: Any, label: str) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = task.model()
    except DimatError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"task {label}: its model cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise TaskError(f"task {label}: model() returned a {type(module).__name__}, expected a torch.nn.Module")
    return module


def _samples(answer: Any, label: str) -> NDArray[np.bool_]:
    told = answer.detach().cpu().numpy() if isinstance(answer, torch.Tensor) else np.asarray(answer)
    if told.dtype != np.bool_ or told.ndim != 1 or not len(told):
        raise TaskError(
            f"task {label}: correct(model) returned {told.dtype} of shape {told.shape}, expected one bool for each "
            "test sample, at least one"
        )
    return told


def _share(told: Any, label: str) -> float:
    keys = sorted(map(str, told)) if isinstance(told, Mapping) else None
    if keys is None or "accuracy" not in keys:
        what = f"the keys {', '.join(keys)}" if keys is not None else f"a {type(told).__name__}"
        raise TaskError(f"task {label}: evaluate(model) returned {what}, expected a mapping with accuracy")
    try:
        accuracy = float(told["accuracy"])
    except (TypeError, ValueError):
        accuracy = math.nan
    if not 0 <= accuracy <= 1:
        raise TaskError(f"task {label}: its accuracy is {told['accuracy']!r}, expected a share from 0 to 1")
    return accuracy
