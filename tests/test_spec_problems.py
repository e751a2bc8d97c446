"""Problems of a document: all at once, each with its line, step, key and the nearest valid name."""

from __future__ import annotations

import pytest

from nexa_hpc.core.document import parse_document
from nexa_hpc.core.spec import parse_pipeline
from nexa_hpc.errors import SpecError

MANY = """\
pipeline:
  name: my pipeline
  labels: {seed: 1}
  steps:
    - id: one
      uses: runners.train
      scheduler: slrum
      resources: {gpus_per_nodes: 8, mem_gb: "4", nodes: 0}
      after: [onne]
    - id: one
      after: two
      env: {venv: a, conda: b, variables: {OMP: 4}}
    - nonsense
    - uses: runners.train
      scope: sweeps
      in: {best: {step: one, metric: accuracy}}
"""


def problems_of(text: str) -> list[str]:
    """Return the problems of `text`, without the lists of what is allowed."""
    with pytest.raises(SpecError) as caught:
        parse_pipeline(parse_document(text.encode(), "p.yaml"))
    return [str(problem).partition(" (allowed")[0] for problem in caught.value.problems]


def of_step(declared: str) -> list[str]:
    """Return the problems of one step, whose `declared` begins in line 6, without its id."""
    head = "pipeline:\n  name: p\n  steps:\n    - id: a\n      uses: u\n"
    body = "".join(f"      {line}\n" for line in declared.splitlines())
    return [text.replace("step 'a': ", "") for text in problems_of(head + body)]


