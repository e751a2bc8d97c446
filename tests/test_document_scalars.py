"""Scalars: one resolver for all, which reads what OmegaConf's loader reads."""

from __future__ import annotations

import importlib.util
import math

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexa_hpc.core import scalars
from nexa_hpc.core.document import parse_document
from nexa_hpc.errors import SpecError

READS = {
    "2e-5": 2e-5, "1e3": 1000.0, "1E+3": 1000.0, "1.5e3": 1500.0, "1.": 1.0, "-1.5": -1.5,
    "+1.5": 1.5, ".5": 0.5, ".5e+5": 50000.0, "-5.e+2": -500.0, "1_000.5": 1000.5,
    "1_0e2": 1000.0, "0.0": 0.0, "1:30.5": 90.5, "-1:30.5": -90.5, "1_.5": 1.5,
    "0": 0, "-0": 0, "+1": 1, "12": 12, "1_000": 1000, "1__0": 10, "010": 8, "0x1F": 31,
    "-0x1f": -31, "0b101": 5, "0b1_0": 2, "1:30": 90, "12:30:45": 45045, "-1:30": -90,
    "yes": True, "Yes": True, "YES": True, "on": True, "true": True, "TRUE": True,
    "no": False, "No": False, "off": False, "OFF": False, "false": False, "False": False,
    "null": None, "Null": None, "NULL": None, "~": None,
    # what looks like more than text and is none
    "y": "y", "n": "n", "nULL": "nULL", "yEs": "yEs", "0o17": "0o17", "08": "08", "-.5": "-.5",
    ".5e5": ".5e5", "1e3.": "1e3.", "2026-01-31": "2026-01-31", "1e": "1e", "e5": "e5",
    "2026-01-31 10:00:00": "2026-01-31 10:00:00", "=": "=", "<<": "<<", ".": ".", "-x": "-x",
    "1.2.3": "1.2.3", "0x": "0x", "v2": "v2", "${a.b}": "${a.b}", "inf": "inf", "nan": "nan",
}  # fmt: skip


@pytest.mark.parametrize(("word", "value"), READS.items(), ids=repr)
def test_a_plain_word_reads_as(word: str, value: object) -> None:
    found = scalars.resolve(word)
    assert found == value
    assert type(found) is type(value)


def test_a_plain_word_reads_the_same_in_a_document() -> None:
    text = "".join(f"k{number}: {word}\n" for number, word in enumerate(READS))
    assert list(parse_document(text.encode(), "p.yaml").value.values()) == list(READS.values())


def test_nothing_at_all_is_null() -> None:
    assert parse_document(b"a:\nb: ''\n", "p.yaml").value == {"a": None, "b": ""}


@pytest.mark.parametrize("word", [".nan", ".NaN", ".inf", "-.inf", "+.INF", "1e999", "-1e999"])
def test_what_json_does_not_have_is_refused_with_its_line(word: str) -> None:
    with pytest.raises(SpecError, match=r"^p\.yaml:2: '.*' is not a finite number; quote it"):
        parse_document(f"a: 1\nb: {word}\n".encode(), "p.yaml")


@pytest.mark.parametrize("word", ["0x_", "0b_", "-0x_", "9" * 5000, "0x" + "f" * 2_000_000])
def test_a_number_that_is_none_or_far_too_long_is_refused(word: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_document(f"a: {word}\n".encode(), "p.yaml")
    assert caught.value.problems[0].line == 1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("!!str 12", "12"), ("!!int '12'", 12), ("!!float 3", 3.0), ("!!float 2e-5", 2e-5),
        ("!!bool 'yes'", True), ("!!null ''", None), ("! 12", "12"), ("!!str", ""),
        ("!!map {a: 1}", {"a": 1}), ("!!seq [1]", [1]), ("! [1]", [1]),
    ],
)  # fmt: skip
def test_the_core_tags_say_how_to_read(text: str, value: object) -> None:
    found = parse_document(f"a: {text}\n".encode(), "p.yaml").value["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["!!int abc", "!!float yes", "!!bool 1", "!!null x", "!!int 1.5", "!!float .inf"]
)
def test_a_core_tag_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"p\.yaml:1: "):
        parse_document(f"a: {text}\n".encode(), "p.yaml")


# ------------------------------------------------------------------- against the loaders themselves

WORDS = st.one_of(
    st.from_regex(r"[-+]?[0-9_.:eExXbo+-]{1,9}", fullmatch=True),
    st.from_regex(r"[-+]?0[xb]?[0-9a-fA-F_]{1,6}", fullmatch=True),
    st.from_regex(r"[-+]?[0-9]{1,3}(:[0-9]{1,2}){1,2}(\.[0-9_]*)?", fullmatch=True),
    st.from_regex(r"[-+]?([0-9]{1,4}_?[0-9]?)?\.[0-9_]{0,4}([eE][-+]?[0-9]{1,2})?", fullmatch=True),
    st.sampled_from([*READS, "tRue", "ON", "oN", "NO", "+", "-", "~~", ".inf", ".NAN", "1e5_0"]),
    st.text("yesnoffalrutYESNOFALRUT", max_size=6),
)


def read_by(loader: type[yaml.SafeLoader], word: str) -> object:
    """Return what `loader` makes of the plain `word`; ValueError where it fails or is infinite."""
    instance = loader("")
    tag = instance.resolve(yaml.ScalarNode, word, (True, False))  # type: ignore[no-untyped-call]
    try:
        value = instance.construct_object(yaml.ScalarNode(tag, word))
    except yaml.constructor.ConstructorError:
        return word  # `=` and `<<`, for which those loaders have no value at all
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(word)
    return value


def outcome(read: object, *arguments: object) -> tuple[str, object]:
    try:
        value = read(*arguments)  # type: ignore[operator]
    except ValueError:
        return "refused", None
    return type(value).__name__, value


@given(WORDS)
@settings(deadline=None)
@example("-.5")
@example("1:60")
def test_what_pyyaml_takes_for_a_number_or_a_word_of_its_own_reads_the_same(word: str) -> None:
    theirs = outcome(read_by, yaml.SafeLoader, word)
    ours = outcome(scalars.resolve, word)
    if theirs[0] in ("str", "date", "datetime"):
        # OmegaConf differs from PyYAML in these: dates stay text, and there are more floats.
        assert ours[0] in ("str", "float", "refused")
    else:
        assert ours == theirs


@pytest.mark.skipif(not importlib.util.find_spec("omegaconf"), reason="needs OmegaConf")
@given(WORDS)
@settings(deadline=None)
@example("-.5")
@example(".5e5")
@example("1e999")
def test_every_plain_word_reads_as_omegaconf_reads_it(word: str) -> None:
    utilities = importlib.import_module("omegaconf._utils")
    assert outcome(scalars.resolve, word) == outcome(read_by, utilities.get_yaml_loader(), word)
