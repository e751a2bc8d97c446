"""A pipeline as the command line names it: file, overrides, a sweep or not.

Called by the commands that plan.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nexa_hpc.cli.session import Session
from nexa_hpc.core.collector import made_to_stay
from nexa_hpc.errors import UserError
from nexa_hpc.pipeline import Pipeline


def read_pipeline(
    session: Session,
    file: Path,
    overrides: tuple[str, ...] = (),
    config_dirs: tuple[Path, ...] = (),
    *,
    multirun: bool = False,
) -> Pipeline:
    """Return the pipeline in `file`, announcing the root.

    Raises SpecError, UserError: for what is wrong, and where there is nothing to sweep.
    """
    with made_to_stay():
        pipeline = Pipeline.from_yaml(
            file,
            overrides=overrides,
            multirun=multirun,
            project=session.project,
            config_dirs=config_dirs,
        )
    session.announce_root(pipeline.paths.root)
    if multirun and not pipeline.points:
        raise UserError(
            f"nothing to sweep: no override has several values, and {file} has no `sweep:`",
            hint=f"nexa-hpc run {file} -m steps.STEP.params.NAME=1,2,3",
        )
    if pipeline.definition.has_sweep and not multirun:
        print(f"note: {file} has a `sweep:`, which is run by -m", file=sys.stderr)
    return pipeline
