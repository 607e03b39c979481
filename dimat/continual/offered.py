"""What may be offered to a served ledger: everything that can be known of a model before a byte of it has come."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dimat.continual.offer import check_name, check_weight
from dimat.errors import SchemaError, UsageError
from dimat.merge.source import Source
from dimat.messages import ITEM_SIZES, Schema, TensorSpec
from dimat.transport.continual import CHECKSUM_BYTES, Offer, model_digest

FLOATS = ("float64", "float32", "float16", "bfloat16")
_MAX_WHO = 200
_DIGEST = re.compile(r"[0-9a-f]{64}")


def schema_of(source: Source) -> Schema:
    """The tensors of a model as they are announced.

    Raises:
        UsageError: a dtype that does not travel; the tensor is named.
    """
    specs = []
    for name, info in source.tensors.items():
        dtype = str(info.dtype).removeprefix("torch.")
        if dtype not in ITEM_SIZES:
            raise UsageError(
                f"tensor {name!r} of {source.label} is {dtype}, which does not travel; expected one of "
                f"{', '.join(ITEM_SIZES)}"
            )
        specs.append(TensorSpec(name, dtype, info.shape))
    return Schema(tuple(specs))


def check_offer(offer: Offer, base: Schema) -> None:
    """Whether a model may come.

    Floating-point tensors may be of any floating-point dtype that travels, whatever the base's; others of the base's.

    Raises:
        UsageError: its name, weight, sender or digest cannot be.
        SchemaError: the first tensor, in the base's order, that is not the base's, and both shapes.
    """
    check_name(offer.name)
    check_weight(offer.weight, offer.name)
    for what, text in (("sender", offer.who), ("session", offer.session)):
        if len(text) > _MAX_WHO or not text.isprintable():
            raise UsageError(f"the {what} of {offer.name} is said in more than {_MAX_WHO} printable characters")
    coming = {spec.name: spec for spec in offer.tensors}
    for spec in base.tensors:
        _check_tensor(offer, coming, spec)
    known = {spec.name for spec in base.tensors}
    for spec in offer.tensors:
        if spec.name not in known:
            raise SchemaError(
                f"model {offer.name} has tensor {_short(spec.name)} {list(spec.shape[:8])}, the ledger's base has not"
            )
    if len(coming) != len(offer.tensors):
        raise UsageError(f"model {offer.name} announces {len(offer.tensors)} tensors under {len(coming)} names")
    if len(offer.checksums) != len(offer.tensors) or any(len(one) != CHECKSUM_BYTES for one in offer.checksums):
        raise UsageError(f"model {offer.name} comes without a SHA-256 of {CHECKSUM_BYTES} bytes for each tensor")
    if not _DIGEST.fullmatch(offer.digest) or offer.digest != model_digest(offer.tensors, offer.checksums):
        raise UsageError(f"the digest of model {offer.name} is not the one that follows from its tensors' digests")


def _check_tensor(offer: Offer, coming: Mapping[str, TensorSpec], spec: TensorSpec) -> None:
    found = coming.get(spec.name)
    if found is None:
        raise SchemaError(f"the ledger's base has tensor {spec.name!r} {list(spec.shape)}, model {offer.name} has not")
    if found.shape != spec.shape:
        raise SchemaError(
            f"tensor {spec.name!r} is {list(found.shape[:8])} in model {offer.name} and {list(spec.shape)} in the "
            "ledger's base"
        )
    if found.dtype != spec.dtype and not (found.dtype in FLOATS and spec.dtype in FLOATS):
        raise SchemaError(
            f"tensor {spec.name!r} is {found.dtype} in model {offer.name} and {spec.dtype} in the ledger's base"
        )


def most_bytes(base: Schema) -> int:
    """What the largest model takes that may be offered: the base's entries, its floats in the widest dtype."""
    wide = (TensorSpec(one.name, FLOATS[0] if one.dtype in FLOATS else one.dtype, one.shape) for one in base.tensors)
    return sum(one.num_bytes for one in wide)


def claimed(who: str, peer: str) -> str:
    """What the journal says of a sender: their own word, which nobody has checked, and gRPC's word for the address.

    >>> claimed("anna@laptop", "ipv4:10.0.0.7:51034"), claimed("", "ipv6:%5B::1%5D:51034")
    ('anna@laptop (as claimed) from 10.0.0.7', 'unnamed from ::1')
    """
    from urllib.parse import unquote

    host = unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]") or peer
    return f"{who} (as claimed) from {host}" if who else f"unnamed from {host}"


def _short(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:100]}... ({len(name)} characters)")
