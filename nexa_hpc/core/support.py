"""An archive for those who help: findings, settings, and the newest run's records and logs, packed
without secrets.

No value of an environment variable gets in: `env.variables` keep their names alone, the present
values of whatever is named like a secret are masked wherever they stand, and so is text that looks
like a well-known kind of token. Scripts, source, inputs and artifacts stay out. Called by `doctor`.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.findings import Finding
from nexa_hpc.core.paths import SETTINGS_NAME, ProjectPaths, RunPaths
from nexa_hpc.core.redaction import MASK, Redactor
from nexa_hpc.core.runs import Run, find_run
from nexa_hpc.errors import NexaError, UnknownNameError

_TAIL_BYTES = 1 << 16
_MOST_BYTES = 20 << 20
_MOST_LOGS = 20
_MOST_RECORDS = 200
_MASK = MASK.decode()
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY")
_TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bsk-[A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----",
    re.DOTALL,
)


def pack(file: Path, findings: Sequence[Finding], root: Path, paths: ProjectPaths) -> int:
    """Write the archive `file`, a tar.gz; return how many files are in it."""
    run = _newest(paths)
    clean = _Cleaner(run)
    packed = io.BytesIO()
    count = 0
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in _members(findings, root, paths, run, clean):
            entry = tarfile.TarInfo(f"nexa-hpc-support/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
            count += 1
    atomic.write_file(file, packed.getvalue())
    return count


def _newest(paths: ProjectPaths) -> Run | None:
    try:
        return find_run(paths, None)
    except (UnknownNameError, NexaError, OSError):
        return None


def _members(
    findings: Sequence[Finding], root: Path, paths: ProjectPaths, run: Run | None, clean: _Cleaner
) -> Iterator[tuple[str, bytes]]:
    told = {"findings": [finding.to_json() for finding in findings]}
    yield "doctor.json", clean.json(told)
    documents = [root / SETTINGS_NAME, *sorted((root / "configs" / "cluster").glob("*.yaml"))]
    for document in [*documents, root / "configs" / "scheduler" / "slurm.yaml"]:
        content = _read(document)
        if content is not None:
            yield f"project/{document.relative_to(root)}", clean.text(content)
    if run is not None:
        yield from _run_members(run, clean)


def _run_members(run: Run, clean: _Cleaner) -> Iterator[tuple[str, bytes]]:
    folder = run.place.folder
    # What lies in `source` are copies of the project's own files.
    files = (f for f in folder.rglob("*.json") if not f.is_relative_to(run.place.source))
    records = sorted(file for file in files if file.is_file())
    for file in records[:_MOST_RECORDS]:
        content = _read(file)
        if content is None:
            continue
        try:
            value = json.loads(content)
            if file == run.place.request:
                # The document as it was written, values of variables and all; the plan says it.
                value.pop("text", None)
            cleaned = clean.json(value)
        except ValueError:
            cleaned = clean.text(content)
        yield f"run/{file.relative_to(folder)}", cleaned
    for log in _newest_logs(run.place):
        tail = _read(log, tail=True)
        if tail is not None:
            yield f"run/{log.relative_to(folder)}", clean.text(tail)


def _newest_logs(place: RunPaths) -> list[Path]:
    try:
        logs = [file for file in place.log("x", 1).parent.iterdir() if file.is_file()]
        return sorted(logs, key=lambda file: file.stat().st_mtime)[-_MOST_LOGS:]
    except OSError:
        return []


def _read(file: Path, *, tail: bool = False) -> bytes | None:
    """Return the content of `file`, or its last part; None where there is none, or far too much."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if tail:
                stream.seek(max(0, size - _TAIL_BYTES))
            elif size > _MOST_BYTES:
                return None
            content = stream.read()
    except OSError:
        return None
    # A tail begins with a whole line: half a secret would not be known for one.
    return content.partition(b"\n")[2] if tail and size > _TAIL_BYTES else content


class _Cleaner:
    """Takes values of variables and secrets out of what is packed."""

    def __init__(self, run: Run | None) -> None:
        named = {name for name in os.environ if _SECRET_NAME.search(name.upper())}
        values: set[str] = set()
        if run is not None:
            named |= run.secrets
            for instance in run.instances.values():
                values |= set(instance.env.get("variables", {}).values())
        self._redactor = Redactor(named, values=values)

    def text(self, content: bytes) -> bytes:
        """Return text without secrets; what is not UTF-8 in it is replaced."""
        shown = self._redactor.text(content.decode(errors="replace"))
        return _TOKENS.sub(_MASK, shown).encode(errors="replace")

    def json(self, value: Any) -> bytes:
        """Return `value` as JSON, without the values of variables and without secrets."""
        return self.text(atomic.encode_json(_without_values(value)))


def _without_values(value: Any) -> Any:
    """Return `value` with whatever is called `variables` in it reduced to names."""
    if isinstance(value, dict):
        return {
            key: dict.fromkeys(item, _MASK)
            if key == "variables" and isinstance(item, dict)
            else _without_values(item)
            for key, item in value.items()
        }
    return [_without_values(item) for item in value] if isinstance(value, list) else value
