"""The settings that the installed transformers and peft know, read from their source text.

Planning checks names against them on login nodes, where importing torch takes seconds: the source
is found and parsed, nothing is imported. Standard library alone.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from nexa_hpc.errors import UserError

Annotations = Mapping[str, str]
"""Field name -> its annotation as written, such as `float | None`."""


def training_arguments() -> Annotations:
    """Return the fields of transformers' TrainingArguments; raises UserError without it."""
    return _fields("transformers", "training_args.py", "TrainingArguments")


def lora_arguments() -> Annotations:
    """Return the fields of peft's LoraConfig; raises UserError without it."""
    return _fields("peft", "tuners/lora/config.py", "LoraConfig")


def _fields(package: str, file: str, class_name: str) -> Annotations:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"backend 'hf' needs {package}, which is not installed here: pip install 'nexa-hpc[hf]'"
        )
    return fields_of_class(Path(spec.origin).parent / file, class_name)


@functools.cache
def fields_of_class(source: Path, class_name: str) -> Annotations:
    """Return the annotated fields of a class in `source`; raises UserError for no such file."""
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"backend 'hf' does not know this release of {source.parent.name}: "
            f"{error.strerror}: {source.name}; pip install 'nexa-hpc[hf]'"
        ) from error
    return {
        statement.target.id: ast.unparse(statement.annotation)
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
