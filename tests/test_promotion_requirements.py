"""A promote step with `require`: a tag moves only to a version whose figures are good enough."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from planned import command, pipeline

from nexa_hpc.core.publishing import create_artifact
from nexa_hpc.core.registry import Registry
from nexa_hpc.errors import SpecError

PRODUCTION = "m@production"


@pytest.fixture
def registry(project: Path) -> Registry:
    return Registry(project / "artifacts/.registry", project=project)


def steps(require: dict[str, Any], figures: dict[str, Any] | str) -> list[dict[str, Any]]:
    """Train, evaluate to these figures, register with them, promote if they are as required."""
    text = figures if isinstance(figures, str) else json.dumps(figures)
    return [
        command("train", 'echo "$PARAM_figures" > $OUT/weights', params={"figures": text}),
        command("eval", "echo '" + text + "' > $OUT/metrics.json", **{"in": {"model": "train"}}),
        {
            "id": "register",
            "uses": "core.registry.register",
            "params": {"name": "m", "uri": "train", "meta": "eval/metrics.json"},
        },
        {
            "id": "promote",
            "uses": "core.registry.promote",
            "after": ["register", "eval"],
            "params": {
                "name": "m",
                "version": "registered",
                "tag": "production",
                "require": require,
            },
        },
    ]


def promoted(project: Path, require: dict[str, Any], figures: dict[str, Any] | str) -> str:
    """Run the pipeline, and return what became of the promotion: a message, or the output."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        pipeline(project, *steps(require, figures)).run()
    state = json.loads((project / ".nexa_state/demo/pipeline_state.json").read_text())
    entry = state["steps"]["promote"]
    if entry["status"] == "FAILED":
        return str(entry["message"])
    return printed.getvalue() if entry["status"] == "COMPLETED" else str(entry["status"])


def tag(registry: Registry) -> int | None:
    return registry.tags("m").get("production")


def test_a_version_below_a_bound_fails_the_step_and_moves_no_tag(
    project: Path, registry: Registry
) -> None:
    require = {"metric": "eval.accuracy", "min": 0.85}
    message = promoted(project, require, {"accuracy": 0.84})
    assert message == (
        "eval.accuracy of m version 1 is 0.84, below min 0.85; the tag production is not set"
    )
    assert tag(registry) is None
    assert "required: eval.accuracy is 0.85, min 0.85" in promoted(
        project, require, {"accuracy": 0.85}
    )
    assert tag(registry) == 2
    message = promoted(project, {"metric": "eval.loss", "max": 0.5}, {"loss": 0.7})
    assert message.endswith("is 0.7, above max 0.5; the tag production stays at version 2")
    assert tag(registry) == 2


def test_a_version_must_be_better_than_the_one_that_has_the_tag(
    project: Path, registry: Registry
) -> None:
    require = {"metric": "eval.accuracy", "better_than": PRODUCTION}
    assert f"there is no {PRODUCTION} yet to be better than" in promoted(
        project, require, {"accuracy": 0.8}
    )
    # What was promoted holds: it need not be better than itself.
    assert promoted(project, require, {"accuracy": 0.8}) == "SKIPPED"
    for worse in (0.8, 0.7):
        message = promoted(project, require, {"accuracy": worse, "n": 1})
        assert f"is {worse}, no better than 0.8 of {PRODUCTION} (m version 1)" in message
        assert "more is better, guessed from its name; the tag production stays at" in message
        assert tag(registry) == 1
    told = promoted(project, require, {"accuracy": 0.9})
    assert f"better than 0.8 of {PRODUCTION} (m version 1; more is better, guessed" in told
    assert tag(registry) == 4


def test_less_is_better_where_the_name_or_the_mode_says_so(
    project: Path, registry: Registry
) -> None:
    require = {"metric": "eval.loss", "better_than": PRODUCTION}
    promoted(project, require, {"loss": 0.5, "odd": 1})
    assert "less is better, guessed" in promoted(project, require, {"loss": 0.6, "odd": 1})
    assert "less is better, guessed" in promoted(project, require, {"loss": 0.4, "odd": 2})
    assert tag(registry) == 3
    require = {"metric": "eval.odd", "better_than": PRODUCTION, "mode": "min"}
    message = promoted(project, require, {"odd": 3})
    assert "is 3, no better than 2" in message
    assert "less is better; the tag" in message


def test_a_tag_at_a_version_that_does_not_meet_a_new_requirement_does_not_hold(
    project: Path, registry: Registry
) -> None:
    figures = {"accuracy": 0.8}
    promoted(project, {"metric": "eval.accuracy", "min": 0.7}, figures)
    message = promoted(project, {"metric": "eval.accuracy", "min": 0.9}, figures)
    assert message.endswith("below min 0.9; the tag production stays at version 1")
    assert tag(registry) == 1


