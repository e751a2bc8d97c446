"""`sbatch_templates/`: plain shell scripts, their headers filled from what is known of a cluster.

A template says what it always needs in its own `#SBATCH` lines; what it leaves open is filled in,
and the interpreter and the arguments are set before its first command. What is printed is what is
submitted. Pure. Called by `cli/sbatch.py` and `cli/serve_start.py`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nexa_hpc
from nexa_hpc.core.cluster import Cluster, SlurmPolicy
from nexa_hpc.errors import UnknownNameError, UserError, nearest
from nexa_hpc.schedulers.slurm.requests import environment_defaults, memory, merged

ENDING = ".sbatch"
DEFAULT_TIME_MIN = 1440
"""What a template asks for where nothing else is said, if the partition allows as much."""
_FILLED = ("partition", "account", "qos", "constraint", "reservation")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
# sbatch splits its header at white space, and has quotes of its own: nothing of that gets in.
_VALUE = re.compile(r"[^\s\"'\\#]+")
_HEADER_LINE = re.compile(r"#SBATCH\s+--(?P<option>[a-z][a-z0-9-]*)(?:[=\s]|$)")


@dataclass(frozen=True)
class Template:
    """One script, and where it is."""

    name: str
    file: Path


def templates(root: Path) -> dict[str, Template]:
    """Return name -> template: ours, and those of the project at `root` in their place."""
    package = Path(nexa_hpc.__file__).parent
    # In a wheel they lie in the package, in a checkout beside it.
    places = (package.parent / "sbatch_templates", package / "sbatch_templates")
    files = [file for place in (*places, root / "sbatch_templates") for file in _files(place)]
    return {file.stem: Template(file.stem, file) for file in files}


def find_template(root: Path, name: str) -> Template:
    """Return the template `name`; raises UnknownNameError, naming the nearest."""
    known = templates(root)
    if name not in known:
        listed = ", ".join(sorted(known))
        raise UnknownNameError(f"no template '{name}'{nearest(name, known)} (there are: {listed})")
    return known[name]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{ENDING}")) if folder.is_dir() else []


def options(
    cluster: Cluster, policy: SlurmPolicy, given: Sequence[str] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """Return what may be filled in (option -> value), and what was `given` as `NAME=VALUE`.

    Raises UserError for what is no option, or cannot stand in a header.
    """
    wanted = merged(
        environment_defaults(),
        cluster.defaults.model_dump(exclude_none=True),
        policy.defaults.model_dump(exclude_none=True),
    )
    asked = dict(_given(text) for text in given)
    filled = {name: str(wanted[name]) for name in _FILLED if name in wanted}
    filled["time"] = str(_time_min(wanted, cluster, asked.get("partition")))
    if "mem_gb" in wanted:
        filled["mem"] = memory(wanted["mem_gb"])
    for name, value in {**filled, **asked}.items():
        if value and not _VALUE.fullmatch(value):
            raise UserError(f"--{name}: {value!r} cannot stand in the header of an sbatch script")
    return filled, asked


def _given(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    name = name.lstrip("-")
    if not _OPTION.fullmatch(name):
        raise UserError(f"-O {text!r}: expected an option of sbatch, such as `-O time=8:00:00`")
    return name, value


def _time_min(wanted: Mapping[str, Any], cluster: Cluster, partition: str | None) -> int:
    facts = cluster.partition(partition or wanted.get("partition"))
    limit = facts.max_time_min if facts is not None else None
    asked = int(wanted.get("timeout_min") or DEFAULT_TIME_MIN)
    return min(asked, limit) if limit is not None else asked


def render(
    template: Template,
    arguments: Sequence[str],
    filled: Mapping[str, str],
    given: Mapping[str, str],
    python: Path,
) -> str:
    """Return the script: the template, its header filled, for `"$@"` the `arguments`.

    `given` goes over the template's own header, `filled` under it. `nexa-hpc` is to be found beside
    the interpreter `python`.
    """
    head, body = _split(template.file.read_text())
    kept = [line for line in head if _option(line) not in given]
    own = {_option(line) for line in kept}
    added = {**{name: value for name, value in filled.items() if name not in own}, **given}
    lines = [
        f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}"
        for name, value in added.items()
    ]
    setting = [
        f'export PATH={shlex.quote(str(python.parent))}:"$PATH"',
        f"set -- {shlex.join(arguments)}",
    ]
    note = "# Filled in by nexa-hpc, submitted from the project root."
    return "\n".join([*kept, note, *lines, "", *setting, *body, ""])


def _split(text: str) -> tuple[list[str], list[str]]:
    """Return the lines down to the last `#SBATCH` before the first command, and those after."""
    lines = text.splitlines()
    first = next((n for n, line in enumerate(lines) if line and line[0] != "#"), len(lines))
    last = max((n for n in range(first) if lines[n].startswith("#SBATCH")), default=0)
    return lines[: last + 1], lines[last + 1 :]


def _option(line: str) -> str | None:
    found = _HEADER_LINE.match(line)
    return found["option"] if found is not None else None
