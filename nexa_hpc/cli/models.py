"""`nexa-hpc models …`: the model registry from the command line.

What a script reads goes to stdout, everything else to stderr. Light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from nexa_hpc.cli import models_view
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import local_time, print_table
from nexa_hpc.core.registry import Registry, artifact_to_register
from nexa_hpc.core.registry_meta import read_meta
from nexa_hpc.core.registry_names import LATEST
from nexa_hpc.core.sharing import prepare_registry
from nexa_hpc.errors import NexaError


def _registry(session: Session, *, to_change: bool = False) -> Registry:
    session.announce_root()
    if to_change:
        prepare_registry(session.paths, session.settings.group)
    return Registry(session.paths.registry, project=session.paths.root)


# ---------------------------------------------------------------------------- completion in a shell


Choices = Callable[[Registry, str, str], Iterable[str]]
"""(the registry, the MODEL typed before, the word typed so far) -> what may stand there."""
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completes(choices: Choices) -> Complete:
    """Return a shell completion that offers `choices`, or nothing when anything is amiss."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            # No session exists while a shell completes.
            project = ctx.find_root().params.get("project")
            registry = Registry(Session(project).paths.registry)
            found = [*choices(registry, ctx.params.get("model") or "", incomplete)]
        except (NexaError, OSError):
            return []
        return [CompletionItem(choice) for choice in found if choice.startswith(incomplete)]

    return complete


def _models(registry: Registry, _: str, __: str) -> Iterable[str]:
    return registry.models()


def _versions(registry: Registry, model: str, _: str) -> Iterable[str]:
    return [LATEST, *(str(version.number) for version in registry.versions(model))]


def _tags(registry: Registry, model: str, _: str) -> Iterable[str]:
    # Where an option is completed, click has not parsed MODEL: then any model's tags may be meant.
    return {
        tag: None
        for name in ([model] if model else registry.models())
        for tag in registry.tags(name)
    }


def _references(registry: Registry, _: str, incomplete: str) -> Iterable[str]:
    model, at, _ = incomplete.partition("@")
    if not at:
        return registry.models()
    selectors = [*_tags(registry, model, ""), *_versions(registry, model, "")]
    return [f"{model}@{selector}" for selector in selectors]


_model = click.argument("model", shell_complete=_completes(_models))
_reference = click.argument(
    "reference", metavar="MODEL@VERSION", shell_complete=_completes(_references)
)
_version = click.argument("version", shell_complete=_completes(_versions))
_tag = click.argument("tag", shell_complete=_completes(_tags))
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


# --------------------------------------------------------------------------------------- commands


@click.group("models")
def group() -> None:
    """Registered models: versions of artifacts, and tags that point at them.

    \b
    Example:
      nexa-hpc models promote movie-sentiment latest production
      cp -r "$(nexa-hpc models resolve movie-sentiment@production)" deploy/

    Exit codes: 0 done, 2 refused (a name, a tag in use), 3 the artifact is missing or damaged.
    """


@group.command()
@_model
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--meta",
    type=click.Path(exists=True, path_type=Path),
    help="A file with one JSON object: what to remember about this version.",
)
@click.pass_obj
def register(session: Session, model: str, folder: Path, meta: Path | None) -> None:
    """Make the artifact in FOLDER a version of MODEL.

    Registering the same once more finds the version that is there.

    \b
    Example:
      nexa-hpc models register movie-sentiment artifacts/checkpoints/minilm --meta metrics.json
    """
    registry = _registry(session, to_change=True)
    content = {} if meta is None else read_meta(meta)
    artifact = artifact_to_register(folder)
    version = registry.find_version(model, artifact.hash, content)
    if version is not None:
        click.echo(f"{version} is this artifact already")
        return
    source = {"command": "models register"}
    version = registry.register(model, artifact.path, content, source=source)
    click.echo(f"registered {version} ({session.paths.relative(version.path)})")


@group.command()
@_reference
@click.pass_obj
def resolve(session: Session, reference: str) -> None:
    """Print the folder of name@tag, name@3 or name@latest.

    One absolute path and nothing else goes to stdout, so that scripts can use it.

    \b
    Example:
      MODEL="$(nexa-hpc models resolve movie-sentiment@production)"
    """
    click.echo(_registry(session).resolve(reference).path)


