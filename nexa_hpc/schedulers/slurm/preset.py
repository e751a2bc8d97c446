"""`configs/cluster/<ClusterName>.yaml`: written from what a cluster says, kept as people edit it.

A file is a sequence of entries, a line or more each, with whatever stands between them. Renewing
replaces the lines of facts that have changed and touches no other: what people decide, their
comments and their order stay, and so does a line that ends in `# keep`. Called by `cluster probe`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.cluster import Cluster, Partition, cluster_file, read_cluster
from nexa_hpc.core.document import parse_document
from nexa_hpc.errors import SpecError, UserError
from nexa_hpc.schedulers.slurm.probe import Facts, Probed

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_KEEP = re.compile(r"#\s*keep\b")
_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w.+-]+|\"[^\"]*\"|'[^']*'):(?=\s)")
_COMMENT_COLUMN = 32

HEAD = """\
# The Slurm cluster `{name}`: how it is to be used, and facts that `nexa-hpc cluster probe` found.
# Probing again renews the facts that have changed. It leaves alone what people decide, comments,
# and lines that end in `# keep`.

# What people decide. Remove the `#` from a line to change what holds without it.
# login_policy: warn            # local steps on a login node: warn, refuse or allow
# sbatch_on_nodes: true         # whether jobs may submit jobs; `nexa-hpc doctor --deep` finds out
# python: /path/to/bin/python   # the interpreter on the nodes, where it is not the one that submits
# poll_interval_s: 60           # how often `--wait` asks Slurm
# min_poll_interval_s: 30       # how often all processes of one user together ask it, at most
# defaults: {{account: NAME}}     # what every step asks for unless it says otherwise

# Facts.
"""
COMMENTS = {
    "name": "ClusterName",
    "accounting": "whether sacct answers",
    "max_array_size": "MaxArraySize: indices go from 0 to one less",
    "max_submit": "how many jobs and elements a user may have (sacctmgr)",
    "aftercorr_chunk": "correspond_after_task_cnt: longer arrays with aftercorr are not safe",
    "min_job_age_s": "MinJobAge: when an ended job is forgotten",
    "kill_invalid_depend": "whether Slurm cancels what can never start (DependencyParameters)",
    "requeue": "JobRequeue: whether jobs may be requeued",
    "preemption": "PreemptMode",
}
PARTITIONS = (
    "# max_time_min is the longest time (absent: no limit); cores, GB, GPUs: the largest node's.\n"
)


@dataclass(frozen=True)
class Change:
    """One fact that the file has to be told, or is told not to follow."""

    key: str
    before: Any
    after: Any
    kept: bool = False
    """It stays as it is: its line says `# keep`."""


@dataclass(frozen=True)
class Renewal:
    """A cluster's file as it should be, and how it differs from what is there."""

    file: Path
    text: str
    changes: list[Change]
    is_new: bool

    @property
    def differs(self) -> bool:
        """Whether `write` would write."""
        return self.is_new or any(not change.kept for change in self.changes)

    def write(self) -> bool:
        """Write the file, readable for whoever may read the project's other files; returns False,
        and touches nothing, where there is nothing to change.
        """
        if not self.differs:
            return False
        mode = 0o666 & ~_umask() if self.is_new else self.file.stat().st_mode & 0o777
        self.file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_file(self.file, self.text)
        self.file.chmod(mode)
        return True


def renew(root: Path, probed: Probed) -> Renewal:
    """Return the file of the probed cluster in the project at `root`, renewed; writes nothing.

    Raises SpecError for a file that is wrong as it is, and UserError for one that cannot be
    followed line by line.
    """
    name = probed.facts["name"]
    if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name):
        raise UserError(f"the cluster calls itself {name!r}, which cannot name a file")
    file = cluster_file(root, name)
    if not file.exists():
        return Renewal(file, _first(probed), _news(probed), is_new=True)
    known = read_cluster(root, name)
    text = file.read_text()
    changes: list[Change] = []
    text = _renew_facts(text, known, probed.facts, changes)
    text = _renew_partitions(text, known, probed.partitions, changes)
    _check(file, name, text)
    return Renewal(file, text, changes, is_new=False)


def _first(probed: Probed) -> str:
    facts = {**probed.facts}
    # Where accounting should answer and does not, a poll that asks squeue alone is right meanwhile.
    facts["accounting"] = bool(facts["accounting"])
    lines = [_entry(key, facts[key]) for key in COMMENTS]
    rest = [_partition(name, told) for name, told in probed.partitions.items()]
    text = HEAD.format(name=facts["name"]) + "".join(lines) + PARTITIONS
    return text + "partitions:\n" + "".join(rest)


def _news(probed: Probed) -> list[Change]:
    facts = [Change(key, None, value) for key, value in probed.facts.items() if value is not None]
    places = probed.partitions.items()
    return facts + [Change(f"partitions.{name}", None, _without_nothing(t)) for name, t in places]


