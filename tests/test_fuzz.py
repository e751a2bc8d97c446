"""A minute of hostile documents: whatever they hold, they are refused in words or they are fine.

The parser, the document's form and the checks of planning get mutated and invented documents, in a
project with files, links and folders in the way. Nothing but SpecError may come out, in a message
that a terminal is safe from, and nothing may be written. Failing examples are shrunk and printed.
`NEXA_FUZZ_S` sets the time.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from nexa_hpc.core.nodes import nodes_of
from nexa_hpc.core.quoting import printable_lines
from nexa_hpc.errors import SpecError
from nexa_hpc.pipeline import Pipeline

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("NEXA_FUZZ_S", "60"))

SEED = """
x-base: &base
  params:
    {command: echo $PARAM_x, x: 0.001, code: [script.py], checkpoint: {glob: '*.pt', signal: TERM}}
pipeline:
  name: seed
  labels: {team: a}
  steps:
    - {id: first, uses: runners.command, <<: *base, in: {data: data/rows.csv}, out: out/first}
    - id: second
      uses: runners.train
      backend: hf
      in: {dataset: first}
      out: out/model
      params: {model: bert, learning_rate: 0.01, lora: {r: 8}, task: causal_lm, text_column: text}
    - {id: third, uses: runners.eval, in: {config: eval.yaml, checkpoint: second}, after: [first]}
    - id: fourth
      uses: core.registry.register
      params: {name: m, uri: out/model, meta: third/metrics.json}
    - {id: fifth, uses: core.registry.promote, params: {name: m, version: registered, tag: prod}}
    - id: sixth
      uses: "steps:make"
      in: {d: ./data, e: {path: eval.yaml, digest: stat}}
      env: {variables: {A: b}, secrets: [HOME]}
      cache_hint: v1
      resources: {nodes: 1, gpus_per_node: 2, mem_gb: 3.5, timeout_min: 6, slurm: {extra: {qos: x}}}
