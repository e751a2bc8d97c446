"""Packing an environment by name for machines without a network: its wheels, and what it is.

`env create --wheelhouse` makes it there (`wheelhouses`). Called by `env pack`. Standard library
alone.
"""

from __future__ import annotations

import importlib.util
import tarfile
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.env_building import pip_of, run_tool
from nexa_hpc.core.env_checking import DIRECT, portable, unpackable, with_versions
from nexa_hpc.core.extras import normalized
from nexa_hpc.core.named_environments import LOCK, MARKER, NamedEnvironment, installed
from nexa_hpc.errors import UserError

_ASKED = "asked.txt"


def pack(environment: NamedEnvironment, file: Path) -> int:
    """Write an archive of wheels from which `environment` is made without a network.

    What came from a path or an address is in it by its version, and no path of this machine is.
    Returns how many wheels. Raises UserError for what has no wheel, NexaError where pip fails.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError("packing takes pip, which is not installed here", hint="uv pip install pip")
    lock = with_versions(environment.lock.read_text(encoding="utf-8"), installed(environment.build))
    problem = unpackable(lock)
    if problem is not None:
        message = f"the environment '{environment.name}' cannot be packed: {problem}"
        raise UserError(message, hint=f"it was made by: {environment.command()}")
    wheels = file.absolute().with_name(f".{file.name}.{atomic.unique_suffix()}")
    atomic.make_folder(wheels)
    try:
        pip = [*pip_of(environment.python), "wheel", "--no-deps", "--wheel-dir", str(wheels)]
        # By its address alone: not every pip takes `name @ git+file://…`.
        atomic.write_file(wheels / _ASKED, DIRECT.sub(r"\2", lock))
        run_tool([*pip, "-r", str(wheels / _ASKED)], "pip wheel")
        found = sorted(wheels.glob("*.whl"))
        _write_portable(environment, lock, wheels)
        with (
            atomic.replacing(file) as stream,
            tarfile.open(fileobj=stream, mode="w|") as archive,  # Wheels are compressed already.
        ):
            for member in [wheels / MARKER, wheels / LOCK, *found]:
                archive.add(member, arcname=member.name)
    finally:
        atomic.remove_tree(wheels)
    return len(found)


def _write_portable(environment: NamedEnvironment, lock: str, folder: Path) -> None:
    """Write the marker and the lock beside the wheels in `folder`, by versions alone."""
    wheels = [file.name.split("-") for file in folder.glob("*.whl")]
    versions = {normalized(name): version for name, version, *_ in wheels}
    direct = DIRECT.findall(lock)
    for name, address, version in direct:
        made = versions.get(normalized(name))
        if made != version:
            message = f"{name} is {version or 'gone'} in the environment, and {made} at {address}"
            raise UserError(message, hint=environment.command(again=True))
    packages = [text for text in environment.packages if "/" not in text and "@" not in text]
    packages += [f"{name}=={version}" for name, _, version in direct]
    asked = {"extras": environment.extras, "packages": packages, "without": environment.without}
    marker = {"name": environment.name, **asked}
    atomic.write_json(folder / MARKER, marker)
    atomic.write_file(folder / LOCK, portable(lock))
