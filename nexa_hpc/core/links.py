"""The links that `out` names: `artifacts/checkpoints/x -> ../.store/ab/abcd…`, swapped by rename.

A link is a view of the store, made and repaired by `advance`; nothing reads a result through it.
What stands at its place and is not a link of ours is never touched. Standard library alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE, access_in
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.reading import is_there
from nexa_hpc.errors import ArtifactError


def link_outputs(instance: Instance, paths: ProjectPaths) -> set[Path]:
    """Point every declared `out` of `instance` at its artifact in the store.

    Returns the folders in which a link changed, for the caller to sync when it has made its last.
    Raises ArtifactError when something else stands there, or the link cannot be made.
    """
    if not any(instance.outputs.values()):
        return set()
    changed = set()
    for name, target in instance.artifact_paths(paths).items():
        declared = instance.outputs[name]
        if declared is not None:
            link = Path(os.path.join(paths.root, declared))
            if _link(link, target, paths.store):
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