def test_all_problems_are_reported_together_in_the_order_of_their_lines() -> None:
    assert problems_of(MANY) == [
        "p.yaml:2: name: 'my pipeline': a name has 1 to 64 characters of A-Z a-z 0-9 . _ - and not"
        " only dots",
        'p.yaml:3: labels.seed: expected text, got the number 1; quote it if it is text: "1"',
        "p.yaml:7: step 'one': scheduler: expected 'local', 'slurm' or 'k8s', got the text 'slrum';"
        " did you mean 'slurm'?",
        "p.yaml:8: step 'one': resources.nodes: expected more than 0, got the number 0",
        "p.yaml:8: step 'one': resources.mem_gb: expected a number, got the text '4'",
        "p.yaml:8: step 'one': resources.gpus_per_nodes: unknown key 'gpus_per_nodes';"
        " did you mean 'gpus_per_node'?",
        "p.yaml:9: step 'one': after: unknown step 'onne'; did you mean 'one'?",
        "p.yaml:10: step 'one': uses: missing",
        "p.yaml:10: step 'one': id: the id 'one' is given to two steps (first in line 5)",
        "p.yaml:11: step 'one': after: expected a list of step ids, got text: write `after: [two]`",
        "p.yaml:12: step 'one': env.variables.OMP: expected text, got the number 4;"
        ' quote it if it is text: "4"',
        "p.yaml:13: steps[2]: expected a mapping, got the text 'nonsense'",
        "p.yaml:14: steps[3].id: missing",
        "p.yaml:15: steps[3].scope: expected 'sweep', got the text 'sweeps'; did you mean 'sweep'?",
        "p.yaml:16: steps[3].in.best: the best point is chosen by step, metric and mode: no mode",
    ]


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ("nedes: x", "nedes: unknown key 'nedes'"),
        ("inputs: {a: b}", "inputs: unknown key 'inputs'; did you mean 'in'?"),
        ("outputs: x", "outputs: unknown key 'outputs'; did you mean 'out'?"),
        ("needs: [a]", "needs: unknown key 'needs'; did you mean 'after'?"),
        ("parms: {}", "parms: unknown key 'parms'; did you mean 'params'?"),
        ("mem_gb: 4", "mem_gb: unknown key 'mem_gb'; write it under `resources:`"),
        ("venv: x", "venv: unknown key 'venv'; write it under `env:`"),
        ("in: {a: {pth: x, path: y}}", "in.a.pth: unknown key 'pth'; did you mean 'path'?"),
        ("in: {a: {digest: none}}",
         "in.a: write its `path`, or {step: …, metric: …, mode: max | min}"),
        ("in: {a: {path: x, digest: md5}}",
         "in.a.digest: expected 'content', 'stat' or 'none', got the text 'md5'"),
        ("in: [x]", "in: expected a path, or a mapping of names to paths: write `in: {config: …}`"),
        ("in: 3", "in: expected a mapping, got the number 3"),
        ("in: ''", "in.input.path: '': a path is not empty and has no control characters"),
        (
            "in: {a: 3}",
            "in.a: expected a path, {path: …, digest: content | stat | none}, or"
            " {step: …, metric: …, mode: max | min}",
        ),
        ("in: {a b: x}", "in.a b: 'a b': a name has 1 to 64 characters of A-Z a-z 0-9 . _ - and not"
         " only dots"),
        ("out: [x]",
         "out: expected a path, or a mapping of names to paths: write `out: {model: …}`"),
        ("out: {}", "out: an empty mapping names no folder; leave `out` away"),
        ("out: {a: 3}", "out: 'a' must be a path, as text"),
        ("out: {a/b: x}", "out: the name 'a/b': a name has 1 to 64 characters of A-Z a-z 0-9 . _ -"
         " and not only dots"),
        ("params: [1]", "params: expected a mapping, got a list"),
        ("params: []", "params: expected a mapping, got an empty list"),
        ("after: [1]", "after[0]: expected text, got the number 1; quote it if it is text: \"1\""),
        ("after: {a: b}", "after: expected a list, got a mapping"),
        ("cache_hint: [1]", "cache_hint: expected one plain value, not a list or a mapping"),
        ("key_resources: 1", "key_resources: expected true or false, got the number 1"),
        ("backend: true", "backend: expected text, got true; quote it if it is text"),
        ("backend: ''", "backend: expected text that is not empty, got the text ''"),
        ("resources: {nodes: 1.5}", "resources.nodes: expected a whole number, got the number 1.5"),
        ("resources: {nodes: yes}", "resources.nodes: expected a whole number, got true"),
        ("resources: {nodes: -1}", "resources.nodes: expected more than 0, got the number -1"),
        ("resources: {gpus_per_node: -1}",
         "resources.gpus_per_node: expected at least 0, got the number -1"),
        ("resources: {mem_gb: 1, mem_per_cpu_gb: 2}",
         "resources: mem_gb and mem_per_cpu_gb exclude each other; keep one"),
        ("resources: {slurm: {extra: {x: [1]}}}",
         "resources.slurm.extra.x: expected one plain value, not a list or a mapping"),
        ("resources: {slurm: {mail: x}}", "resources.slurm.mail: unknown key 'mail'"),
        ("env: {venv: a, python: b}", "env: venv and python exclude each other; keep one"),
        ("env: {variables: {1x: a}}", "env.variables.1x: '1x': the name of a variable has letters,"
         " digits and _, and no digit first"),
        ("env: {secrets: [A=b]}", "env.secrets[0]: 'A=b': the name of a variable has letters,"
         " digits and _, and no digit first"),
        ("env: gpu", "env: expected a mapping, got the text 'gpu'"),
        ("labels: {a: }", "labels.a: expected text, got nothing"),
        ("labels: {" + "x" * 65 + ": y}", f"labels.{'x' * 65}: the name '{'x' * 65}': expected at"
         " most 64 characters, got the text '" + "x" * 65 + "'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_step_is_told_as(declared: str, problem: str) -> None:
    (found,) = of_step(declared)
    assert found == f"p.yaml:6: {problem}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\n", "p.yaml: pipeline: missing: a document holds one `pipeline:`"),
        ("pipeline:\n", "p.yaml:1: expected a mapping, got nothing"),
        ("pipeline: x\n", "p.yaml:1: expected a mapping, got the text 'x'"),
        ("pipeline: {name: p}\n", "p.yaml:1: steps: missing"),
        ("pipeline: {name: p, steps: []}\n",
         "p.yaml:1: steps: a pipeline has at least one step"),
        ("pipeline:\n  name: p\n  steps:\n",
         "p.yaml:3: steps: expected a list of steps, each beginning with `- id: …`, got nothing"),
        ("pipeline: {name: p, steps: {a: {uses: b}}}\n",
         "p.yaml:1: steps: expected a list of steps, each beginning with `- id: …`, got a mapping"),
        ("pipeline: {steps: [{id: a, uses: b}]}\n", "p.yaml:1: name: missing"),
        ("pipeline: {name: p, step: [], steps: [{id: a, uses: b}]}\n",
         "p.yaml:1: step: unknown key 'step'; did you mean 'steps'?"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_pipeline_is_told_as(text: str, problem: str) -> None:
    assert problem in problems_of(text)


GOOD = "pipeline: {name: p, steps: [{id: a, uses: b}]}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pipelines: 1\n",
         "p.yaml:2: pipelines: unknown key 'pipelines'; did you mean 'pipeline'?"),
        ("steps: []\n", "p.yaml:2: steps: unknown key 'steps'; write it under `pipeline:`"),
        (
            "defaults: [a]\n",
            "p.yaml:2: defaults: a document with `defaults:` is composed: read its file by"
            " Pipeline.from_yaml",
        ),
    ],
)  # fmt: skip
def test_a_mistake_beside_a_good_pipeline_is_told_as(text: str, problem: str) -> None:
    assert problems_of(GOOD + text) == [problem]


