"""A program for axolotl's own environment: says what axolotl's schema finds wrong with configs.

One config on each line of standard input, as JSON; on standard output a line with the answer:
{"problems": [[place, message, [known names]], …]}, or {"missing": …} without axolotl, or
{"unknown": …} where the schema itself fails. Ends when nothing is asked for a while. `schema`
starts it by its text: nothing of ours is imported, nor anything in the folder that it starts in.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterator
from typing import Any

IDLE_S = 20.0

Found = Iterator["tuple[list[str | int], str, list[str]]"]


def main() -> None:
    """Answer until standard input ends, or stays silent."""
    sys.path[:] = [folder for folder in sys.path if folder]
    # Whatever the libraries print is no answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Each question waits for the answer to the one before: no second one lies in the buffer.
    while select.select([sys.stdin], [], [], IDLE_S)[0] and (line := sys.stdin.readline()):
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Return what is wrong with `config`."""
    try:
        return {"problems": list(problems(config))}
    except ImportError as error:
        return {"missing": str(error)}
    except Exception as error:
        return {"unknown": f"{type(error).__name__}: {error}"}


def problems(config: dict[str, Any]) -> Found:
    """Yield the place, the message and, for a name that is not known, those that are."""
    from pydantic import ValidationError

    schema = _schema(config)
    yield from _unknown_names(config, schema, [])
    typed = dict(config)
    for name in ("datasets", "test_datasets"):
        if isinstance(config.get(name), list):
            yield from _rows_problems(name, config, typed)
    try:
        schema(**typed)
    except ValidationError as error:
        yield from _errors(error, [])


def _schema(config: dict[str, Any]) -> Any:
    if config.get("plugins"):
        from axolotl.integrations.config import merge_input_args
        from axolotl.utils.config import prepare_plugins
        from axolotl.utils.dict import DictDefault

        prepare_plugins(DictDefault(config))
        return merge_input_args()[1]
    from axolotl.utils.schemas.config import AxolotlInputConfig

    return AxolotlInputConfig


def _rows_problems(name: str, config: dict[str, Any], typed: dict[str, Any]) -> Found:
    """Yield what is wrong with the entries of `datasets`; put those that are right into `typed`.

    As axolotl does before it looks at the whole: which class an entry has, the entry does not tell.
    """
    from axolotl.utils.schemas import datasets
    from pydantic import ValidationError

    kinds = {"dpo": "DPODataset", "ipo": "DPODataset", "simpo": "DPODataset", "kto": "KTODataset"}
    kind = getattr(datasets, kinds.get(config.get("rl") or "", "SFTDataset"))
    entries = []
    for number, entry in enumerate(config[name]):
        if not isinstance(entry, dict) or entry.get("type") == "_synthetic":
            entries.append(entry)
            continue
        yield from _unknown_names(entry, kind, [name, number])
        try:
            entries.append(kind(**entry))
        except ValidationError as error:
            yield from _errors(error, [name, number])
    typed[name] = entries or config[name]


def _errors(error: Any, above: list[str | int]) -> Found:
    for found in error.errors():
        # Of a union pydantic names the members as well, which no document holds.
        place = [p for p in found["loc"] if isinstance(p, int) or p == p.lower()]
        yield [*above, *place], found["msg"].removeprefix("Value error, "), []


def _unknown_names(values: dict[str, Any], schema: Any, above: list[str | int]) -> Found:
    """Yield the names in `values` that `schema` would pass over, which it does without a word."""
    if schema.model_config.get("extra") == "allow":
        return
    known = {name for field in schema.model_fields.items() for name in _names(*field)}
    for name, value in values.items():
        if name not in known:
            yield [*above, name], f"unknown name '{name}'", sorted(known)
        elif isinstance(value, dict) and name in schema.model_fields:
            inner = _model_of(schema.model_fields[name].annotation)
            if inner is not None:
                yield from _unknown_names(value, inner, [*above, name])


def _names(name: str, field: Any) -> Iterator[str]:
    yield name
    yield from (a for a in (field.alias, field.validation_alias) if isinstance(a, str))
    yield from getattr(field.validation_alias, "choices", ())


def _model_of(annotation: Any) -> Any:
    """Return the one model that a field takes, or None."""
    from typing import get_args

    from pydantic import BaseModel

    members = [m for m in get_args(annotation) or (annotation,) if m is not type(None)]
    if len(members) == 1 and isinstance(members[0], type) and issubclass(members[0], BaseModel):
        return members[0]
    return None


if __name__ == "__main__":
    main()
