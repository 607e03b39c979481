"""What launch/ and docs/launch.md hold parses, and every option of dimat's that they use exists."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
import yaml

from dimat.cli.app import app
from dimat.config import load_config

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
DOCS = ROOT / "docs" / "launch.md"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
COMMANDS = ("agent", "coordinator", "run", "report", "doctor")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


def options_of(command: str) -> set[str]:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    parameters = group.commands[command].params  # type: ignore[attr-defined]
    return {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """dimat's commands in a text, each with the long options up to the end of its line."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(rf"(?:dimat|command:|args: \[) ?({'|'.join(COMMANDS)})\b([^\n&#`]*)", joined)
    return [(name, re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) for name, rest in found]


FILES = [*SCRIPTS, LAUNCH / "compose.yaml", LAUNCH / "kubernetes.yaml", DOCS]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_option_exists(path: Path) -> None:
    commands = commands_in(path.read_text(encoding="utf-8"))
    assert commands, "nothing was looked at"
    for name, options in commands:
        assert set(options) <= options_of(name), f"dimat {name} in {path.name}"


def test_an_option_that_does_not_exist_would_be_seen() -> None:
    [(name, options)] = commands_in("x -m dimat agent run.yaml \\\n   --bind 0.0.0.0 --no-such-thing # --not-this")
    assert (name, options) == ("agent", ["--bind", "--no-such-thing"])
    assert not set(options) <= options_of(name)


def test_compose_has_every_agent_once() -> None:
    compose = yaml.safe_load((LAUNCH / "compose.yaml").read_text())
    agents = {name: service for name, service in compose["services"].items() if name != "coordinator"}
    config = load_config(LAUNCH / "four.yaml")
    assert len(agents) == config.agents
    for id in range(config.agents):
        words = shlex.split(agents[f"agent-{id}"]["command"])
        assert words[words.index("--id") + 1] == str(id)
        assert words[words.index("--advertise") + 1] == f"agent-{id}"
        assert words[words.index("--coordinator") + 1] == "coordinator:29401"
    for service in compose["services"].values():
        assert set(service["networks"]) <= set(compose["networks"])
        assert {source["source"] for source in service["configs"]} <= set(compose["configs"])
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(compose["volumes"])


def test_kubernetes_names_what_it_uses() -> None:
    documents = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))
    assert all({"apiVersion", "kind", "metadata"} <= set(document) for document in documents)
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    by_name = {document["metadata"]["name"]: document for document in documents if document["kind"] == "Job"}
    config = yaml.safe_load(documents[0]["data"]["run.yaml"])
    agents = by_name["dimat-agents"]["spec"]
    assert agents["completions"] == agents["parallelism"] == config["agents"] == 4
    for job in by_name.values():
        pod = job["spec"]["template"]["spec"]
        assert ("Service", pod["subdomain"]) in names
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert ("ConfigMap", volumes["config"]["configMap"]["name"]) in names
        assert ("PersistentVolumeClaim", volumes["runs"]["persistentVolumeClaim"]["claimName"]) in names
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            assert all(isinstance(word, str) for word in container["args"])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("together", [r"--nnodes 2 --nproc-per-node 4 .*keep_alive_max_attempt=12 .*-m dimat agent .*--advertise one"]),
        (
            "per-agent",
            [
                r"-m dimat coordinator .*--host 0.0.0.0 --port 20042 --advertise one --insecure",
                r"--standalone --nproc-per-node 2 .*-m dimat agent .*--id 0 --coordinator one:20042",
            ],
        ),
    ],
)
def test_what_slurm_is_asked_to_start(tmp_path: Path, shape: str, expected: list[str]) -> None:
    """With an srun that runs one task here, and a Python that says what it was asked to run."""
    bin = tmp_path / "bin"
    bin.mkdir()
    fakes = {
        "scontrol": 'printf "one\\ntwo\\n"',
        # Options of srun's own come first; then the command.
        "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 SLURMD_NODENAME=one "$@"',
        "python": f'if [ "$1" = -c ]; then exec {shlex.quote(sys.executable)} "$@"; fi; echo "$@"',
    }
    for name, body in fakes.items():
        (bin / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (bin / name).chmod(0o755)
    config = tmp_path / "run.yaml"
    config.write_text("agents: 4\nlaunch: {ranks_per_agent: 2}\n")
    environment = {
        **os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "PYTHON": str(bin / "python"), "SHAPE": shape,
        "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "one,two", "SLURM_JOB_ID": "42", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = ["bash", str(LAUNCH / "slurm.sbatch"), str(config), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for pattern in expected:
        assert re.search(pattern, done.stdout), done.stdout
    config.write_text("agents: 5\n")
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "5 agents cannot be spread evenly over 2 nodes" in refused.stderr


def test_every_file_that_the_page_names_exists() -> None:
    text = DOCS.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:launch|benchmarks)/[\w.]+\w", text))
    assert len(named) >= 8
    assert all((ROOT / name).is_file() for name in named), named
    headings = {
        re.sub(r"[^\w -]", "", line).strip().replace(" ", "-").lower() for line in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert target in headings
