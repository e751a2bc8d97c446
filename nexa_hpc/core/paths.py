"""Every path that nexa_hpc uses has its one author here; nobody else joins path parts.

    <root>/                                       the project root
        artifacts/.store/<hh>/<key>[.<output>]/   payload + meta.json + COMPLETE   (paths.store)
        artifacts/.registry/<model>/              versions and tags                (paths.registry)
        .nexa_state/                              history and work                 (paths.state)
            records/<hh>/<key>/<n>.{claim,start,end}.json
            work/<hh>/<key>/<n>/                  scratch of attempt n             (paths.work)
            digests/<host>.json                   remembered digests of inputs; advisory
            <pipeline>/pipeline_state.json        a projection of the newest run, rebuildable
            <pipeline>/reruns/<step>/<n>.json     one file for each `rerun --from`
            <pipeline>/runs/<run>/
                run.json                          what was asked: file, document, settings
                plan.json                         what was decided: instances, keys, reasons
                rounds/<n>.json                   one for the run and one for each resume
                cancelled.json                    the marker that `cancel` leaves
                drivers/<id>.json                 heartbeat of a process that drives the run
                state.json                        a projection of the run, rebuildable
                logs/<step>.<attempt>.log

<hh> is the first two hex digits of the key. Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nexa_hpc.core.reading import list_names
from nexa_hpc.errors import UserError

STATE_NAME = ".nexa_state"
SETTINGS_NAME = "nexa.yaml"
RESERVED_PIPELINE_NAMES = frozenset({"records", "work", "digests", "serve"})
"""The folders that the state keeps beside those of the pipelines."""


def find_root(start: Path, file: Path | None = None, project: Path | None = None) -> Path:
    """Return the project root: `project`, else the nearest ancestor of `start` that holds
    `.nexa_state` or `nexa.yaml`, else the nearest ancestor of `file` with `configs/`, else `start`.
    """
    if project is not None:
        if not project.is_dir():
            raise UserError(f"--project {project}: no such folder")
        return project.resolve()
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / STATE_NAME).is_dir() or (folder / SETTINGS_NAME).is_file():
            return folder
    for folder in file.resolve().parents if file is not None else ():
        if (folder / "configs").is_dir():
            return folder
    return start


def sharded(folder: Path) -> Iterator[Path]:
    """Yield every `<folder>/<hh>/<name>`, in order, but for hidden names."""
    for shard in list_names(folder):
        if len(shard) == 2:
            names = list_names(folder / shard)
            yield from (folder / shard / name for name in names if not name.startswith("."))


@dataclass(frozen=True)
class ProjectPaths:
    """The named roots of a project, all absolute, and every path below them."""

    root: Path
    state: Path
    store: Path
    registry: Path
    work: Path

    @classmethod
    def at(cls, root: Path, **places: str) -> ProjectPaths:
        """Return the paths of the project at `root`; `places` may move any of the others."""

        def place(name: str, default: str) -> Path:
            return Path(os.path.abspath(root / places.get(name, default)))

        state = place("state", STATE_NAME)
        return cls(
            root=Path(os.path.abspath(root)),
            state=state,
            store=place("store", "artifacts/.store"),
            registry=place("registry", "artifacts/.registry"),
            work=place("work", str(state / "work")),
        )

    def to_json(self) -> dict[str, str]:
        """Return the roots as text, for a run's record; `from_json` is its inverse."""
        return {name: str(path) for name, path in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, str]) -> ProjectPaths:
        """Return the paths that `to_json` wrote."""
        return cls(**{name: Path(text) for name, text in value.items()})

    def named_roots(self) -> dict[str, Path]:
        """Return the roots that a path may lie under, the most specific first."""
        roots = {"store": self.store, "registry": self.registry, "work": self.work}
        return {**roots, "state": self.state, "project": self.root}

    def artifact(self, key: str, output: str | None = None) -> Path:
        """The store's folder for `key`, or for one of its named outputs."""
        name = key if output is None else f"{key}.{output}"
        # One Path from one text: joining part by part takes four times as long, at each look.
        return Path(f"{self.store}/{key[:2]}/{name}")

    @property
    def all_records(self) -> Path:
        """The folder of the records of all keys."""
        return self.state / "records"

    def records(self, key: str) -> Path:
        """The folder of the records of all attempts at `key`."""
        return Path(f"{self.state}/records/{key[:2]}/{key}")

    def work_of(self, key: str) -> Path:
        """The folder that holds the work folders of all attempts at `key`."""
        return self.work / key[:2] / key

    def remembered_digests(self, host: str) -> Path:
        """The advisory memory of input digests of one host."""
        return self.state / "digests" / f"{host}.json"

    def pipeline(self, name: str) -> PipelinePaths:
        """The paths of one pipeline."""
        return PipelinePaths(self.state / name)

    def pipelines(self) -> list[PipelinePaths]:
        """The pipelines that have run here."""
        names = [n for n in list_names(self.state) if n not in RESERVED_PIPELINE_NAMES]
        found = [PipelinePaths(self.state / name) for name in names]
        return [pipeline for pipeline in found if pipeline.runs.is_dir()]

    def relative(self, path: Path) -> str:
        """Return `path` relative to the project root where it lies below it, for people to read."""
        return os.path.relpath(path, self.root) if path.is_relative_to(self.root) else str(path)


@dataclass(frozen=True)
class PipelinePaths:
    """What is kept under `.nexa_state/<pipeline>/`."""

    folder: Path

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.folder.name

    @property
    def state(self) -> Path:
        """The projection of the newest run."""
        return self.folder / "pipeline_state.json"

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.folder / "runs"

    def reruns(self, step: str) -> Path:
        """The folder that holds a file for each `rerun --from` that reached `step`."""
        return self.folder / "reruns" / step

    def run(self, run_id: str) -> RunPaths:
        """The paths of one run."""
        return RunPaths(self.runs / run_id)


@dataclass(frozen=True)
class RunPaths:
    """What is kept of one run."""

    folder: Path

    @property
    def run_id(self) -> str:
        """The run's id, `<pipeline>-<number>`."""
        return self.folder.name

    @property
    def pipeline(self) -> PipelinePaths:
        """The pipeline this is a run of."""
        return PipelinePaths(self.folder.parent.parent)

    @property
    def request(self) -> Path:
        """What was asked."""
        return self.folder / "run.json"

    @property
    def plan(self) -> Path:
        """What was decided."""
        return self.folder / "plan.json"

    @property
    def rounds(self) -> Path:
        """One file for the run itself and one for each resume."""
        return self.folder / "rounds"

    @property
    def cancelled(self) -> Path:
        """The marker that `cancel` leaves."""
        return self.folder / "cancelled.json"

    @property
    def state(self) -> Path:
        """The projection of this run."""
        return self.folder / "state.json"

    @property
    def drivers(self) -> Path:
        """The heartbeats of the processes that drive this run."""
        return self.folder / "drivers"

    def log(self, step: str, attempt: int) -> Path:
        """The log of one attempt at a step."""
        return self.folder / "logs" / f"{step}.{attempt}.log"