def test_a_figure_may_be_that_of_the_versions_own_meta(project: Path, registry: Registry) -> None:
    folder = project / "model"
    create_artifact(folder, lambda out: (out / "w").write_text("w"))
    registry.register("m", folder, {"test": {"accuracy": 0.9}, "f1": 0.6})
    for metric, least, goes_well in (
        ("f1", 0.5, True),
        ("test.accuracy", 0.85, True),
        ("f1", 0.7, False),
    ):
        require = {"metric": metric, "min": least}
        params = {"name": "m", "version": 1, "tag": "t", "require": require}
        step = {"id": "p", "uses": "core.registry.promote", "params": params}
        assert pipeline(project, step).run().succeeded is goes_well


def test_what_cannot_be_compared_is_said_and_moves_no_tag(
    project: Path, registry: Registry
) -> None:
    folder = project / "model"
    create_artifact(folder, lambda out: (out / "w").write_text("w"))
    registry.register("m", folder)
    registry.promote("m", 1, "production")
    require = {"metric": "eval.accuracy", "better_than": PRODUCTION}
    message = promoted(project, require, {"accuracy": 0.9})
    assert "m@production (m version 1) was registered without a number 'eval.acc" in message
    message = promoted(project, {"metric": "eval.acuracy", "min": 0.5}, {"accuracy": 0.9})
    assert "no finite number 'eval.acuracy': neither the metrics.json of step 'eval' nor" in message
    assert "did you mean 'eval.accuracy'?" in message
    message = promoted(project, {"metric": "eval.accuracy", "min": 0}, {"accuracy": "high"})
    assert "no finite number 'eval.accuracy'" in message
    require = {"metric": "eval.accuracy", "better_than": "other@production"}
    assert "no model 'other'" in promoted(project, require, {"accuracy": 0.95})
    assert tag(registry) == 1


def test_in_a_sweep_the_figure_is_that_of_the_chosen_point(
    project: Path, run_cli: RunCli, registry: Registry
) -> None:
    train, evaluate, register, promote = steps(
        {"metric": "eval.accuracy", "min": 0.3, "better_than": PRODUCTION}, "{}"
    )
    train["params"]["figures"] = 0.1
    evaluate["params"]["command"] = (
        'echo "{\\"accuracy\\": $(cat $IN_model/weights)}" > $OUT/metrics.json'
    )
    best = {"step": "train", "metric": "eval.accuracy", "mode": "max"}
    register |= {"scope": "sweep", "in": {"uri": best}, "params": {"name": "m"}}
    promote["scope"] = "sweep"
    pipeline(project, train, evaluate, register, promote)
    values = "steps.train.params.figures=0.1,0.4,0.2"
    run_cli("run", project / "demo.yaml", "-m", values)
    assert registry.tags("m") == {"production": 1}
    # The version was registered without meta: which point it is of, its files tell.
    (log,) = (project / ".nexa_state/demo/runs/").glob("*/logs/promote*")
    assert "required: eval.accuracy is 0.4, min 0.3, there is no m@production" in log.read_text()


@pytest.mark.parametrize(
    ("require", "told"),
    [
        ({"metric": "eval.accuracy", "mni": 0.8}, "mni: unknown key; did you mean 'min'?"),
        ({"metric": "eval.accuracy", "zz": 1, "max": 1}, "unknown key (it takes: metric, min,"),
        ({"min": 0.8}, "require.metric: say which figure"),
        ({"metric": "eval.accuracy"}, "asks for nothing: give min, max or better_than"),
        ({"metric": "eval.accuracy", "min": "0.8"}, "require.min: expected a number, got 0.8"),
        ({"metric": "eval.accuracy", "min": 2, "max": 1}, "no number is at least 2 and at most 1"),
        ({"metric": "eval.accuracy", "min": 0, "mode": "up"}, "mode: expected max or min"),
        ({"metric": "eval.accuracy", "better_than": "m"}, "does not say which version of m"),
        ({"metric": "eval.accuracy", "better_than": 3}, "expected a version, as in name@prod"),
        (
            {"metric": "eval.accuracy", "better_than": "m@prodction"},
            "the tag of this step is 'production', not 'prodction'",
        ),
        ({"metric": "evl.accuracy", "min": 0.8}, "no step 'evl'; did you mean 'eval'?"),
        ({"metric": "register.accuracy", "min": 0.8}, "'register' changes something elsewhere"),
        ({"metric": "late.accuracy", "min": 0.8}, "'late' need not have run by then"),
        ("0.8", "expected {metric: step.metric"),
    ],
)
def test_a_wrong_requirement_is_a_mistake_at_planning(
    project: Path, require: Any, told: str
) -> None:
    with pytest.raises(SpecError) as found:
        pipeline(project, *steps(require, {"accuracy": 1}), command("late")).plan()
    assert told in str(found.value)
