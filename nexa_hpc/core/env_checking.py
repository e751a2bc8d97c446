"""Whether an environment by name still is what was made: its versions, and that they can be used.

Its own Python is asked, in a process. Called by `env check`. Standard library alone.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from nexa_hpc.core.extras import STANDS_FOR, normalized, parts, requirements_of
from nexa_hpc.core.findings import Finding, ok, problem
from nexa_hpc.core.named_environments import (
    NamedEnvironment,
    create_command,
    installed,
    lacking,
)

_IMPORT_S = 600.0
_IMPORTS = """\
import importlib, importlib.metadata, json, sys
modules = {}
for module, names in importlib.metadata.packages_distributions().items():
    for name in names:
        modules.setdefault(name.lower().replace("_", "-").replace(".", "-"), []).append(module)
for name in sys.argv[1:]:
    found = sorted(m for m in modules.get(name, ()) if not m.startswith("_"))
    wanted = [m for m in found if m.replace("_", "-") == name] or found[-1:]
    try:
        for module in wanted:
            importlib.import_module(module)
        print("\\n" + json.dumps([name, None]))
    except BaseException as error:
        print("\\n" + json.dumps([name, f"{type(error).__name__}: {error}"]))
"""


def check_environment(
    environment: NamedEnvironment, extras: Sequence[str] = ()
) -> Iterator[Finding]:
    """Yield what is found: versions as locked, what the extras ask for there and importable.

    `extras` are those to look for; none: those that it was made with.
    """
    wanted = list(extras) or environment.extras
    again = create_command(environment.name, environment.extras, environment.packages, again=True)
    yield from _versions(environment, again)
    requirements = requirements_of(wanted)
    lacked = lacking(environment.build, requirements)
    if lacked:
        more = list(dict.fromkeys([*environment.extras, *wanted]))
        mend = create_command(environment.name, more, environment.packages, again=True)
        yield problem("extras", f"it lacks {', '.join(lacked)}", mend)
    elif wanted:
        yield ok("extras", f"all that {' and '.join(wanted)} asks for is there")
    there = installed(environment.build)
    asked = [parts(text)[0] for text in (*requirements, *environment.packages)]
    names = [other for name in asked for other in (name, *STANDS_FOR.get(name, ()))]
    yield from _imports(environment, list(dict.fromkeys(n for n in names if n in there)), again)


def locked(text: str) -> dict[str, str]:
    """Return normalized name -> version of the lines of a lock that say one."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;]+)", line)
        if match:
            found[normalized(match[1])] = match[2]
    return found


def _versions(environment: NamedEnvironment, again: str) -> Iterator[Finding]:
    lock = locked(environment.lock.read_text(encoding="utf-8"))
    there = installed(environment.build)
    wrong = [
        f"{name} is {there[name]}, not {version}" if name in there else f"{name} is gone"
        for name, version in lock.items()
        if not _same(there.get(name), version)
    ]
    if wrong:
        yield problem("lock", f"{len(wrong)} not as locked: {'; '.join(wrong[:5])}", again)
    else:
        yield ok("lock", f"{len(lock)} distributions are there as locked")


def _same(version: str | None, other: str) -> bool:
    # In the name of its folder a version has `_` for `-`.
    return version is not None and version.replace("_", "-") == other.replace("_", "-")


def _imports(environment: NamedEnvironment, names: Sequence[str], again: str) -> Iterator[Finding]:
    try:
        done = subprocess.run(
            [str(environment.python), "-I", "-c", _IMPORTS, *names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield problem("imports", f"its Python does not run: {error}", again)
        return
    told = _told(done.stdout)
    wrong = {
        name: told.get(name, "ended the process")
        for name in names
        if told.get(name, "") is not None
    }
    for name, message in wrong.items():
        yield problem("imports", f"{name} cannot be imported: {message}", again)
    if done.returncode != 0 and not wrong:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        yield problem("imports", f"its Python does not run: {last}", again)
    elif not wrong:
        yield ok("imports", f"can be imported: {', '.join(names) or 'nothing was asked for'}")


def _told(text: str) -> Mapping[str, str | None]:
    """Return name -> what went wrong with it, None for nothing."""
    found: dict[str, str | None] = {}
    for line in text.splitlines():
        if line.startswith('["'):
            try:
                name, message = json.loads(line)
            except ValueError:
                continue
            found[name] = message
    return found
