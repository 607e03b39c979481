"""Whether models share a vocabulary: a mergekit recipe may ask for one tokenizer for all of them.

Rows of an embedding are merged by their number. So where tokenizers differ, and the recipe wants rows rearranged, the
recipe is refused; where all are alike nothing would be rearranged, and it is merged as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from dimat.errors import ConfigError
from dimat.recipes.mergekit import MergekitRecipe

_PLAIN = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def check_vocabulary(recipe: MergekitRecipe, models: Sequence[Path]) -> str | None:
    """Refuse what would change the vocabulary; a remark for the user, where there is one to make.

    Args:
        recipe: the recipe.
        models: all of its models, the base among them.

    Raises:
        ConfigError: tokens would be added, embeddings padded, or rows rearranged.
    """
    if recipe.tokenizer is not None and recipe.tokenizer.tokens:
        raise ConfigError(f"tokenizer.tokens {list(recipe.tokenizer.tokens)} would change embeddings: not supported")
    if recipe.tokenizer is not None and recipe.tokenizer.pad_to_multiple_of:
        raise ConfigError("tokenizer.pad_to_multiple_of would change the number of rows of embeddings: not supported")
    source = recipe.vocabulary
    if source is None:
        return None
    key = "tokenizer" if recipe.tokenizer else "tokenizer_source"
    asked = list(models) + ([Path(source)] if source not in ("base", "union") else [])
    found = {path: vocabulary_of(path) for path in dict.fromkeys(asked)}
    known = {path: words for path, words in found.items() if words is not None}
    for first, other in pairwise(known):
        if known[other] != known[first]:
            differ = sorted(known[first].items() ^ known[other].items(), key=str)
            raise ConfigError(
                f"{key} {source!r} would rearrange embeddings: the vocabularies of {first} and {other} differ, for one "
                f"in {differ[0][0]!r}; not supported",
                hint="mergekit-tokensurgeon can bring a model to another's vocabulary first",
            )
    silent = [str(path) for path in found if path not in known]
    if silent and source == "union":
        raise ConfigError(
            f"{key} 'union' would join vocabularies, and {silent[0]} has no tokenizer file that tells its own: whether "
            "anything would change cannot be known",
            hint=f"leave {key} out where all models share a vocabulary",
        )
    return f"{silent[0]} has no tokenizer file: its vocabulary is taken to be that of the others" if silent else None


def vocabulary_of(folder: Path) -> Mapping[str, object] | None:
    """Token -> number from a model folder's tokenizer; digests of files where that is all there is; None without."""
    whole = folder / "tokenizer.json"
    if whole.is_file():
        try:
            content = json.loads(whole.read_text(encoding="utf-8"))
            words = content["model"]["vocab"]
            # Unigram models list (token, score); their place is their number.
            tokens = dict(words) if isinstance(words, dict) else {word: i for i, (word, _) in enumerate(words)}
            added = {one["content"]: one["id"] for one in content.get("added_tokens") or []}
        except (ValueError, KeyError, TypeError):
            return {"tokenizer.json": _digest(whole)}
        return {**tokens, **added}
    plain = {name: _digest(folder / name) for name in _PLAIN if (folder / name).is_file()}
    return plain or None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
