"""Step keys: every change that means something changes the key, and nothing else does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import child_environment
from hypothesis import assume, given
from hypothesis import strategies as st

from nexa_hpc.core.canonical import canonical_json, sha256_bytes, sha256_json
from nexa_hpc.core.keys import Difference, differences, key_document, place_free, step_key

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | TEXT
SCALARS |= st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PARAMS = st.dictionaries(TEXT, VALUES, max_size=4)

FIXED: dict[str, Any] = {
    "uses": "runners.command",
    "handler_version": "1",
    "backend": "hf",
    "scheduler": "local",
    "params": {"learning_rate": 2e-5, "seeds": [1, 2], "nested": {"naïve": True, "none": None}},
    "inputs": {"data": {"sha256": "0" * 64}, "model": {"step_key": "1" * 64, "output": "out"}},
    "outputs": {"out": "artifacts/model"},
    "cache_hint": "v2",
    "env": {"container": "image.sif", "variables": {"OMP_NUM_THREADS": "1"}},
    "code": {"steps.py": "2" * 64},
    "rerun": 0,
    "roots": {"project": Path("/home/me/project")},
}
GOLDEN = "022f4f789e11c283867698124ec4220a888e66fe26147b032c7ed49d403f30a9"

_CHILD = """
import json, sys
from nexa_hpc.core.keys import key_document, step_key
fields = json.loads(sys.stdin.read())
print(step_key(key_document(**{**fields, "roots": {}})))
"""


def document(**changes: Any) -> dict[str, Any]:
    return key_document(**{**FIXED, **changes})


def reordered(value: Any) -> Any:
    """The same value with every mapping's entries in the opposite order."""
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(list(value))}
    return [reordered(item) for item in value] if isinstance(value, list) else value


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1, 1.0 and true are three values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and repr(one) == repr(other)  # -0.0 is not 0.0


# ------------------------------------------------------------------------------------- the document


def test_the_key_of_a_fixed_document_never_changes() -> None:
    # If this fails, every result anywhere is computed anew: raise FORMAT, and mean it.
    assert step_key(document()) == GOLDEN


@given(PARAMS)
def test_the_order_of_keys_does_not_matter_at_any_depth(params: dict[str, Any]) -> None:
    assert step_key(document(params=params)) == step_key(document(params=reordered(params)))


@given(PARAMS, PARAMS)
def test_two_params_share_a_key_exactly_when_they_are_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    keys_agree = step_key(document(params=one)) == step_key(document(params=other))
    assert keys_agree == same(one, other)


@given(VALUES, VALUES, st.lists(st.integers(0, 2), max_size=5))
def test_a_change_at_any_depth_changes_the_key(one: Any, other: Any, path: list[int]) -> None:
    assume(not same(one, other))
    for turn in path:
        wrap = (lambda v: {"a": v, "b": 0}, lambda v: [0, v], lambda v: {"x": [v]})[turn]
        one, other = wrap(one), wrap(other)
    assert step_key(document(params={"p": one})) != step_key(document(params={"p": other}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("uses", "runners.train"),
        ("handler_version", "2"),
        ("backend", None),
        ("scheduler", None),
        ("scheduler", "slurm"),
        ("params", {}),
        ("inputs", {**FIXED["inputs"], "data": {"sha256": "f" * 64}}),
        ("inputs", {"data": FIXED["inputs"]["data"]}),
        ("inputs", {"moved": FIXED["inputs"]["data"], "model": FIXED["inputs"]["model"]}),
        ("outputs", {"out": "artifacts/other"}),
        ("outputs", {"model": "artifacts/model"}),
        ("outputs", {}),
        ("cache_hint", None),
        ("cache_hint", "v3"),
        ("env", {"variables": {"OMP_NUM_THREADS": "1"}}),
        ("env", {**FIXED["env"], "variables": {"OMP_NUM_THREADS": "2"}}),
        ("env", {**FIXED["env"], "container": "other.sif"}),
        ("code", {"steps.py": "3" * 64}),
        ("code", {"other.py": "2" * 64}),
        ("rerun", 1),
    ],
)
def test_every_field_is_in_the_key(field: str, value: Any) -> None:
    assert step_key(document(**{field: value})) != step_key(document())


@given(st.fixed_dictionaries(dict.fromkeys(("cache_hint", "backend", "scheduler"), VALUES)))
def test_no_field_can_pass_for_another(fields: dict[str, Any]) -> None:
    shifted = dict(zip(fields, [*list(fields.values())[1:], fields["cache_hint"]], strict=True))
    agree = step_key(document(**fields)) == step_key(document(**shifted))
    assert agree == same(fields, shifted)


# --------------------------------------------------------------------------- processes and versions


