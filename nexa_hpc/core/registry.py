"""The model registry: named, numbered versions of artifacts, and tags that point at them.

The rules; `registry_files` draws the files. Reading needs no write permission. Called by the
registry's steps, by planning (`models:name@tag`), by the command line, and by users as
`nexa_hpc.Registry`. Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_hpc.core import artifacts
from nexa_hpc.core.artifacts import Artifact, Finding, Presence
from nexa_hpc.core.canonical import canonical_json
from nexa_hpc.core.registry_entries import PROMOTE, REMOVE, ROLLBACK, Tag, Version, standing
from nexa_hpc.core.registry_files import RegistryFiles
from nexa_hpc.core.registry_meta import checked_meta
from nexa_hpc.core.registry_names import (
    LATEST,
    Reference,
    check,
    name_problem,
    tag_problem,
    version_number,
    version_problem,
)
from nexa_hpc.errors import ArtifactError, RegistryError, UnknownNameError, nearest

_TROUBLES_SHOWN = 3


class Registry:
    """The registry in `folder`; any number of processes on any number of hosts may use it.

    Artifacts below `project` (default: the folder that holds `folder`) are remembered relative to
    the registry, so that both can be moved together; others by their absolute path.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        project: str | os.PathLike[str] | None = None,
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._files = RegistryFiles(
            self.folder, self.folder.parent if project is None else Path(os.path.abspath(project))
        )

    def models(self) -> list[str]:
        """Return the names of the models that have a version, in order."""
        return [name for name in self._files.model_names() if self._live(name)]

    def versions(self, model: str) -> list[Version]:
        """Return the versions of `model` that are not deleted, oldest first."""
        return [self._files.read_version(model, number) for number in self._known(model)]

    def version(self, model: str, version: int | str) -> Version:
        """Return a version of `model`, a number or `latest`; its files are not looked at."""
        check(version_problem(version))
        live = self._known(model)
        number = (live[-1] if live else None) if version == LATEST else version_number(version)
        if number in live:
            return self._files.read_version(model, number)
        if number is None:
            raise UnknownNameError(f"all versions of model '{model}' are deleted")
        raise UnknownNameError(
            f"version {number} of model '{model}' was deleted"
            if number in self._files.numbers(model)[1]
            else f"model '{model}' has no version {number}",
            hint=f"run 'nexa-hpc models show {model}'",
        )

    def find(self, reference: str) -> Version:
        """Return the version that `reference` names: `name@tag`, `name@3` or `name@latest`, with or
        without `models:` in front; its files are not looked at.

        Raises UnknownNameError with the nearest name.
        """
        named = Reference.parse(reference)
        if named.tag is None:
            return self.version(named.model, named.selector)
        self._known(named.model)
        tag = self.current(named.model, named.tag)
        if tag is None or tag.version is None:
            raise self._unknown_tag(named.model, named.tag)
        return self.version(named.model, tag.version)

    def resolve(self, reference: str) -> Version:
        """Return the version that `find` finds; raises ArtifactError when its files are gone."""
        version = self.find(reference)
        self.open(version)
        return version

    def look(self, version: Version) -> Finding:
        """Say what is at the version's path: the registered artifact, or what is wrong."""
        finding = artifacts.look(version.path)
        if finding.presence is Presence.FOREIGN:
            return Finding(Presence.PURGED, reason="COMPLETE is gone")
        if finding.artifact is not None and finding.artifact.hash != version.artifact_hash:
            return Finding(Presence.PURGED, reason="another artifact has taken its place")
        return finding

    def open(self, version: Version) -> Artifact:
        """Return the artifact of `version`, sizes checked; raises ArtifactError when it is gone."""
        finding = self.look(version)
        if finding.artifact is None:
            raise ArtifactError(
                f"the files of {version} are not there any more: {version.path}: {finding.reason}",
                hint=f"run its pipeline again, or 'nexa-hpc models show {version.model}'",
            )
        return finding.artifact

    def register(
        self,
        model: str,
        artifact_path: str | os.PathLike[str],
        meta: Mapping[str, Any] | None = None,
        *,
        source: Mapping[str, Any] | None = None,
    ) -> Version:
        """Make the complete artifact at `artifact_path` the next version of `model`.

        A link is followed to the artifact itself. Registering twice makes two versions: ask
        `find_version` first where one is enough. Raises ArtifactError when the artifact is not
        complete, RegistryError for a bad name or `meta` that is no JSON object.
        """
        check(name_problem(model))
        artifact = artifact_to_register(artifact_path)
        content = {
            "path": self._files.portable(artifact.path),
            "artifact_hash": artifact.hash,
            "step_key": artifact.key,
            "meta": checked_meta(meta or {}),
            "source": checked_meta(source or {}),
        }
        return self._files.read_version(model, self._files.add_version(model, content))

    def find_version(
        self, model: str, artifact_hash: str, meta: Mapping[str, Any] | None = None
    ) -> Version | None:
        """Return the newest version of `model` with that artifact, and that `meta` if given."""
        for number in reversed(self._live(model)):
            version = self._files.read_version(model, number)
            if version.artifact_hash == artifact_hash and (
                meta is None or canonical_json(version.meta) == canonical_json(meta)
            ):
                return version
        return None

    def tags(self, model: str) -> dict[str, int]:
        """Return where each tag of `model` points."""
        self._known(model)
        current = [self.current(model, name) for name in self._files.tag_names(model)]
        return {tag.name: tag.version for tag in current if tag and tag.version is not None}

    def current(self, model: str, tag: str) -> Tag | None:
        """Return the newest entry of `tag`, which may be its removal, or None if there is none."""
        check(name_problem(model) or tag_problem(tag))
        sequences = self._files.sequences(model, tag)
        return self._files.read_move(model, tag, sequences[-1]) if sequences else None

    def history(self, model: str, tag: str) -> list[Tag]:
        """Return all moves of `tag`, oldest first."""
        self._known(model)
        check(tag_problem(tag))
        sequences = self._files.sequences(model, tag)
        if not sequences:
            raise self._unknown_tag(model, tag)
        return [self._files.read_move(model, tag, sequence) for sequence in sequences]

    def promote(self, model: str, version: int | str, tag: str) -> Tag:
        """Point `tag` at a version, after every byte of its artifact was checked; return the entry.

        A tag that points there already gets no new entry. Of promotions at the same time all are
        recorded, and the last in the tag's history holds.
        """
        check(tag_problem(tag))
        target = self.version(model, version)
        self.verify(target)
        while True:
            newest = self.current(model, tag)
            if newest is not None and newest.version == target.number:
                return newest
            moved = self._files.add_move(model, tag, newest, PROMOTE, target.number)
            if moved is not None:
                return self._unless_deleted(moved)

    def rollback(self, model: str, tag: str) -> Tag:
        """Point `tag` back at the version it had before, once more for each call; return the entry.

        Raises RegistryError when there is none, or when somebody else moves the tag at this moment.
        """
        history = self.history(model, tag)
        live = self._known(model)
        past = [n for n in standing(history)[:-1] if n in live and n != history[-1].version]
        if not past or past[-1] is None:
            raise RegistryError(
                f"tag '{tag}' of {model} has no earlier version to go back to",
                hint=f"run 'nexa-hpc models history {model} {tag}'",
            )
        self.verify(self.version(model, past[-1]))
        return self._unless_deleted(self._move_from(history[-1], ROLLBACK, past[-1]))

    def remove_tag(self, model: str, tag: str) -> Tag:
        """End `tag`; its history stays, and `rollback` brings it back. Returns the entry."""
        newest = self.history(model, tag)[-1]
        if newest.version is None:
            raise self._unknown_tag(model, tag)
        return self._move_from(newest, REMOVE, None)

    def delete(self, model: str, version: int | str) -> Version:
        """Delete a version that no tag points to, and return it; its number is never used again.

        Its files are not touched: the store's gc may now take them.
        """
        target = self.version(model, version)
        self._refuse_if_tagged(target)
        won = self._files.bury(model, target.number)
        # Promoting writes its entry first and then looks for a tombstone, this does the opposite:
        # whichever comes second sees the other, so no tag is left at a deleted version.
        try:
            self._refuse_if_tagged(target)
        except RegistryError:
            if won:
                self._files.unbury(model, target.number)
            raise
        return target

    def verify(self, version: Version) -> None:
        """Read every byte of the version's artifact; raises ArtifactError when one is damaged."""
        wrong = artifacts.verify(self.open(version))
        if wrong:
            more = len(wrong) - _TROUBLES_SHOWN
            raise ArtifactError(
                f"the artifact of {version} is damaged: {'; '.join(wrong[:_TROUBLES_SHOWN])}"
                + (f"; and {more} more" if more > 0 else ""),
                hint=f"see {version.path}; rerun the step that made it",
            )

    def roots(self) -> set[Path]:
        """Return the folders that the versions rely on, for a gc to keep."""
        return {version.path for model in self.models() for version in self.versions(model)}

    def _move_from(self, entry: Tag, action: str, version: int | None) -> Tag:
        """Write the entry that follows `entry`, on whose being the present the decision rests."""
        moved = self._files.add_move(entry.model, entry.name, entry, action, version)
        if moved is None:
            raise RegistryError(
                f"tag '{entry.name}' of {entry.model} was moved by somebody else at this moment",
                hint=f"run 'nexa-hpc models history {entry.model} {entry.name}', then decide again",
            )
        return moved

    def _unless_deleted(self, moved: Tag) -> Tag:
        """Return `moved`, or take it back when its version was deleted meanwhile (see `delete`)."""
        entry: Tag | None = moved
        while entry and entry.version not in (None, *(live := self._live(entry.model))):
            past = standing(self.history(entry.model, entry.name))[:-1]
            back = next((n for n in reversed(past) if n is None or n in live), None)
            entry = self._files.add_move(entry.model, entry.name, entry, ROLLBACK, back)
        if entry is not moved:
            raise RegistryError(
                f"version {moved.version} of {moved.model} was deleted at this moment; "
                f"{moved.name} does not point to it"
            )
        return moved

    def _refuse_if_tagged(self, version: Version) -> None:
        tags = self.tags(version.model)
        pointing = [tag for tag, number in tags.items() if number == version.number]
        if pointing:
            raise RegistryError(
                f"{version} is {' and '.join(pointing)}, so it cannot be deleted",
                hint=f"first: nexa-hpc models rollback {version.model} {pointing[0]}",
            )

    def _known(self, model: str) -> list[int]:
        """Return the live numbers of a model that exists; raises UnknownNameError for another."""
        check(name_problem(model))
        if not self._files.numbers(model)[0]:
            models = self.models()
            raise UnknownNameError(
                f"no model '{model}' in {self.folder}" + nearest(model, models),
                hint="run 'nexa-hpc models list'"
                if models
                else f"register one: nexa-hpc models register {model} FOLDER",
            )
        return self._live(model)

    def _live(self, model: str) -> list[int]:
        numbers, deleted = self._files.numbers(model)
        return sorted(numbers - deleted)

    def _unknown_tag(self, model: str, tag: str) -> UnknownNameError:
        tags = self.tags(model)
        return UnknownNameError(
            f"model '{model}' has no tag '{tag}'" + nearest(tag, tags),
            hint=f"run 'nexa-hpc models show {model}'"
            if tags
            else f"set it: nexa-hpc models promote {model} latest {tag}",
        )


def artifact_to_register(path: str | os.PathLike[str]) -> Artifact:
    """Return the complete artifact at `path`, links followed; raises ArtifactError otherwise."""
    place = artifacts.place_of(path)
    finding = artifacts.look(place)
    if finding.artifact is not None:
        return finding.artifact
    outer = next((p for p in place.parents if (p / artifacts.COMPLETE).is_file()), None)
    if outer is not None:
        raise ArtifactError(
            f"{place} is a part of the artifact {outer}", hint="register the whole artifact"
        )
    raise ArtifactError(
        f"{place} is no complete artifact: {finding.reason}",
        hint="register a step's `out`, or publish the folder with nexa_hpc.create_artifact first",
    )