@group.command()
@_model
@_version
@_tag
@click.pass_obj
def promote(session: Session, model: str, version: str, tag: str) -> None:
    """Point TAG at a VERSION: a number, or latest.

    Every byte of its files is checked before the tag moves.

    \b
    Example:
      nexa-hpc models promote movie-sentiment 3 production
    """
    registry = _registry(session, to_change=True)
    target = registry.version(model, version)
    before = registry.current(model, tag)
    after = registry.promote(model, target.number, tag)
    click.echo(f"{tag} is already version {target.number}" if after == before else after)


@group.command()
@_model
@_tag
@click.pass_obj
def rollback(session: Session, model: str, tag: str) -> None:
    """Point TAG back at the version it had before.

    Once more, and it goes back one more.

    \b
    Example:
      nexa-hpc models rollback movie-sentiment production
    """
    click.echo(_registry(session, to_change=True).rollback(model, tag))


@group.command()
@_model
@click.argument("version", required=False, shell_complete=_completes(_versions))
@click.option("--tag", shell_complete=_completes(_tags), help="Remove this tag; its version stays.")
@click.pass_obj
def delete(session: Session, model: str, version: str | None, tag: str | None) -> None:
    """Delete a VERSION that has no tag, or a tag.

    Files in the store are not touched.

    \b
    Example:
      nexa-hpc models delete movie-sentiment 2
      nexa-hpc models delete movie-sentiment --tag staging
    """
    if (version is None) == (tag is None):
        raise click.UsageError("say either a VERSION or --tag TAG")
    registry = _registry(session, to_change=True)
    if tag is not None:
        click.echo(registry.remove_tag(model, tag))
    elif version is not None:
        click.echo(f"deleted {registry.delete(model, version)}")


@group.command("list")
@_as_json
@click.pass_obj
def list_models(session: Session, as_json: bool) -> None:
    """List the models, with their tags and newest versions.

    \b
    Example:
      nexa-hpc models list --json | jq -r '.[].model'
    """
    registry = _registry(session)
    found = [models_view.model_to_json(registry, model) for model in registry.models()]
    if as_json:
        models_view.print_json(found)
    elif not found:
        click.echo("no models yet; register one: nexa-hpc models register NAME FOLDER", err=True)
    else:
        rows = [
            [
                m["model"],
                str(m["latest"]),
                str(m["versions"]),
                models_view.tags_in_words(m["tags"]),
                models_view.gone_in_words(m["gone"]),
            ]
            for m in found
        ]
        print_table(["MODEL", "LATEST", "VERSIONS", "TAGS", "FILES"], rows)


@group.command()
@click.argument("reference", metavar="MODEL[@VERSION]", shell_complete=_completes(_references))
@_as_json
@click.pass_obj
def show(session: Session, reference: str, as_json: bool) -> None:
    """Show a model's versions, or all about one.

    One is named as name@tag, name@3 or name@latest.

    \b
    Example:
      nexa-hpc models show movie-sentiment
      nexa-hpc models show movie-sentiment@production
    """
    registry = _registry(session)
    if "@" in reference:
        one = models_view.version_to_json(registry, registry.find(reference))
        models_view.print_json(one) if as_json else models_view.print_fields(one)
        return
    versions = registry.versions(reference)
    tags = registry.tags(reference)
    if as_json:
        listed = [models_view.version_to_json(registry, version) for version in versions]
        models_view.print_json({"model": reference, "tags": tags, "versions": listed})
        return
    rows = [
        [
            str(version.number),
            " ".join(models_view.tags_of(version, tags)),
            local_time(version.registered_at),
            version.registered_by,
            registry.look(version).presence.value,
            models_view.figures(version),
            models_view.artifact_in_words(version, session.paths),
        ]
        for version in versions
    ]
    print_table(["VERSION", "TAGS", "REGISTERED", "BY", "FILES", "META", "ARTIFACT"], rows)


@group.command()
@_model
@_tag
@_as_json
@click.pass_obj
def history(session: Session, model: str, tag: str, as_json: bool) -> None:
    """Show every move of TAG, oldest first.

    \b
    Example:
      nexa-hpc models history movie-sentiment production
    """
    moves = _registry(session).history(model, tag)
    if as_json:
        models_view.print_json([asdict(move) for move in moves])
        return
    rows = [
        [
            str(move.sequence),
            move.action,
            models_view.move_in_words(move),
            local_time(move.set_at),
            move.set_by,
        ]
        for move in moves
    ]
    print_table(["N", "ACTION", "VERSION", "AT", "BY"], rows)