"""
KEYS = [
    "pipeline", "name", "labels", "steps", "id", "uses", "backend", "scheduler", "in", "out",
    "params", "after", "cache_hint", "resources", "env", "path", "digest", "variables", "secrets",
    "command", "code", "checkpoint", "glob", "signal", "model", "dataset", "config", "lora", "uri",
    "meta", "version", "tag", "task", "metrics", "batch_size", "learning_rate", "nodes", "slurm",
    "metric", "mode", "step", "scope", "world_size", "global_batch_size", "model_sha256", "split",
]  # fmt: skip
HOSTILE = [
    "..", "../..", "../../etc/passwd", "/", "/etc/passwd", "/dev/zero", "/dev/stdin",
    "/proc/self/mem", ".", "", " ", "~", "~root/x", "a/../b", "first/../../x", "out/first/..",
    "./first", "link-out", "link-out/passwd", "link-loop", "link-gone", "fifo", "closed/x",
    "rows.csv/x", "a\nb", "a\rb", "a\x00b", "a\x1b]0;owned\x07", "\u202egpj.exe", "\ud800",
    "é" * 150, "n" * 300, "n" * 5000, "/".join("d" * 200 for _ in range(30)), "$(touch owned)",
    "`touch owned`", "; touch owned", "-rf", "--help", "{{7*7}}", "${HOME}", "%s%n", "nan", "1e999",
    "models:", "models:m@", "models:../x@1", "models:m@production", "pkg://", "pkg://os/../x",
    "pkg://nexa_hpc/../../x", "pkg://../x", "pkg://a b/c", "pkg://nexa_hpc/\x00", "os:system",
    "steps:make", "steps:nothing", "steps:", ":make", "a.b:c", "../steps:make", "steps/:x",
    "broken:x", "runners.command", "runners.train", "runners.eval", "runners.serve",
    "core.registry.register", "core.registry.promote", "local", "slurm", "first", "second",
    "registered", "latest", "stat", "none", "content", "TERM", "SIGKILL", "0", "-1", "1", "**/../*",
    "[", "***", "x" * 64, "COMPLETE", "meta.json", ".nexa_state", "artifacts/.store",
    "artifacts/.registry/x", "script.py", "data", "eval.yaml", "hf", "text_classification",
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.sampled_from(KEYS), st.text(max_size=12))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10), st.integers(), st.floats(),
    TEXTS, TEXTS, TEXTS, st.dates().map(str),
)  # fmt: skip
NAMES = st.one_of(st.sampled_from(KEYS), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)
HANDLERS = st.sampled_from(
    ["runners.command", "runners.train", "runners.eval", "core.registry.register",
     "core.registry.promote", "steps:make", "runners.serve"]
)  # fmt: skip
STEPS = st.fixed_dictionaries(
    {"id": st.one_of(st.sampled_from(["first", "second", "third"]), VALUES),
     "uses": st.one_of(HANDLERS, HANDLERS, VALUES)},
    optional={
        key: st.one_of(st.dictionaries(NAMES, SCALARS, max_size=4), VALUES)
        for key in ("in", "out", "params", "after", "env", "resources", "labels", "backend",
                    "scheduler", "cache_hint")
    },
)  # fmt: skip
DOCUMENTS = st.fixed_dictionaries(
    {"pipeline": st.fixed_dictionaries(
        {"name": st.one_of(st.just("p"), TEXTS), "steps": st.lists(STEPS, min_size=1, max_size=4)},
        optional={"labels": VALUES},
    )},
    optional={"x-more": VALUES},
)  # fmt: skip
TOKENS = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([text.encode(errors="replace") for text in HOSTILE]),
    st.sampled_from([b"*base", b"&base ", b"<<: ", b"!!int ", b"!!python/name:os.system ", b"- ",
                     b"? ", b": ", b"{", b"}", b"[", b"]", b"'", b'"', b"|\n", b">-\n", b"---\n",
                     b"...\n", b"\t", b"%TAG ! x\n", b"0x_", b".nan", b"\xef\xbb\xbf", b"\r"]),
)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 30), TOKENS), max_size=6)


@st.composite
def nearly_good(draw: st.DrawFn) -> Any:
    """The seed with one to three of its values or keys replaced by hostile ones."""
    document = yaml.safe_load(SEED)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document["pipeline"]))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        if isinstance(holder, dict) and draw(st.integers(0, 3)) == 0:
            holder[draw(NAMES)] = holder.pop(key)
        else:
            holder[key] = draw(st.one_of(TEXTS, TEXTS, TEXTS, SCALARS, VALUES))
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (holder, key) of everything within `value`."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with what documents may stumble over."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "data").mkdir()
    (root / "data/rows.csv").write_text("text,label\na,0\n")
    (root / "script.py").write_text("print()\n")
    (root / "eval.yaml").write_text("dataset: data/rows.csv\n")
    (root / "steps.py").write_text("def make(out_dir, params): pass\n")
    (root / "broken.py").write_text("def x(:\n")
    (root / "closed").mkdir(mode=0)
    (root / "link-out").symlink_to("/etc")
    (root / "link-loop").symlink_to("link-loop")
    (root / "link-gone").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    (root / "nexa.yaml").write_text("{}\n")
    return root


def _try(project: Path, text: bytes, told: Counter[str]) -> None:
    """Read and check the document `text` as `plan` would, and judge what comes out."""
    file = project / "p.yaml"
    file.write_bytes(text)
    before = set(project.iterdir())
    try:
        pipeline = Pipeline.from_yaml(file, project=project)
        found = nodes_of(pipeline.plan_request(None, {}))
        problems = found.problems + found.unsupported
        told["refused by a check" if problems else "fine"] += 1
    except SpecError as error:
        problems = [*error.problems]
        told["refused"] += 1
    for problem in problems:
        assert str(problem) and len(str(problem)) < 20_000
        assert printable_lines(str(problem)).replace("\n", "").isprintable()
    assert set(project.iterdir()) == before


@pytest.mark.parametrize("as_key", [False, True], ids=["value", "key"])
def test_every_hostile_text_in_every_place(trapped: Path, as_key: bool) -> None:
    told: Counter[str] = Counter()
    good = json.dumps(yaml.safe_load(SEED))
    for number in range(len(list(_places(json.loads(good)["pipeline"])))):
        for text in HOSTILE[:: 4 if as_key else 1]:
            document = json.loads(good)
            holder, key = list(_places(document["pipeline"]))[number]
            if not as_key:
                holder[key] = text
            elif isinstance(holder, dict):
                holder[text] = holder.pop(key)
            try:
                _try(trapped, _written(document, True), told)
            except Exception as error:
                raise AssertionError(f"{key} with {text!a} in {document}: {error!r}") from error
    print(dict(told))
    assert told["fine"] and told["refused"] and told["refused by a check"]
    assert not list(trapped.rglob("owned"))


def _for_a_while(run: Callable[[int], None], seconds: float) -> None:
    until, number = time.monotonic() + seconds, int(time.time())
    while time.monotonic() < until:
        run(number)
        number += 1


FUZZING = settings(
    max_examples=150,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def test_no_document_does_anything_but_raise_spec_error(
    trapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told: Counter[str] = Counter()

    def mutated(number: int) -> None:
        @seed(number)
        @FUZZING
        @given(EDITS)
        def fuzz(edits: list[tuple[int, int, bytes]]) -> None:
            raw = SEED.encode()
            for start, length, new in edits:
                raw = raw[:start] + new + raw[start + length :]
            _try(trapped, raw, told)

        fuzz()

    def invented(number: int) -> None:
        @seed(number)
        @FUZZING
        @given(st.one_of(DOCUMENTS, nearly_good(), nearly_good()), st.booleans())
        def fuzz(document: Any, as_json: bool) -> None:
            _try(trapped, _written(document, as_json), told)

        fuzz()

    _for_a_while(mutated, SECONDS / 3)
    _for_a_while(invented, SECONDS * 2 / 3)
    print(f"{told.total()} documents: {dict(told)}")
    assert told["fine"] and told["refused"] > 100
    assert not list(trapped.rglob("owned"))


def _written(document: Any, as_json: bool) -> bytes:
    if as_json:
        return json.dumps(document).encode()
    return yaml.safe_dump(document, allow_unicode=True).encode(errors="surrogatepass")


def test_the_seed_is_a_good_document(trapped: Path) -> None:
    told: Counter[str] = Counter()
    _try(trapped, SEED.encode(), told)
    assert told == {"fine": 1}
