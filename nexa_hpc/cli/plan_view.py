"""A plan as people and scripts read it: per step RUN or SKIP and why, arrays, counts.

Called by `plan` and `run`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from nexa_hpc.cli.submission import print_submission
from nexa_hpc.cli.sweep_counts import in_words
from nexa_hpc.cli.tables import print_table
from nexa_hpc.core.collector import made_to_stay
from nexa_hpc.core.planning import Plan
from nexa_hpc.core.quoting import printable, printable_lines
from nexa_hpc.core.runs import Run
from nexa_hpc.pipeline import Pipeline
from nexa_hpc.schedulers.slurm.terms import Terms
from nexa_hpc.slurm_plans import PlannedSubmission

_BEFORE_SUBMISSION = 30
"""Steps of a plan that is about to be submitted; with more, the counts alone are told."""
_OF_A_SWEEP = 60
"""Rows of a sweep's plan; the counts, and --json, tell of all."""


def show_plan(
    pipeline: Pipeline,
    scheduler: str | None,
    policy: Mapping[str, Any],
    as_json: bool,
    *,
    with_scripts: bool = False,
) -> None:
    """Print what a run of `pipeline` would do."""
    terms = pipeline.terms(scheduler, policy)
    with made_to_stay():
        plan = pipeline.plan_under(terms, scheduler)
    submission = None if terms is None else PlannedSubmission(pipeline.paths, plan, terms)
    if as_json:
        _print_json(plan, submission)
        return
    _print_steps(plan)
    notes = {
        f"note: step '{instance.step_id}': {name} resolved to {printable(note)}": None
        for instance in plan.instances.values()
        for name, note in instance.resolved.items()
    }
    print("".join(f"{note}\n" for note in notes), end="")
    for warning in plan.warnings:
        print(f"warning: {printable_lines(warning)}", file=sys.stderr)
    if submission is not None:
        print_submission(submission, with_scripts=with_scripts)
    print(_counted(plan))


def _print_json(plan: Plan, submission: PlannedSubmission | None) -> None:
    content = {
        "pipeline": plan.pipeline,
        "steps": [
            {"step": i.step, "action": i.action, "reason": i.reason, "key": i.key, "uses": i.uses}
            for i in plan.instances.values()
        ],
        "warnings": plan.warnings,
        **({"points": [point.to_json() for point in plan.points]} if plan.points else {}),
        "arrays": submission.arrays() if submission is not None else [],
    }
    print(json.dumps(content))


def print_what_is_submitted(recorded: Run, plan: Plan) -> None:
    """Print what is about to be submitted, and how much of the plan is cached."""
    terms = Terms.of(recorded.request)
    if terms is not None:
        if len(plan.instances) <= _BEFORE_SUBMISSION:
            _print_steps(plan)
        submission = PlannedSubmission(recorded.paths, plan, terms)
        print_submission(submission, with_scripts=False)
    if terms is not None or plan.points:
        print(f"{_counted(plan)}\n", flush=True)


def _print_steps(plan: Plan) -> None:
    shown = list(plan.instances.values())
    if plan.points and len(shown) > _OF_A_SWEEP:
        # What runs is what a person looks for among hundreds that do not.
        shown = sorted(shown, key=lambda instance: instance.action == "SKIP")[:_OF_A_SWEEP]
    rows = [[i.step, i.action, i.key[:8], i.reason] for i in shown]
    print_table(["STEP", "ACTION", "KEY", "REASON"], rows)
    if len(shown) < len(plan.instances):
        print(f"and {len(plan.instances) - len(shown)} more (--json has all)")


def _counted(plan: Plan) -> str:
    """Return how much is to run and how much is cached; of a sweep, what the points share."""
    counts = Counter(instance.action for instance in plan.instances.values())
    if not plan.points:
        return f"{counts['RUN']} to run, {counts['SKIP']} cached"
    return f"{in_words(len(plan.points), plan.instances.values())} ({counts['RUN']} to run)"
