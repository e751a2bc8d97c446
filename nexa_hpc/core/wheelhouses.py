"""What `env pack` has packed, as `env create --wheelhouse` reads it: wheels, a marker and a lock.

A folder of wheels alone will do as well. Called by `env_building`. Standard library alone.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.named_environments import LOCK, MARKER
from nexa_hpc.errors import UserError

_WHEELS = "wheels"


def packed(house: Path) -> tuple[dict[str, Any], str] | None:
    """Return the marker and the lock in a wheelhouse; None where it is no more than wheels."""
    with _whole(house):
        lock = _text(house, LOCK)
        return None if lock is None else (json.loads(_text(house, MARKER) or "{}"), lock)


def _text(house: Path, name: str) -> str | None:
    if house.is_dir():
        file = house / name
        return file.read_text(encoding="utf-8") if file.is_file() else None
    with _archive(house) as archive:
        # What is looked for comes first, before gigabytes of wheels.
        member = next((each for each in archive if each.isreg() and each.name == name), None)
        stream = archive.extractfile(member) if member is not None else None
        return stream.read().decode() if stream is not None else None


@contextmanager
def _archive(file: Path) -> Iterator[tarfile.TarFile]:
    if not file.is_file():
        raise UserError(f"--wheelhouse {file}: no such folder or archive")
    with _whole(file), tarfile.open(file) as archive:
        yield archive


@contextmanager
def _whole(house: Path) -> Iterator[None]:
    """Raise UserError for what cannot be read of it, as of a copy that was broken off."""
    try:
        yield
    except (tarfile.TarError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"--wheelhouse {house}: {error}") from error


@contextmanager
def unpacked(wheelhouse: Path | None, build: Path) -> Iterator[Path | None]:
    """Yield the folder of wheels; an archive is unpacked beside the build meanwhile."""
    if wheelhouse is None or wheelhouse.is_dir():
        yield wheelhouse
        return
    folder = build.with_name(f"{build.name}.{_WHEELS}")
    atomic.make_folder(folder)
    try:
        with _archive(wheelhouse) as archive:
            for member in archive:
                # Names and kinds are looked at, for an archive may come from anywhere.
                if member.isreg() and os.path.basename(member.name) == member.name:
                    archive.extract(member, folder, set_attrs=False)
        yield folder
    finally:
        atomic.remove_tree(folder)
