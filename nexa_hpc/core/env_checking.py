"""Whether an environment by name still is what was made: its versions, and that they can be used.

Its own Python is asked, in a process. Also what its lock says. Called by `env`. Standard library
alone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

from nexa_hpc.core.extras import STANDS_FOR, normalized, parts, requirements_of
from nexa_hpc.core.findings import Finding, ok, problem
from nexa_hpc.core.named_environments import NamedEnvironment, installed, lacking

_IMPORT_S = 600.0
_NAME = r"(?m)^([A-Za-z0-9][A-Za-z0-9._-]*)"
DIRECT = re.compile(_NAME + r" *@ +(\S+)(?: +# ==(\S+))?$")
"""name @ address  # ==version: a line of a lock for what came from a path or an address."""
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
    again = environment.command(again=True)
    yield from _versions(environment, again)
    requirements = requirements_of(wanted)
    lacked = lacking(environment.build, requirements)
    if lacked:
        mend = environment.command(wanted, again=True)
        yield problem("extras", f"it lacks {', '.join(lacked)}", mend)
    elif wanted:
        yield ok("extras", f"all that {' and '.join(wanted)} asks for is there")
    there = installed(environment.build)
    asked = [parts(text)[0] for text in (*requirements, *environment.packages)]
    names = [other for name in asked for other in (name, *STANDS_FOR.get(name, ()))]
    yield from _imports(environment, list(dict.fromkeys(n for n in names if n in there)), again)


def locked(text: str) -> dict[str, str]:
    """Return normalized name -> version of the lines of a lock that say one."""
    found = dict(re.findall(_NAME + r"==([^\s;]+)", text))
    found |= {name: version for name, _, version in DIRECT.findall(text) if version}
    return {normalized(name): version for name, version in found.items()}


def with_versions(lock: str, there: Mapping[str, str]) -> str:
    """Return `lock` with the version, in a comment, of what came from a path or an address.

    `there` is what is installed, which the address alone does not tell.
    """

    def told(line: re.Match[str]) -> str:
        version = there.get(normalized(line[1]))
        return f"{line[1]} @ {line[2]}  # =={version}" if version else line[0]

    return DIRECT.sub(told, lock)


def portable(lock: str) -> str:
    """Return a lock `with_versions` as it holds on any machine that has the wheels."""
    # The command in the first line may name paths, too.
    return DIRECT.sub(r"\1==\3", re.sub(r"\A# nexa-hpc .*\n", "", lock))


def unpackable(lock: str) -> str | None:
    """Return why no wheel can be made of something in the lock, or None."""
    in_place = re.search(r"(?m)^(?:-e|--editable)\b.*", lock)
    if in_place is not None:
        return (
            f"it uses a folder in place, which no archive holds: {in_place[0]}; take it without -e"
        )
    for name, address, _ in DIRECT.findall(lock):
        file = unquote(address.removeprefix("file://").partition("#")[0])
        if address.startswith("file:") and not os.path.exists(file):
            return f"{name} was installed from {file}, which is gone"
    return None


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