def test_what_begins_with_x_is_a_place_for_anchors() -> None:
    parse_pipeline(parse_document((GOOD + "x-anything: [1]\nx-: 2\n").encode(), "p.yaml"))


def test_the_allowed_keys_are_listed() -> None:
    with pytest.raises(SpecError) as caught:
        parse_pipeline(parse_document(b"pipeline: {name: p, steps: [], wat: 1}\n", "p.yaml"))
    assert "unknown key 'wat' (allowed: name, labels, steps)" in str(caught.value)


def test_a_mistake_in_what_an_alias_stands_for_has_the_anchors_line() -> None:
    text = "x-r: &r\n  nodez: 1\n" + GOOD.replace("uses: b", "uses: b, resources: *r")
    (problem,) = problems_of(text)
    assert problem.startswith("p.yaml:2: step 'a': resources.nodez: unknown key 'nodez'")


def test_a_cycle_is_reported_beside_other_mistakes() -> None:
    text = (
        "pipeline:\n  name: p\n  steps:\n    - {id: a, uses: x, after: [b]}\n"
        "    - {id: b, uses: x, after: [a]}\n    - {id: c, uses: x, wat: 1}\n"
    )
    first, second = problems_of(text)
    assert "a cycle, each waits for the next: a → b → a (lines 4, 5)" in first
    assert "unknown key 'wat'" in second


def test_ten_thousand_mistakes_are_counted_not_printed() -> None:
    steps = "".join(f"    - {{id: s{n}, uses: x, wat: 1}}\n" for n in range(10_000))
    problems = problems_of("pipeline:\n  name: p\n  steps:\n" + steps)
    assert len(problems) == 101
    assert problems[-1] == "p.yaml: and 9,900 problems more"


HOSTILE = '"' + r"\e[31m\n" + "x" * 5000 + '"'


@pytest.mark.parametrize(
    "declared",
    [
        "resources: {nodes: %s}", "%s: 1", "in: {%s: x}", "in: {x: {path: %s}}", "after: [%s]",
        "out: {%s: x}", "out: {%s: 3}", "labels: {%s: x}", "scheduler: %s",
        "env: {variables: {%s: 3}}",
    ],
)  # fmt: skip
def test_a_message_is_short_and_does_nothing_to_a_terminal(declared: str) -> None:
    for problem in of_step(declared % HOSTILE + "\nwat: 1"):
        assert problem.isprintable()
        assert len(problem) < 700


@pytest.mark.parametrize(
    "text",
    [
        "pipeline: {name: %s, steps: []}\n", "pipeline: {%s: 1}\n", "%s: 1\n", "%s: 1\n%s: 2\n",
        "pipeline: {name: p, steps: [{id: %s, uses: 1}, {id: %s}, {id: a, after: [%s]}]}\n",
        "pipeline: {name: p, steps: [{id: %s, after: [b]}, {id: b}]}\n",
    ],
)  # fmt: skip
def test_so_is_one_about_the_pipeline(text: str) -> None:
    for problem in problems_of(text.replace("%s", HOSTILE)):
        assert problem.isprintable()
        assert len(problem) < 700
