"""`dimat new NAME`: a task module and a config to start from, which run as they are."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path

from dimat.errors import TaskError

# The template is a module like any other, so it is linted, type-checked and tested; its own name stands for the user's.
_TEMPLATE_NAME = "my_task"

_CONFIG = """\
# Run it with `dimat run {name}.yaml`; `-s key=value` changes a value for one run, such as `-s train.epochs=1`.
name: {name}
seed: 0
agents: 5
rounds: 10
task:
  name: {name}.py:Task            # your class; its own parameters go into options
  options: {{}}
train: {{epochs: 2, batch_size: 32, optimizer: sgd, lr: 0.05, momentum: 0.9, lr_schedule: cosine}}
topology: {{graph: ring}}           # `dimat topology list` names others
merge: {{method: mean, align: activations, basis: agree}}
"""


def new_task(name: str, folder: Path = Path()) -> tuple[Path, Path]:
    """Write `name.py` and `name.yaml` into `folder`.

    Returns:
        The paths of the task module and of the config.

    Raises:
        TaskError: `name` cannot name a Python module, the folder does not exist, or one of the files does. Nothing is
            written then.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        proposal = (
            "".join(letter if letter.isalnum() else "_" for letter in name.removesuffix(".py")).strip("_").lower()
        )
        usable = proposal.isidentifier() and not keyword.iskeyword(proposal)
        raise TaskError(
            f"{name!r} cannot name a Python module, expected letters, digits and underscores",
            hint=f"for example: dimat new {proposal if usable else _TEMPLATE_NAME}",
        )
    template = (resources.files("dimat") / "tasks" / "template.py").read_text(encoding="utf-8")
    module, config = folder / f"{name}.py", folder / f"{name}.yaml"
    _write_all({module: template.replace(_TEMPLATE_NAME, name), config: _CONFIG.format(name=name)})
    return module, config


def next_commands(module: Path, config: Path) -> list[str]:
    """What to type next."""
    return [
        f"dimat check task {module}:Task",
        f"dimat run {config}",
    ]


def _write_all(texts: Mapping[Path, str]) -> None:
    """All files or none; never over an existing one, not even one that appears meanwhile."""
    written: list[Path] = []
    try:
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, FileExistsError):
            raise TaskError(
                f"{error.filename} exists already", hint="take another name, or move the file away"
            ) from None
        raise TaskError(f"{error.filename or written[-1]} cannot be written: {error.strerror}") from error
