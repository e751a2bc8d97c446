"""Whether a model's folder is whole and needs no trust, before a server is started on it.

Only names, sizes and the headers of safetensors are read. Standard library alone.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from nexa_hpc.core.artifacts import META, Presence, look

_LARGEST_HEADER = 100 << 20
"""safetensors' own limit."""
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<of>\d+)\.safetensors")


def problems(folder: Path, allowed: Collection[str] = ()) -> Iterator[str]:
    """Yield what keeps the model in `folder` from being served.

    `allowed`: `allow_pickle`, `trust_remote_code`.
    """
    if not folder.is_dir():
        yield f"there is no model folder {folder}"
        return
    if ".tmp." in folder.name:
        yield f"{folder} is still being written"
        return
    if (folder / META).is_file() and (finding := look(folder)).presence is not Presence.COMPLETE:
        yield f"{folder} is not complete: {finding.reason or finding.presence.value}"
        return
    is_adapter = (folder / "adapter_config.json").is_file()
    config = _json(folder / ("adapter_config.json" if is_adapter else "config.json"))
    if not isinstance(config, dict):
        yield f"{folder} has no readable config.json: it is no model, or half-written"
        return
    if "auto_map" in config and "trust_remote_code" not in allowed:
        yield "it brings its own code; read that, then allow it with `trust_remote_code: true`"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and "allow_pickle" not in allowed:
        yield "it holds no safetensors; a pickle can run code: allow one by `allow_pickle: true`"
    yield from _half_written(folder, weights)


def _half_written(folder: Path, weights: Sequence[Path]) -> Iterator[str]:
    for index in folder.glob("*.safetensors.index.json"):
        said = _json(index)
        named = set((said.get("weight_map") or {}).values()) if isinstance(said, dict) else {"?"}
        for name in sorted(named - {file.name for file in weights}):
            yield f"half-written: {index.name} names {name}, which is not there"
    if not any(folder.glob("*.safetensors.index.json")):
        for name in sorted({*_lost_shards({file.name for file in weights})}):
            yield f"half-written: {name} is not there"
    for file in weights:
        if (wrong := _wrong(file)) is not None:
            yield f"half-written: {file.name} {wrong}"


def _lost_shards(names: Collection[str]) -> Iterator[str]:
    """Yield the shards that those in `names` say there are; an index may come last in a copy."""
    for shard in filter(None, map(_SHARD.fullmatch, names)):
        for number in range(1, int(shard["of"]) + 1):
            name = f"{shard['stem']}-{number:0{len(shard['number'])}}-of-{shard['of']}.safetensors"
            if name not in names:
                yield name


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _wrong(file: Path) -> str | None:
    """Return what is wrong with the length of a safetensors file, or None."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LARGEST_HEADER + 1
        if length > min(size, _LARGEST_HEADER):
            return "has no whole header"
        try:
            header = json.loads(stream.read(length))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError):
            return "has a damaged header"
    whole = 8 + length + max(ends, default=0)
    return None if size == whole else f"has {size} bytes of {whole}"