def child_key(python: str, fields: Mapping[str, Any], **environment: str) -> str:
    done = subprocess.run(
        [python, "-c", _CHILD],
        input=json.dumps(fields),
        env=child_environment(**environment),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def varied() -> dict[str, Any]:
    """A document with numbers at the edges, many keys, and text beyond ASCII."""
    numbers = [0.1, 1e300, -0.0, 5e-324, 2**80, 1e22, 1.0, 1, True, 0.1 + 0.2, 1e-7, 123456789.123]
    params = {f"key_{n}": number for n, number in enumerate(numbers)}
    params |= {"text": "naïve \u2028 \U0001f600 \x7f \x00", "surrogate": "\ud800", "deep": [[{}]]}
    fields = {name: value for name, value in FIXED.items() if name != "roots"}
    return {**fields, "params": params}


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_a_key_is_the_same_in_every_process(varied: dict[str, Any], seed: str) -> None:
    key = step_key(key_document(**varied, roots={}))
    assert child_key(sys.executable, varied, PYTHONHASHSEED=seed, LC_ALL="C") == key


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_a_key_is_the_same_under_every_python(varied: dict[str, Any], version: str) -> None:
    python = shutil.which(f"python{version}")
    # pyenv's stand-in for an interpreter fails unless this chooses the version.
    chosen = {"PYENV_VERSION": version}
    ask = [python or "python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    if (
        python is None
        or version
        not in subprocess.run(
            ask, env={**os.environ, **chosen}, capture_output=True, text=True
        ).stdout
    ):
        pytest.skip(f"there is no Python {version} here")
    assert child_key(python, varied, **chosen) == step_key(key_document(**varied, roots={}))


# ------------------------------------------------------------------------------------------- places


def test_a_path_below_a_root_enters_as_the_roots_name() -> None:
    roots = {"store": Path("/p/artifacts/.store"), "project": Path("/p")}
    params = {"a": "/p/artifacts/.store/ab", "b": ["/p/data.csv", {"c": "/p"}], "d": "/pq/x"}
    assert place_free(params, roots) == {
        "a": {"$root": "store", "path": "ab"},
        "b": [{"$root": "project", "path": "data.csv"}, {"c": {"$root": "project", "path": ""}}],
        "d": "/pq/x",
    }


@given(PARAMS)
def test_a_moved_project_keeps_its_keys(params: dict[str, Any]) -> None:
    def at(root: str) -> str:
        places = {"log": f"{root}/logs/x", "list": [root, {"deep": f"{root}/a/b"}], "own": params}
        fields = {"params": places, "outputs": {"out": f"{root}/o"}, "env": {"V": f"{root}/e"}}
        return step_key(document(**fields, roots={"project": Path(root)}))

    assert at("/home/me/project") == at("/scratch/you/moved")


def test_a_path_that_stays_behind_when_the_project_moves_is_another_path() -> None:
    def at(root: str) -> str:
        roots = {"project": Path(root)}
        return step_key(document(params={"data": "/home/me/data.csv"}, roots=roots))

    assert at("/home/me") != at("/home/you")


def test_params_that_look_like_a_root_do_not_pass_for_a_path_below_it() -> None:
    roots = {"project": Path("/p")}
    meant = place_free("/p/x", roots)
    assert place_free(meant, roots) != meant
    assert place_free({"$$root": 1}, roots) != place_free({"$root": 1}, roots)


# -------------------------------------------------------------------------------------- differences


def test_differences_name_what_changed_was_added_and_was_removed() -> None:
    old = {"params": {"lr": 2e-5, "gone": "x", "kept": [1]}, "code": {"a.py": "0" * 64}}
    new = {"params": {"lr": 3e-5, "new": {"a": 1}, "kept": [1]}, "code": {"a.py": "f" * 64}}
    assert list(map(str, differences(old, new))) == [
        "code.a.py: 000000000000… → ffffffffffff…",
        "params.gone: removed (was x)",
        "params.lr: 2e-5 → 3e-5",
        'params.new: added, {"a":1}',
    ]


@given(PARAMS, PARAMS)
def test_there_are_differences_exactly_when_the_keys_differ(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    old, new = document(params=one), document(params=other)
    assert bool(differences(old, new)) == (step_key(old) != step_key(new))


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        (1e-10, 1e22, "1e-10 → 1e+22"),
        ("one", "two", "one → two"),
        ("a\nb\x1b", "a\nc", r"a\nb\x1b → a\nc"),
        ("x" * 60, "x" * 59 + "y", f"{'x' * 60} → {'x' * 59}y"),
        ("x" * 80 + "a" + "z" * 80, "x" * 80 + "b", f"…{'x' * 15}a{'z' * 44}… → …{'x' * 59}b"),
        (
            ["long"] * 20,
            ["short"],
            '["long","long","long","long","long","long","long","long","lo… → ["short"]',
        ),
        ("f" * 64, "g" * 64, f"ffffffffffff… → {'g' * 60}…"),
    ],
)
def test_a_difference_is_one_short_line_that_shows_where_it_begins(
    old: Any, new: Any, shown: str
) -> None:
    (found,) = differences({"p": old}, {"p": new})
    assert str(found).startswith(f"p: {shown}")
    assert len(str(found)) < 140
    assert str(found).isprintable()


def test_a_long_value_that_was_added_or_removed_is_shown_from_its_beginning() -> None:
    (found,) = differences({}, {"p": "begin" + "x" * 100})
    assert str(found) == f"p: added, begin{'x' * 55}…"
    (found,) = differences({"p": "begin" + "x" * 100}, {})
    assert str(found) == f"p: removed (was begin{'x' * 55}…)"


def test_a_value_that_is_null_is_not_an_absent_one() -> None:
    assert differences({"a": None}, {}) == [Difference("a", "null", None)]
    assert differences({"a": 1}, {"a": True}) == [Difference("a", "1", "true")]


# ----------------------------------------------------------------------------------- canonical JSON


def test_canonical_json_is_ascii_sorted_and_without_spaces() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null]}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_does_not_have_has_no_digest(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        sha256_json({"x": [value]})


def test_digests_are_those_of_sha256() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256_bytes(b"") == empty
    assert sha256_json({"a": 1}) == sha256_bytes(b'{"a":1}')
