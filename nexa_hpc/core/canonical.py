"""Canonical JSON and its digests: equal values give equal bytes on every host and Python.

Called by `keys`, `digests`, `artifacts` and `registry`. Standard library alone.
"""

from __future__ import annotations

import hashlib
from typing import Any

from nexa_hpc.core.encoding import encoder

_encode = encoder(ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, in ASCII.

    Raises ValueError for NaN and infinities, TypeError for what JSON does not have.
    """
    return _encode(value)


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of `canonical_json(value)` as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def sha256_bytes(payload: bytes) -> str:
    """Return the SHA-256 of `payload` as 64 hex digits."""
    return hashlib.sha256(payload).hexdigest()
