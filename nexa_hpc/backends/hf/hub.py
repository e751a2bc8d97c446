"""Which revision a name on the hub stands for now: asked of the hub, else of its local cache; and
what is fetched from it, for machines that cannot ask.

`revision` is called at planning, so it is quick where nothing answers, and never raises. Planning
on a machine without huggingface_hub reads the cache only.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nexa_hpc.core import atomic
from nexa_hpc.core.hub_cache import MAIN, HubName
from nexa_hpc.errors import NexaError, UserError

_SAFE = ".safetensors"
_OTHER_WEIGHTS = ("*.bin", "*.h5", "*.msgpack", "*.onnx", "*.pt", "*.pth", "*.ckpt")
"""Weights that nobody loads where the same ones are there as safetensors."""
_TIMEOUT_S = 3.0

_silent_kinds: set[str] = set()
"""The kinds for which the hub did not answer: one wait per kind and process is enough."""


@functools.cache
def revision(kind: str, name: str, at: str | None = None) -> str | None:
    """Return the commit that the model or dataset `name` stands for now, or its branch or tag `at`;
    None if nobody tells.
    """
    return _ask_hub(kind, name, at) or _cached_revision(kind, name, at or MAIN)


class Fetched(NamedTuple):
    """What was fetched."""

    commit: str
    files: int
    size_bytes: int


def fetch(wanted: HubName, hub: Path, *, safe_only: bool = False) -> Fetched:
    """Bring a model or dataset, at its revision, into the folder `hub`; what is there is kept.

    With `safe_only`, the weights of a model that are there as safetensors are left out in all other
    forms; a library that asks for the whole of it will then miss them. Raises NexaError where the
    hub does not answer or refuses; UserError without huggingface_hub.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "fetching takes huggingface_hub, which is not installed here",
            hint="pip install huggingface_hub",
        ) from error
    asked = {"repo_type": wanted.kind, "revision": wanted.revision}
    with _in_words(wanted):
        told = huggingface_hub.HfApi().repo_info(wanted.name, files_metadata=False, **asked)
    names = [sibling.rfilename for sibling in told.siblings or ()]
    has_safe = wanted.kind == "model" and any(name.endswith(_SAFE) for name in names)
    left_out = list(_OTHER_WEIGHTS) if has_safe and safe_only else None
    # Not before the hub has answered: until then, what others have put there is as whole as it was.
    begun = wanted.begun(hub)
    atomic.make_folder(begun.parent)
    atomic.write_file(begun, "")
    with _in_words(wanted):
        downloaded = huggingface_hub.snapshot_download(
            wanted.name, cache_dir=str(hub), ignore_patterns=left_out, **asked
        )
    folder = Path(downloaded)
    files = [path for path in folder.rglob("*") if path.is_file()]
    fetched = Fetched(folder.name, len(files), sum(path.stat().st_size for path in files))
    record = {
        "kind": wanted.kind,
        "name": wanted.name,
        "revision": wanted.revision,
        **fetched._asdict(),
        "left_out": left_out or [],
        "fetched_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    atomic.write_json(wanted.record(hub, fetched.commit), record)
    atomic.remove_file(begun)
    return fetched


def offline_snapshot(kind: str, name: str, revision: str | None) -> Path | None:
    """Return the folder of what was fetched, for a process that asks no hub; else None."""
    if not _is_offline() or "HF_HUB_CACHE" not in os.environ:
        return None
    wanted = HubName(kind, name, revision or MAIN)
    commit = wanted.commit(_cache_folder())
    return _cache_folder() / wanted.folder / "snapshots" / commit if commit else None


@contextmanager
def _in_words(wanted: HubName) -> Iterator[None]:
    """Raise NexaError for whatever the library raises meanwhile."""
    try:
        yield
    except Exception as error:
        # These are some twenty types; all mean that it is not here, for a reason in words.
        raise NexaError(f"{wanted}: {_reason(error)}", hint=_advice(error)) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _advice(error: Exception) -> str | None:
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return "is the name right? for what is private or gated, set HF_TOKEN"
    if status is not None:
        return None
    return "fetch on a machine that reaches the hub; HF_ENDPOINT names another one"


def _ask_hub(kind: str, name: str, at: str | None) -> str | None:
    if _is_offline() or kind in _silent_kinds:
        return None
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        ask = api.dataset_info if kind == "dataset" else api.model_info
        revision: str | None = ask(name, revision=at, timeout=_TIMEOUT_S).sha
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


def _cached_revision(kind: str, name: str, at: str) -> str | None:
    folder = f"{kind}s--" + name.replace("/", "--")
    try:
        text = (_cache_folder() / folder / "refs" / at).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text.strip() or None


def _cache_folder() -> Path:
    environ = os.environ
    if "HF_HUB_CACHE" in environ:
        return Path(environ["HF_HUB_CACHE"])
    general = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(environ.get("HF_HOME") or Path(general, "huggingface")) / "hub"
