"""Every path that nexa_hpc uses has its one author here; nobody else joins path parts.

    <root>/                                       the project root
        artifacts/.store/<hh>/<key>[.<output>]/   payload + meta.json + COMPLETE   (paths.store)
        artifacts/.registry/<model>/              versions and tags                (paths.registry)
        multirun/<pipeline>/<point>/<out>         the same view for each point of a sweep
        .nexa_state/                              history and work                 (paths.state)
            records/<hh>/<key>/<n>.{claim,start,end}.json
            work/<hh>/<key>/<n>/                  scratch of attempt n             (paths.work)
            digests/<host>.json                   remembered digests of inputs; advisory
            serve/<name>.*                        servers that were started   (`core.servers`)
            <pipeline>/pipeline_state.json        a projection of the newest run, rebuildable
            <pipeline>/reruns/<step>/<n>.json     one file for each `rerun --from`
            <pipeline>/runs/<run>/
                run.json                          what was asked: file, document, settings
                plan.json                         what was decided: instances, keys, reasons
                rounds/<n>.json                   one for the run and one for each resume
                cancelled.json                    the marker that `cancel` leaves
                drivers/<id>.json                 heartbeat of a process that drives the run
                batches/<token>.json              what one sbatch call was to hand over
                batches/<token>.answer.json       its job in Slurm, or why there is none
                source/, source.json              the project as its jobs see it; what is copied
                slurm/<token>/                    the script of one batch, and what its jobs print
                progress/<step>.<attempt>.json    how far a step in a job is; advisory
                state.json                        a projection of the run, rebuildable
                logs/<step>.<attempt>.log
        multirun/<pipeline>/<run>/                pictures of a sweep
    ~/.local/share/nexa_hpc/envs/                 environments by name             (paths.envs)
    ---                                           models and datasets of a hub    (paths.hub)

<hh> is the first two hex digits of the key. Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nexa_hpc.core.reading import list_names
from nexa_hpc.errors import UserError

STATE_NAME = ".nexa_state"
SETTINGS_NAME = "nexa.yaml"
RESERVED_PIPELINE_NAMES = frozenset({"records", "work", "digests", "serve"})
"""The folders that the state keeps beside those of the pipelines."""


def _anywhere(root: Path, text: str) -> Path:
    return Path(os.path.abspath(root / os.path.expanduser(text)))


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


def default_envs() -> Path:
    """Return where environments by name are, unless a setting says otherwise: with the user's own
    data, which outlives every project and its state.
    """
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local/share")
    return Path(os.path.abspath(base)) / "nexa_hpc" / "envs"


def user_cache() -> Path:
    """Return where what only saves time is kept for the user, of all projects."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.path.abspath(base)) / "nexa_hpc"


@dataclass(frozen=True)
class ProjectPaths:
    """The named roots of a project, all absolute, and every path below them."""

    root: Path
    state: Path
    store: Path
    registry: Path
    work: Path
    envs: Path = field(default_factory=default_envs)
    """Environments by name; no results, so it enters no key."""
    hub: Path | None = None
    """Models and datasets that `fetch` has brought; likewise."""

    @classmethod
    def at(cls, root: Path, **places: str) -> ProjectPaths:
        """Return the paths of the project at `root`; `places` may move any of the others."""

        def place(name: str, default: str) -> Path:
            return Path(os.path.abspath(root / places.get(name, default)))

        state = place("state", STATE_NAME)
        envs, hub = places.get("envs"), places.get("hub")
        return cls(
            root=Path(os.path.abspath(root)),
            state=state,
            store=place("store", "artifacts/.store"),
            registry=place("registry", "artifacts/.registry"),
            work=place("work", str(state / "work")),
            envs=_anywhere(root, envs) if envs else default_envs(),
            hub=_anywhere(root, hub) if hub else None,
        )

    def to_json(self) -> dict[str, str]:
        """Return the roots as text, for a run's record; `from_json` is its inverse."""
        return {name: str(path) for name, path in asdict(self).items() if path is not None}

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
        # One Path from one text: joining part by part takes four times as long, at each look.
        return Path(self.artifact_text(key, output))

    def artifact_text(self, key: str, output: str | None = None) -> str:
        """The same as text: a Path costs more than a glance at it."""
        return f"{self.store}/{key[:2]}/{key if output is None else f'{key}.{output}'}"

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

    @property
    def servers(self) -> Path:
        """What is recorded of the servers that were started."""
        return self.state / "serve"

    def pipeline(self, name: str) -> PipelinePaths:
        """The paths of one pipeline."""
        return PipelinePaths(self.state / name)

    def point_view(self, pipeline: str, label: str) -> Path:
        """The folder below which a point of a sweep has its `out`s."""
        return self.root / "multirun" / pipeline / label

    def pipelines(self) -> list[PipelinePaths]:
        """The pipelines that have run here."""
        names = [n for n in list_names(self.state) if n not in RESERVED_PIPELINE_NAMES]
        found = [PipelinePaths(self.state / name) for name in names]
        return [pipeline for pipeline in found if pipeline.runs.is_dir()]

    def pictures(self, pipeline: str, run_id: str) -> Path:
        """The folder of the pictures of a sweep's run."""
        return self.root / "multirun" / pipeline / run_id

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
    def stopped(self) -> Path:
        """What `cancel` leaves for a part of the run."""
        return self.folder / "stopped"

    @property
    def state(self) -> Path:
        """The projection of this run."""
        return self.folder / "state.json"

    @property
    def drivers(self) -> Path:
        """The heartbeats of the processes that drive this run."""
        return self.folder / "drivers"

    @property
    def batches(self) -> Path:
        """What was handed over to Slurm."""
        return self.folder / "batches"

    @property
    def source(self) -> Path:
        """The project as the run's jobs see it."""
        return self.folder / "source"

    @property
    def source_list(self) -> Path:
        """Which of its files are copies."""
        return self.folder / "source.json"

    @property
    def slurm(self) -> Path:
        """The folder of scripts and of what jobs print."""
        return self.folder / "slurm"

    def progress(self, step: str, attempt: int) -> Path:
        """How far an attempt in a job is."""
        return self.folder / "progress" / f"{step}.{attempt}.json"

    def log(self, step: str, attempt: int) -> Path:
        """The log of one attempt at a step."""
        return self.folder / "logs" / f"{step}.{attempt}.log"
