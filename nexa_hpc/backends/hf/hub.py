"""Which revision a name on the hub stands for now: asked of the hub, else of its local cache.

Called at planning, so it is quick where nothing answers, and never raises. Planning on a machine
without huggingface_hub reads the cache only.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

_TIMEOUT_S = 3.0

_silent_kinds: set[str] = set()
"""The kinds for which the hub did not answer: one wait per kind and process is enough."""


@functools.cache
def revision(kind: str, name: str) -> str | None:
    """Return the commit that the model or dataset `name` stands for now; None if nobody tells."""
    return _ask_hub(kind, name) or _cached_revision(kind, name)


def _ask_hub(kind: str, name: str) -> str | None:
    if _is_offline() or kind in _silent_kinds:
        return None
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        ask = api.dataset_info if kind == "dataset" else api.model_info
        revision: str | None = ask(name, timeout=_TIMEOUT_S).sha
        return revision
    except Exception as error:
        # Any failure only means that we do not know: planning goes on without a revision.
        if not _is_refusal(error):
            _silent_kinds.add(kind)
        return None


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _is_refusal(error: Exception) -> bool:
    """Say whether the hub answered, if only that it has no such name."""
    return getattr(error, "response", None) is not None


def _cached_revision(kind: str, name: str) -> str | None:
    folder = f"{kind}s--" + name.replace("/", "--")
    try:
        text = (_cache_folder() / folder / "refs" / "main").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text.strip() or None


def _cache_folder() -> Path:
    environ = os.environ
    if "HF_HUB_CACHE" in environ:
        return Path(environ["HF_HUB_CACHE"])
    general = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(environ.get("HF_HOME") or Path(general, "huggingface")) / "hub"
