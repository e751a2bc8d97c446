"""Reading datasets: hub names, JSONL/CSV/Parquet files, folders; which columns and labels.

Called by training and evaluation. Arrow files go to the folder given as `scratch`, not to a
user-wide cache, so that attempts on different nodes do not wait for each other's locks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from nexa_hpc.backends.hf import hub
from nexa_hpc.backends.hf.sources import Source
from nexa_hpc.errors import StepError, nearest

ROWS_SEED = 13
"""Fixes which rows `max_train_rows` takes: the same for every training seed and the baseline."""

EVERYTHING = "whole"
"""The split that a single file is: as good as any that is asked for."""

_BUILDERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"delimiter": "\t"}),
    ".parquet": ("parquet", {}),
}
_SPLIT_OF_FILE = re.compile(r"(train|validation|valid|val|dev|test)(?![A-Za-z])")
_SPLITS = {"valid": "validation", "val": "validation", "dev": "validation"}
_UNLABELLED = (None, -1)
"""-1 is how hub datasets such as GLUE hide the labels of their test split."""


@dataclass(frozen=True)
class Columns:
    """The columns that hold the text (one, or the two of a pair) and the label."""

    texts: tuple[str, ...]
    label: str | None


def load_splits(source: Source, config: str | None, scratch: Path) -> dict[str, Any]:
    """Return split name -> dataset; raises StepError for what cannot be read as one."""
    datasets.disable_progress_bars()
    try:
        if source.path is None:
            return dict(_from_hub(source, config).items())
        return _load_local(source.path, source.title, scratch)
    except StepError:
        raise
    except Exception as error:
        # The library raises two dozen types, from aiohttp's to pyarrow's; all mean the same here.
        hint = "without a hub, give a file, or a folder of train, validation and test files"
        raise StepError(
            f"cannot read the dataset {source.title}: {error.__cause__ or error}",
            hint=None if source.path else hint,
        ) from error


def _from_hub(source: Source, config: str | None) -> Any:
    folder = hub.offline_snapshot("dataset", source.where, source.revision)
    if folder is not None:
        # By its name the library looks, offline, only for what it has prepared before.
        return datasets.load_dataset(str(folder), config)
    return datasets.load_dataset(source.hub_name, config, revision=source.revision)


def _load_local(path: Path, title: str, scratch: Path) -> dict[str, Any]:
    if path.is_file():
        return _load_files({EVERYTHING: [path]}, title, scratch)
    if (path / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(path)).items())
    if (path / "dataset_info.json").is_file():
        return {EVERYTHING: datasets.load_from_disk(str(path))}
    files: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        named = _SPLIT_OF_FILE.match(file.name)
        if named and file.suffix in _BUILDERS:
            split = _SPLITS.get(named[1], named[1])
            files.setdefault(split, []).append(file)
    if not files:
        raise StepError(
            f"the dataset {title} has no file named train, validation or test",
            hint=f"such as train.jsonl; readable: {', '.join(_BUILDERS)}",
        )
    return _load_files(files, title, scratch)


def _load_files(files: Mapping[str, Sequence[Path]], title: str, scratch: Path) -> dict[str, Any]:
    suffixes = {file.suffix for paths in files.values() for file in paths}
    if len(suffixes) != 1 or not suffixes <= set(_BUILDERS):
        raise StepError(
            f"the dataset {title} has files ending in {', '.join(sorted(suffixes))}",
            hint=f"all of one kind, please, out of {', '.join(_BUILDERS)}",
        )
    builder, options = _BUILDERS[suffixes.pop()]
    # Each split by itself: together, they would have to agree on the type of every column, which a
    # split whose labels are hidden does not.
    return {
        split: datasets.load_dataset(
            builder,
            data_files={split: [str(path) for path in paths]},
            cache_dir=str(scratch / "datasets"),
            split=split,
            **options,
        )
        for split, paths in files.items()
    }


def split_named(splits: Mapping[str, Any], name: str, title: str) -> Any:
    """Return the split `name`, or the whole of a single file; raises StepError without one."""
    if name in splits:
        return splits[name]
    if EVERYTHING in splits:
        return splits[EVERYTHING]
    raise StepError(
        f"the dataset {title} has no split '{name}'"
        + (nearest(name, splits) or f"; it has: {', '.join(splits)}")
    )


def validation_split(splits: Mapping[str, Any]) -> Any | None:
    """Return what training may look at while it runs; never the test split."""
    return splits.get("validation", splits.get("validation_matched"))


def first_rows(dataset: Any, limit: int | None) -> Any:
    """Return `limit` rows, always the same ones, drawn from the whole of `dataset`."""
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.shuffle(seed=ROWS_SEED).select(range(limit))


def find_columns(
    dataset: Any, texts: str | Sequence[str] | None, label: str | None, title: str
) -> Columns:
    """Return the columns named, or else found: label/labels; text, or the other one or two of text.

    Raises StepError for a name that is not there, and where the texts cannot be told.
    """
    names = dataset.column_names
    wanted = [texts] if isinstance(texts, str) else list(texts or ())
    for name in [*wanted, *([label] if label else [])]:
        if name not in names:
            raise StepError(
                f"the dataset {title} has no column '{name}'"
                + (nearest(name, names) or f"; it has: {', '.join(names)}")
            )
    if label is None:
        label = next((name for name in ("label", "labels") if name in names), None)
    if wanted:
        return Columns(tuple(wanted), label)
    if "text" in names:
        return Columns(("text",), label)
    found = [name for name in names if name != label and _holds_text(dataset, name)]
    if len(found) not in (1, 2):
        raise StepError(
            f"which column of the dataset {title} is the text? It has: {', '.join(names)}",
            hint="say it with `text_column`",
        )
    return Columns(tuple(found), label)


def _holds_text(dataset: Any, name: str) -> bool:
    return getattr(dataset.features[name], "dtype", None) in ("string", "large_string")


def labelled(dataset: Any, column: str) -> Any:
    """Return the rows of `dataset` that have a label, saying how many have none."""
    values = dataset[column]
    kept = [index for index, value in enumerate(values) if value not in _UNLABELLED]
    if len(kept) == len(dataset):
        return dataset
    print(f"{len(dataset) - len(kept)} of {len(dataset)} rows have no label and are left out")
    return dataset.select(kept)


def label_names(dataset: Any, column: str, title: str) -> list[str]:
    """Return the names of the labels in `column`, in the order of their numbers."""
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    values = set(dataset[column]) - set(_UNLABELLED)
    if any(isinstance(value, (float, list, dict)) for value in values):
        raise StepError(
            f"column '{column}' of the dataset {title} holds no classes, but {feature}",
            hint="say with `label_column` which column is the label",
        )
    if len(values) < 2:
        raise StepError(f"column '{column}' of the dataset {title} holds fewer than two labels")
    return [str(value) for value in sorted(values)]


def label_numbers(dataset: Any, column: str, names: Sequence[str], title: str) -> list[int]:
    """Return each row's label as its number in `names`; raises StepError for one that is not there.

    Where the model's names say nothing (LABEL_0, …), a dataset's own numbers are taken.
    """
    feature = dataset.features[column]
    own_names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    by_name = {name.casefold(): number for number, name in enumerate(names)}
    values = dataset[column]
    words = [own_names[value] if own_names else str(value) for value in values]
    unknown = next((word for word in words if word.casefold() not in by_name), None)
    if unknown is None:
        return [by_name[word.casefold()] for word in words]
    numbered = all(type(value) is int and 0 <= value < len(names) for value in values)
    if numbered and all(name.startswith("LABEL_") for name in names):
        return list(values)
    raise StepError(
        f"the dataset {title} has the label '{unknown}', which the model does not know",
        hint=f"the model's labels: {', '.join(names)}",
    )
