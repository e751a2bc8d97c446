"""Nothing executable is loaded from a place that others can write: no pickles, no unsafe YAML."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nexa_hpc

PACKAGE = Path(nexa_hpc.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

UNSAFE_MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy",
    "jsonpickle",
}  # fmt: skip
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "np.load",
    "numpy.load", "pandas.read_pickle", "pd.read_pickle", "yaml.load", "yaml.load_all",
    "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all",
    "exec_module",
}  # fmt: skip
UNSAFE_KEYWORDS = {"shell": True, "weights_only": False, "allow_pickle": True}
MAY_CHANGE_SYS_PATH = {
    "core/user_code.py": "the project root",
    "schedulers/pool.py": "in a worker",
    "backends/axolotl/schema_program.py": "takes the current folder away",
    "hydra_runs/job.py": "as where the Hydra app was started",
    "hydra_runs/recording.py": "notes it for its jobs, and changes nothing",
}
# A Hydra app's objects have no other form; what is loaded is the reader's own: test_hydra_runs.py.
MAY_PICKLE = ("hydra_runs/pickles.py",)


def _unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of all that would run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [module, *(alias.name for alias in node.names)]
            yield from ((node.lineno, n) for n in names if n.partition(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            # re.compile and the like are methods of something else.
            if called in UNSAFE_CALLS or called.endswith(".exec_module"):
                yield node.lineno, called
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg in UNSAFE_KEYWORDS and value is UNSAFE_KEYWORDS[keyword.arg]:
                    yield node.lineno, ast.unparse(keyword)
        elif isinstance(node, ast.Attribute) and node.attr in ("UnsafeLoader", "FullLoader"):
            yield node.lineno, node.attr


def _changes_sys_path(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and ast.unparse(node) == "sys.path"
        and isinstance(node.ctx, ast.Load)
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_module_loads_what_could_run(path: Path) -> None:
    tree = ast.parse(path.read_text())
    name = path.relative_to(PACKAGE).as_posix()
    assert name in MAY_PICKLE or list(_unsafe(tree)) == []
    assert not _changes_sys_path(tree) or name in MAY_CHANGE_SYS_PATH


def test_the_rule_sees_what_it_forbids() -> None:
    code = (
        "import pickle; from joblib import load; from torch import x; eval(a); torch.load(f)\n"
        "yaml.load(f, Loader=yaml.UnsafeLoader); subprocess.run(a, shell=True); re.compile(b)\n"
        "torch.load(f, weights_only=False); importlib.import_module('x')\n"
    )
    found = [text for _, text in sorted(_unsafe(ast.parse(code)))]
    assert found == [
        "eval", "joblib", "pickle", "torch.load", "UnsafeLoader", "shell=True", "yaml.load",
        "torch.load", "weights_only=False",
    ]  # fmt: skip


# ---------------------------------------------------------------------- an intruder's checkpoint


class Trap:
    """Unpickled, it makes a folder; nothing else tells that it ran."""

    def __init__(self, sprung: Path) -> None:
        self._sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._sprung),)


def _zipped_trap(sprung: Path) -> bytes:
    """The trap in torch's own format, a zip file with a pickle in it."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(Trap(sprung), buffer)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [False, True], ids=["bare pickle", "torch's format"])
@pytest.mark.parametrize(
    "name", ["rng_state.pth", "optimizer.pt", "scheduler.pt", "training_args.bin"]
)
def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path, name: str, zipped: bool) -> None:
    pytest.importorskip("torch", reason="needs the extra [hf]")
    pytest.importorskip("transformers", reason="needs the extra [hf]")
    from hf_tiny import make_task, run_task, save_bert, write_splits

    from nexa_hpc.core.checkpoints import newest, seal

    inputs = {"model": save_bert(tmp_path / "bert"), "dataset": write_splits(tmp_path / "data")}
    params = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "use_cpu": True,
              "eval_strategy": "no", "load_best_model_at_end": False}  # fmt: skip
    first = make_task("runners.train", tmp_path, tmp_path / "first", params, inputs)
    run_task(first)
    assert newest([first.work_dir]) is not None

    sprung = tmp_path / "sprung"
    found = newest([first.work_dir])
    assert found is not None
    spoiled = found.path / name
    spoiled.unlink(missing_ok=True)
    spoiled.write_bytes(_zipped_trap(sprung) if zipped else pickle.dumps(Trap(sprung)))
    seal(first.work_dir, found.path)
    resume = newest([first.work_dir])
    assert resume is not None and resume.path == found.path

    again = {**params, "max_steps": 6}
    try:
        run_task(
            make_task("runners.train", tmp_path, tmp_path / "second", again, inputs, resume=resume)
        )
    except Exception as error:  # Whatever torch raises: it refused.
        told = str(error) + str(error.__cause__)
        assert "weights_only" in told or "Weights only" in told or "pickle" in told.lower(), told
    assert not sprung.exists(), "an intruder's code has run"


def test_the_trap_springs_for_who_unpickles_it(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").is_dir()
    shutil.rmtree(tmp_path / "sprung")
