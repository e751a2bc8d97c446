"""Keeping the values of `env.secrets` out of what is written: in logs, on terminals, in records.

What a step prints passes through here on its way, before anything of it is kept. Values shorter
than four characters are let through: blotting out every `1` would hide nothing and spoil all.
Called by the schedulers, the worker and the supervisor of a server. Standard library alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator

MASK = b"***"
_LEAST_CHARACTERS = 4
_LEAST_LINE = 8


class Redactor:
    """Replaces the present values of the environment variables `names` by `***`.

    A value is also found as Python, JSON and a shell quote it, as a printed environment shows it;
    and so are the longer lines of one that has several.
    """

    def __init__(self, names: Iterable[str], *, values: Iterable[str] = ()) -> None:
        """Know the present values of `names`, and `values`."""
        values = {os.environ.get(name, "").strip() for name in names} | set(values)
        forms = {
            form.encode(errors="surrogateescape")
            for value in values
            if len(value) >= _LEAST_CHARACTERS
            for form in _forms(value)
        }
        # The longest first: of two that begin alike, the longer one is meant where it fits.
        self._forms = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms))) if forms else None

    def text(self, text: str) -> str:
        """Return `text` without the secrets."""
        if self._pattern is None:
            return text
        raw = text.encode(errors="surrogateescape")
        return self._pattern.sub(MASK, raw).decode(errors="surrogateescape")

    def chunks(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield one stream of output without the secrets, however it is cut into `chunks`."""
        stream = self.stream()
        for chunk in chunks:
            if passed := stream.feed(chunk):
                yield passed
        if rest := stream.rest():
            yield rest

    def stream(self) -> RedactedStream:
        """Return what one stream of output is fed to, piece by piece."""
        if self._pattern is None:
            return RedactedStream()
        return _Stream(self._pattern, self._forms)


def _forms(value: str) -> Iterator[str]:
    """Yield how `value` may be written."""
    escaped = repr(value)[1:-1]
    yield from (
        value,
        escaped,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
    )
    # A shell within '…', in two ways, and within $'…'.
    quote = "'"
    yield from (value.replace(quote, form) for form in ("'\\''", "'\"'\"'"))
    yield escaped if f"\\{quote}" in escaped else escaped.replace(quote, f"\\{quote}")
    lines = value.splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _LEAST_LINE)


class RedactedStream:
    """One stream of output on its way, without the secrets; this one has none to look for."""

    def feed(self, chunk: bytes) -> bytes:
        """Return what can be passed on, now that `chunk` has come."""
        return chunk

    def rest(self) -> bytes:
        """Return what was held back, at the stream's end."""
        return b""


class _Stream(RedactedStream):
    """Holds back what may be the beginning of a secret until it is known."""

    def __init__(self, pattern: re.Pattern[bytes], forms: list[bytes]) -> None:
        self._pattern = pattern
        self._forms = forms
        self._longest = max(map(len, forms), default=0)
        self._starts = {form[0] for form in forms}
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """See `RedactedStream`."""
        text = self._held + chunk
        passed, self._held = self._redacted(text, self._begins(text))
        return passed

    def rest(self) -> bytes:
        """See `RedactedStream`."""
        return self._pattern.sub(MASK, self._held)

    def _redacted(self, text: bytes, begins: int) -> tuple[bytes, bytes]:
        """Return `text` redacted up to `begins`, and what is left of it from there."""
        parts, place = [], 0
        for found in self._pattern.finditer(text):
            if found.start() >= begins:
                break
            parts += [text[place : found.start()], MASK]
            place = found.end()
        end = max(begins, place)
        return b"".join([*parts, text[place:end]]), text[end:]

    def _begins(self, text: bytes) -> int:
        """Return where a secret may begin that `text` does not hold to its end; else its length."""
        for place in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[place] in self._starts and self._may_go_on(text[place:]):
                return place
        return len(text)

    def _may_go_on(self, tail: bytes) -> bool:
        return any(len(form) > len(tail) and form.startswith(tail) for form in self._forms)
