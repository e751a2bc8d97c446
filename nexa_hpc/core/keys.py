"""The step key: the SHA-256 that names a step's result before it exists, and the document behind
it.

The document is plain JSON, lies in the artifact's `meta.json`, and explains a miss field by field.
What it holds is the contract of ARCHITECTURE.md; a change of its form raises `FORMAT` and with it
every key. Called by planning. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core.canonical import canonical_json, sha256_json

FORMAT = 1
_ABSENT = object()
_SHOWN_CHARACTERS = 60
_SHOWN_BEFORE = 15


def key_document(
    *,
    uses: str,
    handler_version: str,
    backend: str | None,
    scheduler: str | None,
    params: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, str],
    cache_hint: Any,
    env: Mapping[str, Any],
    code: Mapping[str, str],
    rerun: int,
    resources: Mapping[str, Any] | None = None,
    roots: Mapping[str, Path],
) -> dict[str, Any]:
    """Return the document behind a step key.

    `inputs` maps a name to what identifies its content; `code` a source file to its digest; `env`
    holds only what may change a result (container, variables); `resources` is given where the step
    says that they may, too (`key_resources`). Text that starts with one of the
    named `roots` enters as the root's name and the rest, so that a moved project keeps its results.
    """
    document = {
        "format": FORMAT,
        "uses": uses,
        "handler_version": handler_version,
        "backend": backend,
        "scheduler": scheduler,
        "params": place_free(dict(params), roots),
        "inputs": {name: dict(source) for name, source in inputs.items()},
        "outputs": place_free(dict(outputs), roots),
        "cache_hint": cache_hint,
        "env": place_free(dict(env), roots),
        "code": dict(code),
        "rerun": rerun,
    }
    # Absent rather than empty: the keys of steps that do not ask for it stay as they were.
    return document if resources is None else {**document, "resources": dict(resources)}


def step_key(document: Mapping[str, Any]) -> str:
    """Return the step key of `document`: 64 hex digits."""
    return sha256_json(document)


def place_free(value: Any, roots: Mapping[str, Path]) -> Any:
    """Return `value` with every absolute path below a root written as {"$root": …, "path": …}."""
    if isinstance(value, str):
        if value.startswith("/"):
            for name, root in roots.items():
                if value == str(root) or value.startswith(f"{root}/"):
                    return {"$root": name, "path": value[len(str(root)) + 1 :]}
        return value
    if isinstance(value, dict):
        # What the user wrote may look like our own {"$root": …}; it must not share its key.
        return {
            f"${key}" if key.startswith("$") else key: place_free(item, roots)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [place_free(item, roots) for item in value]
    return value


@dataclass(frozen=True)
class Difference:
    """One field in which two key documents differ; None stands for an absent field."""

    field: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.field}: added, {self.new}"
        if self.new is None:
            return f"{self.field}: removed (was {self.old})"
        return f"{self.field}: {self.old} → {self.new}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Return the fields in which `new` differs from `old`, by dotted name."""
    return list(_compare("", old, new))


def _compare(name: str, old: Any, new: Any) -> Iterator[Difference]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            path = f"{name}.{key}" if name else str(key)
            yield from _compare(path, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif old is _ABSENT or new is _ABSENT or canonical_json(old) != canonical_json(new):
        texts = [None if value is _ABSENT else _text(value) for value in (old, new)]
        start = _common_length(texts[0] or "", texts[1] or "") - _SHOWN_BEFORE
        yield Difference(name, *(None if text is None else _shown(text, start) for text in texts))


def _common_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-").replace("e+0", "e+")
    return value if isinstance(value, str) else canonical_json(value)


def _shown(text: str, start: int) -> str:
    """Return `text` on one short line; of a long one, what is found from `start` on."""
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f"{text[:12]}…"
    cut = max(0, min(start, len(text) - _SHOWN_CHARACTERS))
    piece = text[cut : cut + _SHOWN_CHARACTERS]
    piece = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in piece)
    return f"{'…' * (cut > 0)}{piece}{'…' * (cut + _SHOWN_CHARACTERS < len(text))}"
