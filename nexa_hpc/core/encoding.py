"""JSON encoders that are built once: json itself builds its C encoder anew for every value.

For the tens of thousands of small values of a large run that is half of the time. Called by
`canonical` and `atomic`. Standard library alone.
"""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Callable
from typing import Any


def encoder(
    *,
    ensure_ascii: bool,
    sort_keys: bool = False,
    separators: tuple[str, str] = (", ", ": "),
) -> Callable[[Any], str]:
    """Return a function that encodes as `json.dumps` does with these options, refusing NaN.

    It raises ValueError for NaN and infinities, TypeError for what JSON does not have,
    RecursionError for what contains itself.
    """
    plain = json.JSONEncoder(
        ensure_ascii=ensure_ascii, sort_keys=sort_keys, separators=separators, allow_nan=False
    )
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return plain.encode  # Where json is written in Python alone.
    text = json.encoder.encode_basestring_ascii if ensure_ascii else json.encoder.encode_basestring
    item, key = separators
    built = make(None, plain.default, text, None, key, item, sort_keys, False, False)
    return lambda value: "".join(built(value, 0))
