"""What the config.json of a Hugging Face folder says of its weights' dtype."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dimat.modelfile.folder import CONFIG
from dimat.modelfile.model import ModelFile

_DTYPE_KEYS = ("dtype", "torch_dtype")
_DTYPE_NAMES = ("float64", "float32", "float16", "bfloat16")


def config_in(like: ModelFile, dtype: str) -> bytes | None:
    """The config.json of a folder with the dtype of what is written; None where it names none, or that one.

    Without it a model that was written in another dtype would be loaded in the old one.
    """
    try:
        config = json.loads((like.path / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        return None
    changed = _with_dtype(config, dtype)
    return None if changed == config else (json.dumps(changed, indent=2) + "\n").encode()


def _with_dtype(config: Any, dtype: str) -> Any:
    if not isinstance(config, Mapping):
        return config
    return {
        key: dtype if key in _DTYPE_KEYS and value in _DTYPE_NAMES else _with_dtype(value, dtype)
        for key, value in config.items()
    }