def _entry(key: str, value: Any) -> str:
    """Return the line of a fact; of one that is not known, a comment."""
    comment = f"# {COMMENTS[key]}"
    if value is None:
        return f"{f'# {key}:':<{_COMMENT_COLUMN}}{comment}; none is known\n"
    return f"{f'{key}: {_scalar(value)}':<{_COMMENT_COLUMN}}{comment}\n"


def _partition(name: str, told: Facts, indent: str = "  ") -> str:
    pairs = [f"{key}: {_scalar(value)}" for key, value in _without_nothing(told).items()]
    return f"{indent}{_scalar(name)}: {{{', '.join(pairs)}}}\n"


def _without_nothing(told: Facts) -> Facts:
    return {key: value for key, value in told.items() if value is not None and value is not False}


def _scalar(value: Any) -> str:
    """Return `value` as YAML that our reader and people read alike."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", value):
        is_word = value.lower() in ("true", "false", "null", "yes", "no", "on", "off")
        return json.dumps(value) if is_word else value
    return json.dumps(value)


# ---------------------------------------------------------------------- following what people wrote


@dataclass(frozen=True)
class _Entry:
    """The lines of one entry, from its key to its last line that is further indented."""

    start: int
    end: int
    text: str

    @property
    def kept(self) -> bool:
        return _KEEP.search(self.text.partition("\n")[0]) is not None


def _entries(text: str, indent: str) -> dict[str, _Entry]:
    """Return key -> its lines, for the entries that begin at `indent`."""
    found: dict[str, _Entry] = {}
    key, start, place = None, 0, 0
    for line in text.splitlines(keepends=True):
        match = _KEY.match(line)
        if match is not None and match["indent"] == indent:
            key, start = match["key"].strip("\"'"), place
        belongs = key is not None and (start == place or line.startswith((f"{indent} ", "- ")))
        place += len(line)
        if key is not None and belongs and line.strip():
            found[key] = _Entry(start, place, text[start:place])
    return found


def _renew_facts(text: str, known: Cluster, facts: Facts, changes: list[Change]) -> str:
    for key in COMMENTS:
        before, after = getattr(known, key), facts[key]
        if after is None and key != "preemption":
            # Not known is no reason to forget what people have found out.
            continue
        entry = _entries(text, "").get(key)
        if before == after and (entry is not None or after is None):
            continue
        if entry is not None and entry.kept:
            changes.append(Change(key, before, after, kept=True))
            continue
        changes.append(Change(key, before if entry is not None else None, after))
        line = _entry(key, after)
        text = _replaced(text, entry, line) if entry is not None else _added(text, key, line)
    return text


def _added(text: str, key: str, line: str) -> str:
    """Return `text` with a fact that it lacks: where a comment has its place, or below the name."""
    commented = re.search(rf"^# {key}:[^\n]*\n", text, re.MULTILINE)
    if commented is not None:
        return text[: commented.start()] + line + text[commented.end() :]
    entries = _entries(text, "")
    place = entries["name"].end if "name" in entries else len(_ended(text))
    return _ended(text)[:place] + line + _ended(text)[place:]


def _renew_partitions(
    text: str, known: Cluster, told: Mapping[str, Facts], changes: list[Change]
) -> str:
    if "partitions" not in _entries(text, ""):
        text = _ended(text) + PARTITIONS + "partitions:\n"
    for name in dict.fromkeys([*known.partitions, *told]):
        before, after = known.partitions.get(name), _as_partition(told.get(name))
        if before == after:
            continue
        section = _entries(text, "")["partitions"]
        first = re.search(r"\n( +)[^\s#]", section.text)
        indent = first[1] if first is not None else "  "
        entry = _entries(section.text, indent).get(name)
        kept = entry is not None and entry.kept
        changes.append(Change(f"partitions.{name}", _dumped(before), _dumped(after), kept))
        if not kept:
            line = _partition(name, told[name], indent) if name in told else ""
            body = section.text
            body = _replaced(body, entry, line) if entry is not None else _ended(body) + line
            text = _replaced(text, section, body)
    return text


def _as_partition(told: Facts | None) -> Partition | None:
    return Partition.model_validate(_without_nothing(told)) if told is not None else None


def _dumped(partition: Partition | None) -> Facts | None:
    return partition.model_dump(exclude_defaults=True) if partition is not None else None


def _replaced(text: str, entry: _Entry, by: str) -> str:
    return text[: entry.start] + by + text[entry.end :]


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _check(file: Path, name: str, text: str) -> None:
    """See that what was renewed line by line is still one valid document."""
    try:
        value = parse_document(text.encode(), str(file)).value
        Cluster.model_validate({"name": name, **value})
    except (SpecError, ValueError) as error:
        raise UserError(
            f"{file} is written in a way that cannot be renewed line by line ({error})",
            hint="write one entry a line, or move the file away and probe again",
        ) from error


def _umask() -> int:
    present = os.umask(0)
    os.umask(present)
    return present
