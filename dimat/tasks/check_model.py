"""The checks of what a task does with a model: make it, its loss, its evaluation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dimat.tasks.findings import Finding, Trial, ok, problem, same, warning


def check_signatures(trial: Trial) -> Iterator[Finding]:
    """The methods take the arguments that the runtime gives them."""
    calls: dict[str, tuple[str, ...]] = {
        "model": (),
        "data": ("agent", "num_agents", "seed"),
        "loss": ("model", "batch"),
        "evaluate": ("model",),
        "probe": (),
    }
    task, wrong = trial.make(), False
    for name, arguments in calls.items():
        signature = inspect.signature(getattr(task, name))
        try:
            signature.bind(*arguments)
        except TypeError as error:
            wrong = True
            yield problem(
                "methods",
                f"{name}{signature} cannot be called as {name}({', '.join(arguments)}): {error}",
                f"write def {name}({', '.join(('self', *arguments))})",
            )
    if not wrong:
        yield ok("methods", f"has {', '.join(calls)}, with the arguments that they are called with")


def check_model(trial: Trial) -> Iterator[Finding]:
    """A fresh module each time, initialised from the global seed and nothing else."""
    task = trial.make()
    first, again = trial.seeded_model(task, trial.seed), trial.seeded_model(task, trial.seed)
    if not isinstance(first, nn.Module):
        yield problem(
            "model", f"model() returned a {type(first).__name__}", "return a torch.nn.Module, not trained yet"
        )
        return
    if not list(first.parameters()):
        yield problem("model", "the model has no parameters to train", "register layers as attributes")
        return
    if first is again or {id(p) for p in first.parameters()} & {id(p) for p in again.parameters()}:
        yield problem("model", "model() returns the same module each time", "make a new module in each call of model()")
        return
    if not same(first.state_dict(), again.state_dict()):
        yield problem(
            "model",
            "the same global seed gives different initial weights",
            "draw them from torch's global generator only: no generator of your own, no time, no set order",
        )
    elif same(first.state_dict(), trial.seeded_model(task, trial.seed + 1).state_dict()):
        yield problem(
            "model",
            "two global seeds give the same initial weights: agents could not start differently",
            "do not call torch.manual_seed in model(); the caller seeds",
        )
    else:
        size = sum(parameter.numel() for parameter in first.parameters())
        yield ok("model", f"a fresh module of {size:,} parameters, initialised from the global seed")


def check_loss(trial: Trial) -> Iterator[Finding]:
    """A finite scalar whose gradient reaches the parameters."""
    task, loader = trial.shard(0)
    model = trial.seeded_model(task, trial.seed)
    model.train()
    loss = task.loss(model, next(iter(loader)))
    cure = "return a scalar tensor made from the model's outputs, such as cross_entropy(model(x), y)"
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        yield problem("loss", f"loss() returned {what}, expected a scalar tensor", cure)
        return
    if not loss.requires_grad:
        yield problem("loss", "the loss has no gradient", f"{cure}; no .item(), .detach() or no_grad")
        return
    if not torch.isfinite(loss):
        yield problem("loss", f"the loss of an untrained model is {loss.item()}", "look for NaN in the data")
        return
    torch.autograd.backward(loss)
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        yield warning("loss", f"no gradient reaches {', '.join(idle[:5])}", "remove parameters that have no effect")
    else:
        yield ok("loss", f"a scalar with a gradient for every parameter, {loss.item():.3f} untrained")


def check_evaluate(trial: Trial) -> Iterator[Finding]:
    """`accuracy` and `loss`, finite and repeatable, and a model that is left as it was."""
    task, _ = trial.shard(0)
    model = trial.seeded_model(task, trial.seed)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = task.evaluate(model)
    if not isinstance(result, Mapping):
        yield problem(
            "evaluate", f"evaluate() returned a {type(result).__name__}", "return {'accuracy': ..., 'loss': ...}"
        )
        return
    found = []
    for name in ("accuracy", "loss"):
        value = result.get(name)
        if value is None:
            text = f"evaluate() returned no {name}, only {', '.join(map(str, result)) or 'nothing'}"
            found.append(problem("evaluate", text, f"add {name!r} to the dictionary"))
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            text = f"{name} is {value!r}, expected a finite float"
            found.append(problem("evaluate", text, f"return float({name}); look for NaN in the data"))
    accuracy = result.get("accuracy")
    if isinstance(accuracy, int | float) and math.isfinite(accuracy) and not 0 <= accuracy <= 1:
        found.append(problem("evaluate", f"accuracy is {accuracy}", "return a share between 0 and 1"))
    if not same(before, model.state_dict()):
        cure = "call model.eval() first and train nothing: batch norm in training mode changes its statistics"
        found.append(problem("evaluate", "evaluate() changes the model", cure))
    elif not found and not same(dict(result), dict(task.evaluate(model))):
        cure = "evaluate on fixed samples in eval mode"
        found.append(problem("evaluate", "the same model is evaluated differently the second time", cure))
    yield from found or [ok("evaluate", f"accuracy {accuracy:.3f} untrained, the model is left as it was")]
