"""nexa_hpc: ML pipelines on a laptop or on Slurm, cached, atomic and resumable.

The public names load on first use, so that the command line does not pay for those it does not
need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nexa_hpc.core.artifacts import Artifact
    from nexa_hpc.core.handlers import Task
    from nexa_hpc.core.publishing import create_artifact
    from nexa_hpc.core.registry import Registry
    from nexa_hpc.core.spec import Step
    from nexa_hpc.pipeline import Pipeline
    from nexa_hpc.pipeline_run import PipelineRun, Results

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "Pipeline",
    "PipelineRun",
    "Registry",
    "Results",
    "Step",
    "Task",
    "__version__",
    "create_artifact",
]

_HOMES = {
    "Artifact": "nexa_hpc.core.artifacts",
    "Pipeline": "nexa_hpc.pipeline",
    "PipelineRun": "nexa_hpc.pipeline_run",
    "Registry": "nexa_hpc.core.registry",
    "Results": "nexa_hpc.pipeline_run",
    "Step": "nexa_hpc.core.spec",
    "Task": "nexa_hpc.core.handlers",
    "create_artifact": "nexa_hpc.core.publishing",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
