"""The links that `out` names: `artifacts/checkpoints/x -> ../.store/ab/abcd…`, swapped by rename.

A point of a sweep has all of its `out`s below `multirun/<pipeline>/<label>/`. A link is a view of
the store, made and repaired by `advance`; nothing reads a result through it.
What stands at its place and is not a link of ours is never touched. Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE, access_in
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.reading import is_there
from nexa_hpc.errors import ArtifactError


def out_links(
    instance: Instance, paths: ProjectPaths, views: Sequence[Path] = ()
) -> dict[str, list[Path]]:
    """Return output name -> its links, for the outputs of `instance` that declare a place.

    `views` are the folders of the points that it serves (`Run.views`), in a sweep.
    """
    roots = list(views) if instance.points else [paths.root]
    return {
        name: [Path(os.path.join(root, declared)) for root in roots]
        for name, declared in instance.outputs.items()
        # Of points, an absolute place would show the one that came last.
        if declared is not None and not (instance.points and os.path.isabs(declared))
    }


def link_outputs(instance: Instance, paths: ProjectPaths, views: Sequence[Path] = ()) -> set[Path]:
    """Point every link of `out_links` at its artifact in the store.

    Returns the folders in which a link changed, for the caller to sync when it has made its last.
    Raises ArtifactError when something else stands there, or the link cannot be made.
    """
    changed = set()
    targets = instance.artifact_paths(paths)
    for name, links in out_links(instance, paths, views).items():
        for link in links:
            if _link(link, targets[name], paths.store):
                changed.add(link.parent)
    return changed


def _link(link: Path, target: Path, store: Path) -> bool:
    # A relative link is read from its real folder, which an absolute `out` may reach by a link.
    wanted = os.path.relpath(target, os.path.realpath(link.parent))
    try:
        if os.readlink(link) == wanted:
            return False
    except OSError:
        pass
    try:
        if is_there(link) and not leads_into(link, store):
            raise ArtifactError(
                f"{link} is not a link of nexa_hpc; it is left alone",
                hint="move it away, then run `nexa-hpc pipeline resume`",
            )
        # A view of the store is for whoever the store is for.
        access = access_in(store) if store.exists() else PRIVATE
        atomic.replace_link(link, wanted, access)
    except OSError as error:
        raise ArtifactError(
            f"{link} cannot be linked: {error.strerror} ({error.filename})",
            hint="mend that, then run `nexa-hpc pipeline resume`",
        ) from error
    return True


def leads_into(link: Path, store: Path) -> bool:
    """Return whether `link` is a symlink that points into `store`, dangling or not."""
    return target_in(link, store) is not None


def target_in(link: Path, store: Path) -> Path | None:
    """Return where in `store` the symlink `link` points, dangling or not; None if it does not."""
    if not link.is_symlink():
        return None
    folder = os.path.realpath(link.parent)
    target = Path(os.path.normpath(os.path.join(folder, os.readlink(link))))
    return target if target.is_relative_to(store) else None
