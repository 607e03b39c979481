"""From a config to agents: names become objects, seeds become initialisations, mistakes become messages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dimat.agent.algorithms import Algorithm, make_algorithm
from dimat.agent.checkpoint import rounds_held
from dimat.agent.gate import labelled_batches
from dimat.agent.randomness import capture, seed_all
from dimat.agent.state import Agent
from dimat.agent.statistics import has_statistics
from dimat.agent.train import make_optimizer
from dimat.align import PermutationSpec, permutation_spec
from dimat.config import RunConfig
from dimat.errors import ConfigError, SchemaError, UsageError
from dimat.merge import Fold, make_fold
from dimat.messages import Schema
from dimat.seeds import derive_seed
from dimat.snapshot.encode import schema_of
from dimat.statedict import load_into
from dimat.tasks import PROBE_LIMIT, load_task, probe_batches
from dimat.topology import Topology, load_topology
from dimat.transport.base import Transport


def build_topology(config: RunConfig) -> Topology:
    """The graph and mixing matrix of a run, validated for its number of agents."""
    part = config.topology
    return load_topology(part.graph, config.agents, mixing=part.mixing, seed=config.seed, options=part.options)


def build_task(config: RunConfig) -> Any:
    """A fresh task object, as the config names it."""
    part = config.task
    return load_task(
        part.name,
        model=part.model,
        data=part.data,
        partition=part.partition.model_dump(exclude_none=True),
        batch_size=config.train.batch_size,
        options=part.options,
    )


def build_method(config: RunConfig) -> Fold:
    """The fold of a run, its options checked.

    Raises:
        PluginError: no method has that name; the closest is named.
        ConfigError: an option that the method does not have, a value that it refuses, or statistics that it needs.
    """
    method = make_fold(config.merge.method, config.merge.options)
    if method.stats:
        raise ConfigError(
            f"merge.method {config.merge.method!r} needs {' and '.join(method.stats)} statistics of each model, and "
            "agents exchange models alone",
            hint="take a method without statistics (`dimat methods` says what each needs), or merge the agents' "
            "checkpoints afterwards: dimat merge",
        )
    return method


def build_algorithm(config: RunConfig) -> Algorithm | None:
    """How the agents train together, its options checked; None for `merge`, which is dimat's own round.

    Raises:
        PluginError: no algorithm has that name; the closest is named.
        ConfigError: an option that it does not have, or something that it cannot run with.
    """
    if config.algorithm.name == "merge":
        return None
    algorithm = make_algorithm(config.algorithm.name, config.algorithm.options)
    algorithm.check(config, build_topology(config))
    return algorithm


def build_agent(
    config: RunConfig,
    agent: int,
    folder: Path,
    session: str,
    make_transport: Callable[[Schema], Transport],
    like: Agent | None = None,
) -> Agent:
    """Make agent number `agent` of the run; nothing is opened, nothing is written.

    With `like`, another agent of the same run and process, the two share what they only read (the topology, the
    permutation groups of a model of the same class and shapes) and the spare module, which holds nothing between uses.

    The order in which random numbers are drawn is part of the contract: a process of its own and a simulation in one
    process make the same agent, bit for bit.

    Raises:
        UsageError: the task, its data, the model or the initial checkpoint do not fit the config.
        AlignmentError: the model's permutation groups cannot be found or do not verify.
    """
    torch.set_num_threads(config.threads)
    method = build_method(config)  # a misspelt option is told before any data is read
    algorithm = build_algorithm(config)
    task = build_task(config)
    seed_all(derive_seed(config.seed, "data", agent))
    loader = task.data(agent, config.num_seats, config.seed)
    model = first_model(config, task, agent if config.init == "different" else None)
    if config.init not in ("same", "different"):
        load_into(model, initial_checkpoint(Path(config.init), agent, model))
    own_samples = probe_batches(task)
    aligns = algorithm is None and config.merge.align != "none" and config.basis != "adopt"
    needs_spare = aligns or config.merge.calibrate == "repair" or (algorithm is not None and algorithm.spare)
    twin = like if like is not None and _are_alike(like.model, model) else None
    spec = None
    if aligns:
        spec = find_groups(model, own_samples) if twin is None else twin.spec
    spare = None if twin is None else twin.spare
    if spare is None and needs_spare:
        spare = copy.deepcopy(model)
    seed_all(derive_seed(config.seed, "train", agent))
    schema = schema_of(model.state_dict(), groups=spec.fingerprint if spec else "")
    made = Agent(
        id=agent,
        config=config,
        folder=folder,
        session=session,
        task=task,
        loader=loader,
        model=model,
        optimizer=make_optimizer(config.train, model),
        schema=schema,
        spec=spec,
        probe=probe_batches(task, "shared") if config.merge.probe == "shared" else own_samples,
        own_samples=own_samples,
        topology=build_topology(config) if like is None else like.topology,
        method=method,
        transport=make_transport(schema),
        start=capture(loader),
        spare=spare,
        basis=config.basis,
        # Agents of one initialisation have one basis from the start: there is nothing to agree on.
        basis_settled=config.init == "same"
        or algorithm is not None
        or (config.merge.align == "none" and config.basis != "adopt"),
    )
    if algorithm is not None:
        made.algorithm, made.schemas = algorithm, algorithm.schemas(agent, model)
        made.remembered = algorithm.begin(agent, model, frozenset(range(config.num_seats)) - {agent})
    else:
        # A method that distrusts its neighbours' models does not take their word for statistics either.
        trusts = method.memory == "constant"
        made.shares_statistics = config.merge.calibrate == "neighbourhood" and trusts and has_statistics(model)
    made.remember_base()
    if config.merge.gate.margin is not None:
        made.gate_batches = labelled_batches(loader, PROBE_LIMIT)
    return made


def first_model(config: RunConfig, task: Any, agent: int | None = None) -> torch.nn.Module:
    """A new model of the run: the one that all have with `init: same`, or `agent`'s own. Reseeds the global streams."""
    seed_all(derive_seed(config.seed, "init", *([] if agent is None else [agent])))
    model: torch.nn.Module = task.model()
    return model


