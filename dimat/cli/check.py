"""`dimat check task|topology|merge|config`: each finding a sentence with its cure; exit code 2 when there is one."""

from __future__ import annotations

import json
from pathlib import Path

from dimat.errors import EXIT_DONE, EXIT_USAGE


def check_task_command(reference: str, settings: list[str], format: str) -> int:
    """Check a task, made as a run with these settings would make it."""
    from dimat.cli import check_task
    from dimat.config import load_config

    # Without a partition of its own the checks keep their default, which every task can deal.
    config = load_config(None, ["task.partition.scheme=iid", *settings])
    findings = check_task.check(
        reference,
        model=config.task.model,
        data=config.task.data,
        partition=config.task.partition.model_dump(exclude_none=True),
        batch_size=config.train.batch_size,
        options=config.task.options,
        num_agents=config.agents,
        seed=config.seed,
    )
    if format == "json":
        print(json.dumps(check_task.as_json(reference, findings)))
    else:
        print(check_task.as_text(reference, findings))
    return check_task.exit_code(findings)


def check_topology_command(reference: str, format: str) -> int:
    """Check a topology."""
    from dimat.topology import check_topology

    return _tell("topology", reference, check_topology(reference), format)


def check_merge_command(reference: str, format: str) -> int:
    """Check a merge method."""
    from dimat.merge.check import check_merge

    return _tell("merge", reference, check_merge(reference), format)


def check_config_command(path: Path, settings: list[str], format: str) -> int:
    """Check a config by building its first agent; what is wrong is raised as for a run."""
    from dimat.agent.preflight import check_run
    from dimat.config import load_config

    config = load_config(path, settings)
    check_run(config)
    return _tell("config", str(path), [], format)


def _tell(kind: str, reference: str, problems: list[str], format: str) -> int:
    if format == "json":
        print(json.dumps({kind: reference, "ok": not problems, "problems": problems}))
    else:
        for problem in problems:
            print(f"PROBLEM  {problem}")
        print(f"{reference} {'keeps its contract' if not problems else f'has {len(problems)} problem(s)'}")
    return EXIT_USAGE if problems else EXIT_DONE
