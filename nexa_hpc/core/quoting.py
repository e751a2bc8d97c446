"""How text out of a document is shown in a message: short, and harmless to a terminal.

Called by what reports problems. Standard library alone.
"""

from __future__ import annotations

_MAX_CHARACTERS = 100


def shown(text: str) -> str:
    """Return `text` cut to a hundred characters, with unprintable ones as escapes."""
    return printable(text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…")


def printable(text: str) -> str:
    """Return `text` with what would steer a terminal, line ends included, as escapes.

    For whatever prints text that somebody else wrote: a document, a file's name, an exception.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Return `text` as `printable` does, but for its line ends, which stay."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))
