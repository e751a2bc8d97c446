"""What large documents came to, remembered as JSON in the user's cache: ten times as fast to read.

    <cache>/nexa_hpc/documents/<digest>.json   the SHA-256 of the rest, and the top mapping

`digest` is of the document's text, and of version and times of the code that reads it. Advisory:
what is not there, or not as it was written, is read from the text again. Where lines are asked for,
as overrides and sweeps do, the text is read as well. Called by `document`. Standard library alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nexa_hpc
from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.canonical import sha256_bytes
from nexa_hpc.core.collector import without_gc
from nexa_hpc.core.paths import user_cache
from nexa_hpc.core.reading import list_names, read_bytes

_FORMAT = 1
_CODE = ("yaml_reading.py", "scalars.py")
_LEAST_BYTES = 1 << 16
"""Reading less takes no time worth a file."""
_MOST_TIMES = 4
"""What aliases have made larger than its text, by this much, is left alone."""
_KEPT = 16


def recall(text: bytes) -> dict[str, Any] | None:
    """Return the value of the document `text`; None where nothing is remembered of it."""
    if len(text) < _LEAST_BYTES:
        return None
    try:
        seal, _, body = read_bytes(_file(text)).partition(b"\n")
    except OSError:
        return None
    if seal.decode("ascii", "replace") != sha256_bytes(body):
        return None
    with without_gc():
        value: dict[str, Any] = json.loads(body)
    return value


def remember(text: bytes, value: dict[str, Any]) -> None:
    """Keep the `value` of the document `text` for the next call; a failure to is no loss."""
    if len(text) < _LEAST_BYTES or _is_larger(value, _MOST_TIMES * len(text)):
        return
    body = json.dumps(value, separators=(",", ":")).encode()
    try:
        file = _file(text)
        atomic.make_folder(file.parent, PRIVATE)
        atomic.write_file(file, sha256_bytes(body).encode() + b"\n" + body)
        _forget_old(file.parent)
    except OSError:
        return


def _is_larger(value: Any, characters: int) -> bool:
    """Return whether `value` written out, aliases and all, would have more than `characters`."""
    waiting = [value]
    while waiting and characters >= 0:
        one = waiting.pop()
        characters -= 1
        if isinstance(one, str):
            characters -= len(one)
        elif isinstance(one, dict):
            characters -= sum(map(len, one))
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return characters < 0


def _file(text: bytes) -> Path:
    # Another state of this very code may answer otherwise.
    here = Path(__file__).parent
    code = [(here / name).stat().st_mtime_ns for name in _CODE]
    digest = hashlib.sha256(json.dumps([_FORMAT, nexa_hpc.__version__, code]).encode())
    digest.update(text)
    return user_cache() / "documents" / f"{digest.hexdigest()}.json"


def _forget_old(folder: Path) -> None:
    files = [folder / name for name in list_names(folder)]
    for file in sorted(files, key=lambda file: file.stat().st_mtime)[:-_KEPT]:
        atomic.remove_file(file)
