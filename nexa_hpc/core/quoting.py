"""How text out of a document is shown in a message: short, and harmless to a terminal.

Called by what reports problems. Standard library alone.
"""

from __future__ import annotations

_MAX_CHARACTERS = 100


def shown(text: str) -> str:
    """Return `text` cut to a hundred characters, with unprintable ones as escapes."""
    cut = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