def _are_alike(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models are of one class and printed alike, layer by layer, with the same names and shapes."""
    shapes, others = ({name: tensor.shape for name, tensor in model.state_dict().items()} for model in (one, other))
    return type(one) is type(other) and repr(one) == repr(other) and shapes == others


def find_groups(model: torch.nn.Module, samples: list[tuple[Any, ...]]) -> PermutationSpec:
    """The permutation groups of `model`, proven: a random permutation leaves its outputs unchanged.

    Raises:
        AlignmentError: the model cannot be traced, or a group changes the model's function.
    """
    # Two samples: tracing keeps every activation of its example, and groups do not depend on the batch.
    example = tuple(part[:2] if isinstance(part, torch.Tensor) and part.dim() else part for part in samples[0])
    spec = permutation_spec(model, *example)
    spec.verify(model, *example)
    return spec


def initial_checkpoint(folder: Path, agent: int, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of agent `agent`: `<folder>/<agent>.safetensors`, or the newest of a run's `checkpoints/`.

    Raises:
        UsageError: there is no such file, or it is not a model of this shape; the first tensor that differs is named.
    """
    path = folder / f"{agent}.safetensors"
    if not path.is_file():
        held = rounds_held(folder / str(agent))
        if not held:
            message = f"init: {str(folder)!r} has no {agent}.safetensors (expected one checkpoint per agent, from 0)"
            raise UsageError(message, hint="init is `same`, `different`, or a folder of checkpoints")
        path = folder / str(agent) / f"{held[-1]}.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"init: {path} is not a readable safetensors file: {error}") from None
    if path.parent != folder:
        prefix = "model."
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    expected = schema_of(model.state_dict())
    order = [spec.name for spec in expected.tensors if spec.name in tensors]
    found = schema_of({name: tensors[name] for name in [*order, *sorted(tensors.keys() - set(order))]})
    if difference := expected.difference(found):
        raise SchemaError(f"init: {path} does not fit the model: {difference} (here: the model, there: the file)")
    return tensors
